//! A containerd of tests: images, leases, blobs, and a registry, all in memory.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use capsule_proto::containerd::services::{
    content::v1::content_server::ContentServer,
    images::v1::{Image, images_server::ImagesServer},
    leases::v1::{Resource, leases_server::LeasesServer},
    namespaces::v1::namespaces_server::NamespacesServer,
    streaming::v1::streaming_server::StreamingServer,
    transfer::v1::transfer_server::TransferServer,
};
use futures::Stream;
use sha2::{Digest as _, Sha256};
use tokio::{net::UnixListener, sync::oneshot};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Status, transport::Server};

use super::Containerd;
use crate::capsules::{model::Digest, oci};

mod blobs;
mod moves;
mod records;

type Flow<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[derive(Default)]
struct State {
    images: BTreeMap<String, Image>,
    leases: BTreeMap<String, Vec<Resource>>,
    blobs: HashMap<String, Vec<u8>>,
    clock: i64,
    /// Reference → digest.
    registry: BTreeMap<String, String>,
    /// What was written, in order: `push REFERENCE`, `create NAME`, `update NAME`, `delete NAME`.
    done: Vec<String>,
    /// One of these that fails.
    failing: Option<String>,
    /// One of these that tells that it has come, and waits.
    gate: Option<(String, oneshot::Sender<()>, oneshot::Receiver<()>)>,
}

/// Cheap to clone, shared.
#[derive(Clone, Default)]
pub(crate) struct Fake(Arc<Mutex<State>>);

impl Fake {
    /// Serves on a socket in `dir`.
    pub(crate) fn start(dir: &Path) -> (Self, Containerd) {
        let (fake, socket) = (Self::default(), dir.join("containerd.sock"));
        let incoming = UnixListenerStream::new(UnixListener::bind(&socket).unwrap());
        let server = Server::builder()
            .add_service(ImagesServer::new(fake.clone()))
            .add_service(LeasesServer::new(fake.clone()))
            .add_service(NamespacesServer::new(fake.clone()))
            .add_service(ContentServer::new(fake.clone()))
            .add_service(TransferServer::new(fake.clone()))
            .add_service(StreamingServer::new(fake.clone()));
        tokio::spawn(server.serve_with_incoming(incoming));
        (fake, Containerd::new(&socket))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A version of nothing but its name, published.
    pub(crate) fn publish(&self, name: &str, version: &str, requires: &[&str]) -> Digest {
        let digest = self.blob_of_version(name, version, requires);
        self.put_image(
            &format!("localhost/capsules/{name}:{version}"),
            &digest,
            &[(oci::NAME, name), (oci::VERSION, version)],
        );
        digest
    }

    /// Its manifest, and what that names.
    pub(crate) fn blob_of_version(&self, name: &str, version: &str, requires: &[&str]) -> Digest {
        let layer = format!("layer of {name}@{version}").into_bytes();
        let size = layer.len();
        let layer = self.put_blob(layer);
        let config = serde_json::json!({"rootfs": {"type": "layers", "diff_ids": [layer]}}).to_string();
        let (config_size, config) = (config.len(), self.put_blob(config.into_bytes()));
        let requires = serde_json::to_string(requires).unwrap();
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": oci::MANIFEST,
            "config": {"mediaType": oci::CONFIG, "digest": config, "size": config_size},
            "layers": [{"mediaType": oci::LAYER_TAR, "digest": layer, "size": size}],
            "annotations": {
                oci::NAME: name, oci::VERSION: version, "resourcecapsules.io/requires": requires,
            },
        });
        self.put_blob(manifest.to_string().into_bytes())
    }

    pub(crate) fn put_blob(&self, bytes: Vec<u8>) -> Digest {
        let digest = Digest::from_sha256(&Sha256::digest(&bytes));
        self.state().blobs.insert(digest.to_string(), bytes);
        digest
    }

    pub(crate) fn put_image(&self, name: &str, digest: &Digest, labels: &[(&str, &str)]) {
        let target = capsule_proto::containerd::types::Descriptor {
            media_type: oci::MANIFEST.to_owned(),
            digest: digest.to_string(),
            size: 1,
            ..Default::default()
        };
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let mut state = self.state();
        // Each is younger than the one before.
        state.clock += 1;
        let created_at = Some(prost_types::Timestamp { seconds: state.clock, nanos: 0 });
        let image =
            Image { name: name.to_owned(), labels, target: Some(target), created_at, ..Default::default() };
        state.images.insert(name.to_owned(), image);
    }

    /// The names of all images, without their repository.
    pub(crate) fn images(&self) -> Vec<String> {
        let state = self.state();
        state.images.keys().map(|name| name.trim_start_matches("localhost/capsules/").to_owned()).collect()
    }

    pub(crate) fn labels(&self, image: &str) -> Option<HashMap<String, String>> {
        self.state().images.get(image).map(|image| image.labels.clone())
    }

    pub(crate) fn leases(&self) -> Vec<String> {
        self.state().leases.keys().cloned().collect()
    }

    pub(crate) fn lease(&self, id: &str, kind: &str, resource: &str) {
        let resource = Resource { id: resource.to_owned(), r#type: kind.to_owned() };
        self.state().leases.entry(id.to_owned()).or_default().push(resource);
    }

    /// Puts what is under a reference of the registry.
    pub(crate) fn put_remote(&self, reference: &str, digest: &Digest) {
        self.state().registry.insert(reference.to_owned(), digest.to_string());
    }

    pub(crate) fn remote(&self, reference: &str) -> Option<String> {
        self.state().registry.get(reference).cloned()
    }

    /// Lets a call fail from now on: see [`State::done`] for how it is named.
    pub(crate) fn fail(&self, call: &str) {
        self.state().failing = Some(call.to_owned());
    }

    /// What was changed since this was asked last.
    pub(crate) fn done(&self) -> Vec<String> {
        std::mem::take(&mut self.state().done)
    }

    /// The next call that is named so tells that it has come, and waits.
    pub(crate) fn gate(&self, call: &str) -> (oneshot::Receiver<()>, oneshot::Sender<()>) {
        let (come, has_come) = oneshot::channel();
        let (go, may_go) = oneshot::channel();
        self.state().gate = Some((call.to_owned(), come, may_go));
        (has_come, go)
    }

    async fn about_to(&self, call: String) -> Result<(), Status> {
        let gate = {
            let mut state = self.state();
            if state.failing.as_ref() == Some(&call) {
                return Err(Status::unknown("it was told to fail"));
            }
            state.done.push(call.clone());
            if state.gate.as_ref().is_some_and(|(gated, ..)| *gated == call) {
                state.gate.take()
            } else {
                None
            }
        };
        if let Some((_, come, may_go)) = gate {
            come.send(()).ok();
            may_go.await.ok();
        }
        Ok(())
    }
}
