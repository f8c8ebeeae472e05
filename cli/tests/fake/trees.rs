//! Trees of the fake: one base, and one difference.

use capsule_proto::capsule::v1::trees_server::Trees;
use capsule_proto::capsule::v1::{self, EntryKind};
use tonic::{Request, Response, Status};

use super::{Asked, Service, version};

type Stream<T> = tokio_stream::Iter<std::vec::IntoIter<Result<T, Status>>>;

fn answer<T>(messages: Vec<T>) -> Response<Stream<T>> {
    Response::new(tokio_stream::iter(messages.into_iter().map(Ok).collect::<Vec<_>>()))
}

fn reference(name: &str) -> v1::VersionRef {
    v1::VersionRef { capsule: "tzdata".into(), version: name.into(), digest: version().digest }
}

pub fn entry(path: &str, kind: EntryKind) -> v1::TreeEntry {
    v1::TreeEntry {
        path: path.into(),
        kind: kind.into(),
        mode: if kind == EntryKind::EntryDirectory { 0o755 } else { 0o644 },
        mtime: Some(prost_types::Timestamp::default()),
        ..v1::TreeEntry::default()
    }
}

/// A file of the fake's base, which holds `same\n`.
fn file(path: &str) -> v1::TreeEntry {
    v1::TreeEntry { size: 5, sha256: SAME.to_vec(), ..entry(path, EntryKind::EntryFile) }
}

/// SHA-256 of `same\n`.
const SAME: [u8; 32] = [
    0xa6, 0x32, 0x8a, 0xfc, 0x76, 0xe9, 0xdb, 0x71, 0xda, 0x29, 0x7e, 0xbf, 0xf4, 0xb0, 0xd3, 0xe7, 0xa7,
    0xeb, 0x3b, 0x01, 0xd9, 0x17, 0xc0, 0x5a, 0x65, 0x73, 0xfe, 0xf1, 0x21, 0xb6, 0xec, 0xb6,
];

#[tonic::async_trait]
impl Trees for Service {
    type ListTreeStream = Stream<v1::ListTreeResponse>;
    type DiffTreesStream = Stream<v1::DiffTreesResponse>;

    async fn list_tree(
        &self,
        request: Request<v1::ListTreeRequest>,
    ) -> Result<Response<Self::ListTreeStream>, Status> {
        let request = request.into_inner();
        self.heard(Asked::ListTree(request));
        let message = |entries| v1::ListTreeResponse { version: None, entries };
        Ok(answer(vec![
            v1::ListTreeResponse { version: Some(reference("2026.1")), entries: Vec::new() },
            message(vec![entry("", EntryKind::EntryDirectory), file("kept")]),
            message(vec![entry("gone", EntryKind::EntryDirectory), file("gone/inside"), file("other")]),
        ]))
    }

    async fn diff_trees(
        &self,
        request: Request<v1::DiffTreesRequest>,
    ) -> Result<Response<Self::DiffTreesStream>, Status> {
        self.heard(Asked::Diff(request.into_inner()));
        let message = |changes| v1::DiffTreesResponse { from: None, to: None, changes };
        let change = |from, to| v1::TreeChange { from, to, content_differs: false };
        let (old, new) = (entry("a", EntryKind::EntryFile), entry("b\x1b[2J", EntryKind::EntryFile));
        let modes = (entry("d", EntryKind::EntryDirectory), entry("d", EntryKind::EntryDirectory));
        let modes = (modes.0, v1::TreeEntry { mode: 0o700, ..modes.1 });
        let sized = |size| v1::TreeEntry { size, ..entry("d/f", EntryKind::EntryFile) };
        let content = v1::TreeChange { from: Some(sized(12)), to: Some(sized(14)), content_differs: true };
        Ok(answer(vec![
            v1::DiffTreesResponse {
                from: Some(reference("2026.1")),
                to: Some(reference("2026.2")),
                changes: Vec::new(),
            },
            message(vec![change(Some(old), None), change(None, Some(new))]),
            message(vec![change(Some(modes.0), Some(modes.1)), content]),
        ]))
    }
}
