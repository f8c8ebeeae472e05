//! Archives that flow by: where they end, and whether their blobs are what their names say.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures::Stream;
use sha2::{Digest as _, Sha256};

/// Where an archive has its blobs, by digest (OCI image layout, "Blobs").
const BLOBS: &str = "blobs/sha256/";
/// Largest pax header that is read.
const PAX_LIMIT: usize = 1 << 20;

/// What a tar has next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Part<'a> {
    /// A member of this name begins.
    Member(&'a str),
    /// A piece of it.
    Content(&'a [u8]),
    /// It is whole.
    End,
}

/// Follows a tar that flows by (POSIX.1-2024 pax, "ustar Interchange Format"). It ends with two blocks of zeros where a header
/// should be. What is no tar, or a compressed one, has no parts.
#[derive(Debug, Default)]
pub(super) struct Tar {
    header: Vec<u8>,
    /// Bytes of a member still to come, and those that fill its last block.
    content: u64,
    padding: u64,
    /// The member is no file, but says more of the next: its bytes so far.
    pax: Option<Vec<u8>>,
    /// The next member's size, where its header has no room for it (8 GiB and more).
    size: Option<u64>,
    zeros: u8,
    lost: bool,
}

impl Tar {
    const BLOCK: usize = 512;

    /// Its end has flowed by.
    pub(super) fn reached(&self) -> bool {
        self.zeros >= 2
    }

    /// The next piece, of any size.
    pub(super) fn take(&mut self, mut piece: &[u8], mut each: impl FnMut(Part<'_>)) {
        while !piece.is_empty() && !self.reached() && !self.lost {
            if self.content > 0 {
                let (now, rest) = piece.split_at(most(self.content, piece));
                (piece, self.content) = (rest, self.content - now.len() as u64);
                self.content_came(now, &mut each);
            } else if self.padding > 0 {
                let most = most(self.padding, piece);
                (piece, self.padding) = (&piece[most..], self.padding - most as u64);
            } else {
                let (now, rest) = piece.split_at(piece.len().min(Self::BLOCK - self.header.len()));
                self.header.extend_from_slice(now);
                piece = rest;
                if self.header.len() == Self::BLOCK {
                    let header = std::mem::take(&mut self.header);
                    self.begin(&header, &mut each);
                }
            }
        }
    }

    fn content_came(&mut self, now: &[u8], each: &mut impl FnMut(Part<'_>)) {
        match &mut self.pax {
            Some(pax) if pax.len() + now.len() <= PAX_LIMIT => pax.extend_from_slice(now),
            Some(_) => self.lost = true,
            None => each(Part::Content(now)),
        }
        if self.content == 0 {
            match self.pax.take() {
                Some(pax) => self.size = pax_size(&pax),
                None => each(Part::End),
            }
        }
    }

    fn begin(&mut self, header: &[u8], each: &mut impl FnMut(Part<'_>)) {
        if header.iter().all(|byte| *byte == 0) {
            self.zeros += 1;
            return;
        }
        self.zeros = 0;
        if !is_header(header) {
            self.lost = true;
            return;
        }
        let size = self.size.take().unwrap_or_else(|| number(&header[124..136]));
        let block = Self::BLOCK as u64;
        self.content = size;
        self.padding = size.div_ceil(block).saturating_mul(block).saturating_sub(size);
        if header[156] == b'x' {
            self.pax = Some(Vec::new());
            return;
        }
        let name = header[..100].split(|byte| *byte == 0).next().unwrap_or_default();
        each(Part::Member(std::str::from_utf8(name).unwrap_or_default()));
        if size == 0 {
            each(Part::End);
        }
    }
}

fn most(left: u64, piece: &[u8]) -> usize {
    usize::try_from(left).unwrap_or(usize::MAX).min(piece.len())
}

/// Its checksum is the sum of its bytes, with spaces where the checksum is.
fn is_header(header: &[u8]) -> bool {
    let sum: u64 = header.iter().map(|byte| u64::from(*byte)).sum();
    let own: u64 = header[148..156].iter().map(|byte| u64::from(*byte)).sum();
    number(&header[148..156]) == sum - own + 8 * u64::from(b' ')
}

/// Octal digits, or bytes after one with its highest bit set (GNU tar, for 8 GiB and more).
fn number(field: &[u8]) -> u64 {
    if field.first().is_some_and(|first| first & 0x80 != 0) {
        return field[4..].iter().fold(0, |size, byte| (size << 8) | u64::from(*byte));
    }
    let digits = field.iter().filter(|byte| (b'0'..=b'7').contains(*byte));
    digits.fold(0, |size, digit| (size << 3) | u64::from(digit - b'0'))
}

/// The record `size` of a pax header: lines `LENGTH KEY=VALUE`, of which a value may hold line ends.
fn pax_size(mut pax: &[u8]) -> Option<u64> {
    let mut size = None;
    while let Some(space) = pax.iter().position(|byte| *byte == b' ') {
        let length: usize = std::str::from_utf8(&pax[..space]).ok()?.parse().ok()?;
        let record = pax.get(space + 1..length)?;
        if let Some(value) = record.strip_prefix(b"size=") {
            size = std::str::from_utf8(value).ok()?.trim_end().parse().ok();
        }
        pax = &pax[length..];
    }
    size
}

/// A member of an archive whose bytes are not what its name says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AlteredMember {
    /// Its name.
    pub digest: String,
    /// What its bytes have.
    pub found: String,
}

/// An archive that is to be whole: it ends with an error after a blob that is altered. containerd would store that under the
/// digest that it has, and miss the one that it should have.
#[derive(Debug)]
pub struct Watched<S> {
    archive: S,
    tar: Tar,
    /// The digest in the name of the member that flows by, and the sum of its bytes.
    blob: Option<(String, Sha256)>,
    altered: Option<AlteredMember>,
}

impl<S> Watched<S> {
    /// Before anything has flowed.
    pub fn new(archive: S) -> Self {
        Self { archive, tar: Tar::default(), blob: None, altered: None }
    }

    /// The blob that ended it.
    pub fn altered(self) -> Option<AlteredMember> {
        self.altered
    }

    fn watch(&mut self, piece: &[u8]) {
        let Self { tar, blob, altered, .. } = self;
        tar.take(piece, |part| match part {
            Part::Member(name) => *blob = digest_of(name).map(|digest| (digest, Sha256::new())),
            Part::Content(bytes) => {
                if let Some((_, sum)) = blob {
                    sum.update(bytes);
                }
            }
            Part::End => {
                if let Some((digest, sum)) = blob.take() {
                    let found = sha256_text(sum);
                    if found != digest && altered.is_none() {
                        *altered = Some(AlteredMember { digest, found });
                    }
                }
            }
        });
    }
}

impl<S: Stream<Item = Result<Vec<u8>, String>> + Unpin> Stream for Watched<S> {
    type Item = Result<Vec<u8>, String>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let piece = ready!(Pin::new(&mut self.archive).poll_next(context));
        if let Some(Ok(piece)) = &piece {
            self.watch(piece);
        }
        Poll::Ready(match &self.altered {
            Some(AlteredMember { digest, .. }) => Some(Err(format!("blob {digest} is altered"))),
            None => piece,
        })
    }
}

/// The digest that a member is named by.
fn digest_of(name: &str) -> Option<String> {
    let hex = name.trim_start_matches("./").strip_prefix(BLOBS)?;
    let is_digest = hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_digest.then(|| format!("sha256:{hex}"))
}

/// A sum as digests are written.
pub(super) fn sha256_text(sum: Sha256) -> String {
    format!("sha256:{}", crate::hex(&sum.finalize()))
}

#[cfg(test)]
mod tests {
    use futures::{StreamExt, stream};

    use super::*;

    fn tar(members: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, content) in members {
            let mut header = tar::Header::new_ustar();
            header.set_size(content.len() as u64);
            builder.append_data(&mut header, name, *content).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn blob(content: &[u8]) -> String {
        sha256_text(Sha256::new_with_prefix(content)).replacen("sha256:", BLOBS, 1)
    }

    #[test]
    fn a_tar_ends_where_it_ends_however_it_is_cut() {
        let whole = tar(&[("a", &[0_u8; 2048]), ("b", b""), ("c", &[0; 513])]);
        for cut in [1, 7, 511, 512, 513, 4096, whole.len()] {
            let mut end = Tar::default();
            for (index, piece) in whole.chunks(cut).enumerate() {
                assert!(!end.reached() || index * cut >= whole.len(), "{cut}: at {}", index * cut);
                end.take(piece, |_| {});
            }
            assert!(end.reached(), "{cut}");
        }
    }

    #[test]
    fn numbers_are_octal_or_binary() {
        assert_eq!(number(b"00000002000\0"), 1024);
        assert_eq!(number(b"        777 "), 511);
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 1]), (2 << 32) + 1);
    }

    /// As Go's archive/tar writes a member of 8 GiB or more: its header says 0.
    #[test]
    fn a_size_in_a_pax_header_counts() {
        let mut builder = tar::Builder::new(Vec::new());
        builder.append_pax_extensions([("path", &b"x\n"[..]), ("size", &b"3"[..])]).unwrap();
        let mut header = tar::Header::new_ustar();
        header.set_path("large").unwrap();
        header.set_size(0);
        header.set_cksum();
        let mut whole = builder.into_inner().unwrap();
        whole.truncate(1024); // without its end
        whole.extend_from_slice(header.as_bytes());
        whole.extend_from_slice(&[&b"abc"[..], &[0; 509 + 1024]].concat());
        let (mut flow, mut seen) = (Tar::default(), Vec::new());
        flow.take(&whole, |part| seen.push(format!("{part:?}")));
        assert_eq!(seen, ["Member(\"large\")", "Content([97, 98, 99])", "End"]);
        assert!(flow.reached());
    }

    #[tokio::test]
    async fn an_altered_blob_ends_an_archive_and_is_known() {
        let (good, name) = (blob(b"good"), blob(b"wanted"));
        let dotted = format!("./{name}");
        let digest = name.replacen(BLOBS, "sha256:", 1);
        for (members, altered) in [
            (vec![("oci-layout", &b"{}"[..]), (&good, b"good")], None),
            (vec![(&*good, &b"good"[..]), (&*name, b"other")], Some(&digest)),
            (vec![(&*dotted, &b""[..]), (&*good, b"good")], Some(&digest)),
            (vec![("blobs/sha256/short", &b"other"[..])], None),
        ] {
            let whole = tar(&members);
            for cut in [1, 600, whole.len()] {
                let pieces = whole.chunks(cut).map(|piece| Ok(piece.to_vec())).collect::<Vec<_>>();
                let mut watched = Watched::new(stream::iter(pieces));
                let mut failed = false;
                while let Some(piece) = watched.next().await {
                    failed = piece.is_err();
                    if failed {
                        break;
                    }
                }
                let found = watched.altered().map(|member| member.digest);
                assert_eq!((failed, found.as_ref()), (altered.is_some(), altered), "{members:?} {cut}");
            }
        }
    }

    #[tokio::test]
    async fn what_is_no_tar_has_no_altered_blobs() {
        let mut bytes = tar(&[(&blob(b"wanted"), b"other")]);
        bytes[0] ^= 0x40; // the checksum is another now
        let mut watched = Watched::new(stream::iter([Ok(bytes)]));
        assert!(watched.next().await.is_some_and(|piece| piece.is_ok()));
        assert_eq!(watched.altered(), None);
    }
}
