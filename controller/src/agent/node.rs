//! This node's capsuled, over its socket.

mod volumes;

use std::{path::PathBuf, time::Duration};

use capsule_proto::capsule::v1::{
    self, AttachmentState, attachments_client::AttachmentsClient, capsules_client::CapsulesClient,
    collector_client::CollectorClient, signatures_client::SignaturesClient, tags_client::TagsClient,
    transfers_client::TransfersClient,
};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint, Uri},
};

use super::{
    devices::Held,
    fetch::{Key, There},
    plan::{Present, Versions},
    signed::Judged,
};
use crate::api::{Assigned, Done, HealthCheck, Mode};

/// Listings of a large node are larger than gRPC's usual 4 MiB.
const MAX_ANSWER: usize = 64 << 20;
/// How long capsuled may take for a call: a shim has half a minute, a check of health one at most.
const DEADLINE: Duration = Duration::from_secs(90);

/// capsuled. The connection is made when it is first needed, and again where it breaks.
#[derive(Debug, Clone)]
pub struct Node {
    channel: Channel,
}

impl Node {
    /// Of this socket.
    pub fn new(socket: PathBuf) -> Self {
        let connector = tower::service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        let endpoint = Endpoint::from_static("http://capsuled").timeout(DEADLINE);
        Self { channel: endpoint.connect_with_connector_lazy(connector) }
    }

