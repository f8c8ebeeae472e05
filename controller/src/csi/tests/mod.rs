//! The driver over a capsuled in memory, by what the specification says of each call.

mod fake;
mod publishing;
mod snapshots;
mod volumes;

use std::collections::HashMap;

use capsule_proto::csi::{
    registration::{InfoRequest, RegistrationStatus, registration_client::RegistrationClient},
    v1::{
        CreateVolumeRequest, CreateVolumeResponse, GetPluginInfoRequest, ProbeRequest, VolumeCapability,
        controller_server::Controller as _,
        identity_client::IdentityClient,
        identity_server::Identity as _,
        volume_capability::{AccessMode, AccessType, MountVolume, access_mode::Mode},
    },
};
use tempfile::TempDir;
use tokio::sync::oneshot;
use tonic::{Code, Request, Response, Status};

use self::fake::Fake;
use super::{Capsuled, Driver, NAME, Settings, Turns, run};
use crate::meters::Meters;

/// A driver of node `n1`, and its capsuled, which has `tz@1` and `tz@2`.
struct World {
    driver: Driver,
    fake: Fake,
    serving: oneshot::Sender<()>,
    _folder: TempDir,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("capsuled.sock");
        let fake = Fake::default();
        fake.publish("tz", "1");
        fake.publish("tz", "2");
        let serving = fake.serve(&socket);
        let driver = Driver {
            capsuled: Capsuled::new(socket),
            node: "n1".to_owned(),
            meters: Meters::new("csi"),
            turns: Turns::default(),
            current: None,
        };
        Self { driver, fake, serving, _folder: folder }
    }

    async fn create(&self, request: CreateVolumeRequest) -> Result<CreateVolumeResponse, Status> {
        self.driver.create_volume(Request::new(request)).await.map(Response::into_inner)
    }

    /// The id of a volume that was made.
    async fn made(&self, request: CreateVolumeRequest) -> String {
        self.create(request).await.unwrap().volume.unwrap().volume_id
    }
}

fn map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn capability(mode: Mode) -> VolumeCapability {
    VolumeCapability {
        access_mode: Some(AccessMode { mode: mode.into() }),
        access_type: Some(AccessType::Mount(MountVolume::default())),
    }
}

fn asked(name: &str, mode: Mode, parameters: &[(&str, &str)]) -> CreateVolumeRequest {
    CreateVolumeRequest {
        name: name.to_owned(),
        volume_capabilities: vec![capability(mode)],
        parameters: map(parameters),
        ..CreateVolumeRequest::default()
    }
}

/// The code of what was refused.
fn refused<T: std::fmt::Debug>(result: Result<T, Status>) -> Code {
    let status = result.unwrap_err();
    assert!(!status.message().is_empty(), "{status}");
    status.code()
}

#[tokio::test]
async fn it_is_ready_while_capsuled_answers() {
    let World { driver, serving, fake: _fake, _folder } = World::new();
    let probe = async || driver.probe(Request::new(ProbeRequest {})).await.unwrap().into_inner().ready;
    assert_eq!(probe().await, Some(true));
    drop(serving);
    while probe().await == Some(true) {
        tokio::task::yield_now().await;
    }
    let status =
        driver.create_volume(Request::new(asked("a", Mode::SingleNodeWriter, &[]))).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("capsuled.sock"), "{status}");
    let text = driver.meters.text().unwrap();
    assert!(
        text.contains("capsule_csi_calls_total{method=\"CreateVolume\",code=\"Unavailable\"} 1"),
        "{text}"
    );
}

/// A client of a socket.
async fn channel(socket: std::path::PathBuf) -> tonic::transport::Channel {
    while !socket.exists() {
        tokio::task::yield_now().await;
    }
    let connector = tower::service_fn(move |_: tonic::transport::Uri| {
        let socket = socket.clone();
        async move { tokio::net::UnixStream::connect(socket).await.map(hyper_util::rt::TokioIo::new) }
    });
    tonic::transport::Endpoint::from_static("http://a").connect_with_connector(connector).await.unwrap()
}

#[tokio::test]
async fn the_kubelet_finds_it_and_what_it_refuses_ends() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let settings = Settings {
        endpoint: std::path::PathBuf::from(format!("unix://{}", at("csi.sock").display())),
        socket: at("capsuled.sock"),
        node: "n1".to_owned(),
        registration: Some((at("reg.sock"), std::path::PathBuf::from("/kubelet/csi.sock"))),
    };
    let running = tokio::spawn(run(settings, None, Meters::new("csi"), std::future::pending()));
    let mut kubelet = RegistrationClient::new(channel(at("reg.sock")).await);
    let info = kubelet.get_info(InfoRequest {}).await.unwrap().into_inner();
    assert_eq!((info.r#type.as_str(), info.name.as_str()), ("CSIPlugin", NAME));
    assert_eq!(
        (info.endpoint.as_str(), &info.supported_versions[..]),
        ("/kubelet/csi.sock", &["1.0.0".to_owned()][..])
    );
    let mut identity = IdentityClient::new(channel(at("csi.sock")).await);
    assert_eq!(identity.get_plugin_info(GetPluginInfoRequest {}).await.unwrap().into_inner().name, NAME);
    let good = RegistrationStatus { plugin_registered: true, error: String::new() };
    kubelet.notify_registration_status(good).await.unwrap();
    assert!(!running.is_finished());
    let bad = RegistrationStatus { plugin_registered: false, error: "no such topology".to_owned() };
    // It may have ended before it has answered.
    let _ = kubelet.notify_registration_status(bad).await;
    drop((kubelet, identity));
    let error = running.await.unwrap().unwrap_err();
    assert!(error.to_string().contains("no such topology"), "{error:#}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "sockets are left");
}

#[tokio::test]
async fn a_node_that_can_be_no_label_is_refused() {
    for node in ["", "-a", &"a".repeat(64), "a b"] {
        let settings = Settings {
            endpoint: "/nowhere/csi.sock".into(),
            socket: "/nowhere/capsuled.sock".into(),
            node: node.to_owned(),
            registration: None,
        };
        let error = run(settings, None, Meters::new("csi"), std::future::pending()).await.unwrap_err();
        assert!(error.to_string().contains("--node"), "{error:#}");
    }
}