    fn attachments(&self) -> AttachmentsClient<Channel> {
        AttachmentsClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER)
    }

    /// What containers of pods have, but for what only drains: capsules, and devices.
    ///
    /// # Errors
    /// capsuled's.
    pub async fn present(&self) -> Result<(Vec<Present>, Vec<Held>), Status> {
        let all =
            self.attachments().list_attachments(v1::ListAttachmentsRequest::default()).await?.into_inner();
        if all.attachments.iter().any(|a| !a.pod.is_empty() && a.pod_uid.is_empty()) {
            return Err(Status::unavailable("capsuled does not know all pods yet"));
        }
        let of_pods = all.attachments.into_iter();
        let of_pods = of_pods.filter(|a| !a.pod_uid.is_empty() && a.state() != AttachmentState::Draining);
        let of_pods: Vec<v1::Attachment> = of_pods.collect();
        let held = |a: &v1::Attachment, device: &String| Held {
            pod: a.pod_uid.clone(),
            container: a.pod_container.clone(),
            device: device.clone(),
        };
        let held = of_pods.iter().flat_map(|a| a.devices.iter().map(move |device| held(a, device))).collect();
        let capsules = of_pods.into_iter().filter(|a| !a.capsule.is_empty());
        let present = capsules
            .map(|a| Present {
                waits: a.state() == AttachmentState::Waiting,
                pod: a.pod_uid,
                container: a.pod_container,
                capsule: a.capsule,
                version: a.version,
                target: a.target,
            })
            .collect();
        Ok((present, held))
    }

    /// What the versions that are asked for stand for here.
    ///
    /// # Errors
    /// capsuled is away.
    pub async fn versions<'a>(
        &self,
        asked: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Versions, Status> {
        let mut versions = Versions::new();
        let mut client = CapsulesClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER);
        for (capsule, version) in asked {
            let key = (capsule.to_owned(), version.to_owned());
            if versions.contains_key(&key) {
                continue;
            }
            let request = v1::InspectCapsuleRequest { name: key.0.clone(), version: key.1.clone() };
            let found = match client.inspect_capsule(request).await {
                Ok(found) => Ok(found.into_inner().version.map(|v| v.version).unwrap_or_default()),
                Err(status) if is_away(&status) => return Err(status),
                Err(status) => Err(status.message().to_owned()),
            };
            versions.insert(key, found);
        }
        Ok(versions)
    }

    /// Attaches; the version and the target that it has.
    ///
    /// # Errors
    /// capsuled's; what it requires may not be used.
    pub async fn attach(&self, wanted: &Assigned, judged: &Judged) -> Result<(String, String), Status> {
        let mode = match wanted.mode {
            None => v1::Mode::Unspecified,
            Some(Mode::Ro) => v1::Mode::Ro,
            Some(Mode::Union) => v1::Mode::Union,
        };
        let resources = wanted.resources.as_ref().map(|resources| v1::Resources {
            grants: resources.grants.clone().into_iter().collect(),
            caps: resources.caps.clone().into_iter().collect(),
        });
        let spec = v1::AttachmentSpec {
            capsule: wanted.capsule.clone(),
            version: wanted.version.clone().unwrap_or_default(),
            target: wanted.target.clone().unwrap_or_default(),
            mode: mode.into(),
            resources,
            ..Default::default()
        };
        let container = container(&wanted.pod.uid, &wanted.container);
        if !judged.is_empty() {
            let request = v1::ResolveRequest { container: container.clone(), specs: vec![spec.clone()] };
            allow(judged, self.attachments().resolve(request).await?.into_inner().planned)?;
        }
        let devices = wanted.devices.clone();
        let request = v1::AttachRequest { container, specs: vec![spec], devices, for_pod: true };
        let made = self.attachments().attach(request).await?.into_inner().attachments;
        let own = made.into_iter().find(|a| a.capsule == wanted.capsule);
        own.map(|a| (a.version, a.target))
            .ok_or_else(|| Status::internal("capsuled does not say what it attached"))
    }

    /// Moves what is there to another version, if what is to succeed then does; that version.
    ///
    /// # Errors
    /// capsuled's.
    pub async fn upgrade(
        &self,
        done: &Done,
        version: &str,
        check: Option<&HealthCheck>,
        judged: &Judged,
    ) -> Result<String, Status> {
        let spec = v1::MoveSpec {
            capsule: done.capsule.clone(),
            version: version.to_owned(),
            target: done.target.clone().unwrap_or_default(),
        };
        let container = container(&done.pod.uid, &done.container);
        let health = check.map(|check| v1::HealthCheck {
            args: check.command.clone(),
            timeout: Some(prost_types::Duration { seconds: check.timeout_seconds.into(), nanos: 0 }),
        });
        let request = v1::UpgradeRequest { container, specs: vec![spec], health, ..Default::default() };
        if !judged.is_empty() {
            let planned = v1::UpgradeRequest { dry_run: true, ..request.clone() };
            allow(judged, self.attachments().upgrade(planned).await?.into_inner().planned)?;
        }
        let moved = self.attachments().upgrade(request).await?.into_inner().attachments;
        let own = moved.into_iter().find(|a| a.capsule == done.capsule);
        own.map(|a| a.version).ok_or_else(|| Status::internal("capsuled does not say what it moved"))
    }

    /// The versions and the tags that it has.
    ///
    /// # Errors
    /// capsuled's.
    pub async fn there(&self) -> Result<There, Status> {
        let mut client = CapsulesClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER);
        let all = client.list_capsules(v1::ListCapsulesRequest::default()).await?.into_inner().versions;
        let mut there = There::default();
        for one in all.into_iter().filter(|one| one.complete) {
            let tags = one.tags.into_iter().map(|tag| ((one.capsule.clone(), tag), one.version.clone()));
            there.tags.extend(tags);
            there.versions.insert((one.capsule, one.version), one.digest);
        }
        Ok(there)
    }

    /// A version's digest, and its signatures.
    ///
    /// # Errors
    /// capsuled's.
    pub async fn signatures(&self, of: &Key) -> Result<(String, Vec<v1::Signature>), Status> {
        let request = v1::ListSignaturesRequest { name: of.0.clone(), version: of.1.clone() };
        let mut client = SignaturesClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER);
        let found = client.list_signatures(request).await?.into_inner();
        Ok((found.version.unwrap_or_default().digest, found.signatures))
    }

    /// Fetches a version, for as long as it takes.
    ///
    /// # Errors
    /// capsuled's.
    pub async fn pull(&self, name: &str, version: &str, reference: &str) -> Result<(), Status> {
        let r#as = Some(v1::As { name: name.to_owned(), version: version.to_owned() });
        let request = v1::PullRequest { reference: reference.to_owned(), r#as, credentials: Vec::new() };
        let mut events = TransfersClient::new(self.channel.clone()).pull(request).await?.into_inner();
        while events.message().await?.is_some() {}
        Ok(())
    }

    /// Lets names stand for a version.
    ///
    /// # Errors
    /// capsuled's.
    pub async fn tag(&self, name: &str, version: &str, tags: &[String]) -> Result<(), Status> {
        let request =
            v1::TagRequest { name: name.to_owned(), version: version.to_owned(), tags: tags.to_vec() };
        TagsClient::new(self.channel.clone()).tag(request).await.map(drop)
    }

    /// Removes a version that nobody needs. That there is none is no error.
    ///
    /// # Errors
    /// capsuled's; somebody needs it.
    pub async fn remove(&self, name: &str, version: &str) -> Result<(), Status> {
        let request = v1::RemoveRequest { name: name.to_owned(), version: version.to_owned() };
        match CollectorClient::new(self.channel.clone()).remove(request).await {
            Err(status) if status.code() == Code::NotFound => Ok(()),
            result => result.map(drop),
        }
    }

    /// Attaches devices alone.
    ///
    /// # Errors
    /// capsuled's.
    pub async fn attach_devices(&self, done: &Done, devices: &[String]) -> Result<(), Status> {
        let container = container(&done.pod.uid, &done.container);
        let request =
            v1::AttachRequest { container, devices: devices.to_vec(), for_pod: true, ..Default::default() };
        self.attachments().attach(request).await.map(drop)
    }

    /// Detaches, whoever uses it: the capsule where that is meant, and devices that came with it.
    ///
    /// # Errors
    /// capsuled's. That there is nothing is none.
    pub async fn detach(&self, done: &Done, capsule: bool, devices: &[String]) -> Result<(), Status> {
        let container = container(&done.pod.uid, &done.container);
        let of_capsule = v1::DetachRequest {
            container: container.clone(),
            capsule: done.capsule.clone(),
            target: done.target.clone().unwrap_or_default(),
            lazy: true,
            ..Default::default()
        };
        // Each by itself: that one is gone keeps none from going.
        let of_devices = devices.iter().map(|device| v1::DetachRequest {
            container: container.clone(),
            devices: vec![device.clone()],
            lazy: true,
            ..Default::default()
        });
        let mut failed = None;
        for request in capsule.then_some(of_capsule).into_iter().chain(of_devices) {
            match self.attachments().detach(request).await {
                Err(status) if status.code() != Code::NotFound => drop(failed.get_or_insert(status)),
                _ => {}
            }
        }
        failed.map_or(Ok(()), Err)
    }
}

/// Whether all that would come may be used: what is required comes along.
fn allow(judged: &Judged, planned: Vec<v1::Planned>) -> Result<(), Status> {
    let mut coming = planned.into_iter().filter(|one| !one.present);
    coming.try_for_each(|one| judged.allow(&(one.capsule, one.version))).map_err(Status::failed_precondition)
}

/// Whether capsuled was not to be had, rather than against it.
pub fn is_away(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled)
}

fn container(pod: &str, name: &str) -> Option<v1::ContainerRef> {
    Some(v1::ContainerRef { id: format!("pod-uid/{pod}/{name}"), namespace: String::new() })
}
