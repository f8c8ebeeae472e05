//! Clients of every kind against a server with certificates, over loopback; capsuled is a stand-in that says what it was
//! asked.

use std::{
    fs,
    io::{self, Write as _},
    net::SocketAddr,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use capsule_certificates::{Authority, Issued, Period, Role};
use capsule_proto::capsule::v1::{
    self, attachments_client::AttachmentsClient, capsules_client::CapsulesClient, capsules_server,
    events_client::EventsClient, transfers_client::TransfersClient,
};
use capsuled::config::{Config, Remote};
use hyper_util::rt::TokioIo;
use prost::Message as _;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use tokio::{
    io::AsyncReadExt as _,
    net::{TcpStream, UnixListener},
    sync::{mpsc, oneshot},
    task::JoinHandle,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{
    Code, Request, Response, Status,
    transport::{Channel, Endpoint, Uri},
};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

use crate::{audit, server::Server, tls::Material};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// Says that it was asked, and with what beside the message.
#[derive(Debug, Default)]
struct Capsuled {
    headers: Arc<Mutex<Vec<String>>>,
}

#[tonic::async_trait]
impl capsules_server::Capsules for Capsuled {
    async fn build(
        &self,
        request: Request<tonic::Streaming<v1::BuildRequest>>,
    ) -> Result<Response<v1::BuildResponse>, Status> {
        let (mut parts, mut bytes) = (request.into_inner(), 0);
        while let Some(part) = parts.message().await? {
            if let Some(v1::build_request::Part::Tar(tar)) = part.part {
                bytes += tar.len();
            }
        }
        let version = v1::Version { size: bytes as u64, ..Default::default() };
        Ok(Response::new(v1::BuildResponse { version: Some(version), existed: false }))
    }

    async fn list_capsules(
        &self,
        request: Request<v1::ListCapsulesRequest>,
    ) -> Result<Response<v1::ListCapsulesResponse>, Status> {
        let names = request.metadata().keys().map(|key| format!("{key:?}"));
        self.headers.lock().unwrap().extend(names);
        let version = v1::Version { capsule: request.into_inner().name, ..Default::default() };
        Ok(Response::new(v1::ListCapsulesResponse { versions: vec![version] }))
    }

    async fn inspect_capsule(
        &self,
        _: Request<v1::InspectCapsuleRequest>,
    ) -> Result<Response<v1::InspectCapsuleResponse>, Status> {
        Err(Status::not_found("no capsule `x`"))
    }
}

/// A server with its files, its stand-in and an authority.
struct Bed {
    folder: tempfile::TempDir,
    remote: Remote,
    authority: Authority,
    address: SocketAddr,
    capsuled: JoinHandle<()>,
    headers: Arc<Mutex<Vec<String>>>,
    stop: Option<oneshot::Sender<()>>,
    served: Option<JoinHandle<()>>,
    reload: mpsc::Sender<()>,
}

fn put(path: &Path, text: &str) {
    _ = fs::remove_file(path);
    let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    file.unwrap().write_all(text.as_bytes()).unwrap();
}

fn files(folder: &Path, authority: &Authority, period: Period) -> Remote {
    let server = authority.server(&["127.0.0.1".parse().unwrap()], period).unwrap();
    let at = |name: &str| folder.join(name);
    let remote = Remote {
        certificate: at("server.pem"),
        key: at("server.key"),
        client_ca: at("ca.pem"),
        ..Config::default().remote
    };
    put(&remote.key, &server.key);
    put(&remote.certificate, &server.certificate);
    put(&remote.client_ca, &authority.to_pem().unwrap().certificate);
    remote
}

fn serve_capsuled(socket: &PathBuf) -> (JoinHandle<()>, Arc<Mutex<Vec<String>>>) {
    _ = fs::remove_file(socket);
    let listener = UnixListener::bind(socket).unwrap();
    let stand_in = Capsuled::default();
    let headers = stand_in.headers.clone();
    let served = tokio::spawn(async move {
        let server = tonic::transport::Server::builder()
            .add_service(capsules_server::CapsulesServer::new(stand_in))
            .serve_with_incoming(UnixListenerStream::new(listener));
        server.await.unwrap();
    });
    (served, headers)
}

impl Bed {
    async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    async fn start_with(configure: impl FnOnce(&mut Remote)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::new(Period::lasting(DAY * 100)).unwrap();
        let mut remote = files(folder.path(), &authority, Period::lasting(DAY * 50));
        configure(&mut remote);
        let socket = folder.path().join("capsuled.sock");
        let (capsuled, headers) = serve_capsuled(&socket);
        let local = "127.0.0.1:0".parse().unwrap();
        let server = Server::bind(local, remote.clone(), socket).await.unwrap();
        let address = server.address().unwrap();
        let (stop, stopped) = oneshot::channel();
        let (reload, reloads) = mpsc::channel(1);
        let served = tokio::spawn(server.serve(async move { _ = stopped.await }, reloads));
        let (stop, served) = (Some(stop), Some(served));
        Self { folder, remote, authority, address, capsuled, headers, stop, served, reload }
    }

    fn issue(&self, name: &str, role: Role) -> Issued {
        self.authority.client(name, role, Period::lasting(DAY)).unwrap()
    }

    /// A connection of a client with this certificate, which the server has let in.
    async fn connect(&self, own: Option<&Issued>) -> io::Result<(TlsStream<TcpStream>, Vec<u8>)> {
        let mut roots = RootCertStore::empty();
        let ca = self.authority.to_pem().unwrap().certificate;
        roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap()).unwrap();
        let builder =
            ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(roots);
        let mut config = match own {
            None => builder.with_no_client_auth(),
            Some(Issued { certificate, key }) => {
                let chain = CertificateDer::pem_slice_iter(certificate.as_bytes()).map(Result::unwrap);
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
                builder.with_client_auth_cert(chain.collect(), key).unwrap()
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        let tcp = TcpStream::connect(self.address).await?;
        let name = ServerName::from(self.address.ip());
        let mut tls = TlsConnector::from(Arc::new(config)).connect(name, tcp).await?;
        let mut heard = vec![0; 1024];
        let count = tls.read(&mut heard).await?;
        heard.truncate(count);
        Ok((tls, heard))
    }

    async fn channel(&self, own: &Issued) -> Channel {
        let (tls, heard) = self.connect(Some(own)).await.unwrap();
        let (rest, write) = tokio::io::split(tls);
        let stream = tokio::io::join(io::Cursor::new(heard).chain(rest), write);
        let stream = Mutex::new(Some(TokioIo::new(stream)));
        let connector = tower::service_fn(move |_: Uri| {
            let stream = stream.lock().unwrap().take();
            async move { stream.ok_or(io::Error::from(io::ErrorKind::ConnectionReset)) }
        });
        Endpoint::from_static("http://node").connect_with_connector(connector).await.unwrap()
    }

    async fn client(&self, role: Role) -> Channel {
        self.channel(&self.issue(role.name(), role)).await
    }

    async fn refusal(&self, own: Option<&Issued>) -> String {
        let refused = self.connect(own).await;
        let (_, heard) = match refused {
            Err(error) => return error.to_string(),
            Ok(connected) => connected,
        };
        assert!(heard.is_empty(), "let in, and told {heard:?}");
        "hung up".to_owned()
    }

    async fn stop(mut self) {
        self.stop.take().unwrap().send(()).unwrap();
        self.served.take().unwrap().await.unwrap();
    }
}

async fn list(channel: &Channel, name: &str) -> Result<String, Status> {
    let request = v1::ListCapsulesRequest { name: name.to_owned() };
    let answer = CapsulesClient::new(channel.clone()).list_capsules(request).await?.into_inner();
    Ok(answer.versions.into_iter().next().unwrap().capsule)
}

async fn attach(channel: &Channel, devices: &[&str]) -> Status {
    let request = v1::AttachRequest {
        container: Some(v1::ContainerRef { id: "web".to_owned(), namespace: String::new() }),
        devices: devices.iter().map(|&device| device.to_owned()).collect(),
        specs: vec![v1::AttachmentSpec { capsule: "tz".to_owned(), ..Default::default() }],
    };
    AttachmentsClient::new(channel.clone()).attach(request).await.unwrap_err()
}

async fn pull(channel: &Channel) -> Status {
    let request = v1::PullRequest { reference: "registry.example/tz:1".to_owned(), ..Default::default() };
    TransfersClient::new(channel.clone()).pull(request).await.unwrap_err()
}

/// What the lines of the audit log say, while this test has the thread.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Lines {
    /// Of everything on this thread from now on; a test's runtime has no other.
    fn listen() -> (Self, tracing::subscriber::DefaultGuard) {
        let lines = Self::default();
        let written = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(move || written.clone())
            .with_env_filter(format!("error,{}=info", audit::TARGET))
            .finish();
        (lines, tracing::subscriber::set_default(subscriber))
    }

    /// Waits for a line that has all of these words.
    async fn have(&self, words: &[&str]) {
        let has = || {
            let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
            let found = text.lines().any(|line| words.iter().all(|word| line.contains(word)));
            (found, text)
        };
        for _ in 0..600 {
            if has().0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("no line with {words:?}:\n{}", has().1);
    }
}

#[tokio::test]
async fn who_has_no_good_certificate_is_told_nothing_and_written_down() {
    let (lines, _guard) = Lines::listen();
    let bed = Bed::start().await;
    let now = SystemTime::now();
    let issue = |from, until| bed.authority.client("a", Role::Admin, Period { from, until }).unwrap();
    let other = Authority::new(Period::lasting(DAY)).unwrap();
    let stranger = other.client("a", Role::Admin, Period::lasting(DAY / 2)).unwrap();
    let server = bed.authority.server(&["127.0.0.1".parse().unwrap()], Period::lasting(DAY)).unwrap();
    for (own, told, written) in [
        (None, "CertificateRequired", "peer sent no certificates"),
        (Some(issue(now - DAY * 2, now - DAY)), "CertificateExpired", "certificate expired"),
        (Some(issue(now + DAY, now + DAY * 2)), "CertificateExpired", "not valid yet"),
        (Some(stranger), "UnknownCA", "UnknownIssuer"),
        // What a server shows to clients opens no door.
        (Some(server), "UnsupportedCertificate", "InvalidPurpose"),
    ] {
        let refusal = bed.refusal(own.as_ref()).await;
        assert!(refusal.contains(told), "{told}: {refusal}");
        lines.have(&["audit", "refused", "peer=127.0.0.1:", written]).await;
    }
    // Without TLS there is no answer at all.
    let mut plain = TcpStream::connect(bed.address).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut plain, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    let mut heard = Vec::new();
    _ = plain.read_to_end(&mut heard).await;
    assert!(heard.len() <= 7, "an alert of TLS at most: {heard:?}"); // RFC 8446, section 6: 5 bytes and 2
    lines.have(&["audit", "refused", "corrupt message"]).await;
    // Nobody of them was heard of by capsuled.
    assert!(bed.headers.lock().unwrap().is_empty());
    bed.stop().await;
}

#[tokio::test]
async fn each_role_may_call_what_it_may() {
    let (lines, _guard) = Lines::listen();
    let bed = Bed::start().await;
    // The stand-in serves Capsules alone: what is let through to another service is unimplemented there.
    let (refused, passed) = (Code::PermissionDenied, Code::Unimplemented);
    for (role, attaches, with_device, pulls) in [
        (Role::Viewer, refused, refused, refused),
        (Role::Operator, passed, refused, refused),
        (Role::Admin, passed, passed, passed),
    ] {
        let channel = bed.client(role).await;
        assert_eq!(list(&channel, "tz").await.unwrap(), "tz");
        let (attached, device, pulled) =
            (attach(&channel, &[]).await, attach(&channel, &["v/c=0"]).await, pull(&channel).await);
        assert_eq!([attached.code(), device.code(), pulled.code()], [attaches, with_device, pulls], "{role}");
        let client = format!("client=\"{role}\"");
        lines.have(&[&client, "ListCapsules", "object=\"tz\"", "outcome=\"OK\""]).await;
        let outcome = format!("outcome=\"{pulls:?}\"");
        lines.have(&[&client, "Transfers/Pull", "registry.example/tz:1", &outcome]).await;
        if pulls == refused {
            assert!(pulled.message().contains("this call needs admin"), "{pulled}");
        } else {
            lines.have(&[&client, "Transfers/Pull", "outcome=\"begun\""]).await;
        }
    }
    lines.have(&["Attachments/Attach", "object=\"web tz v/c=0\"", "role=\"operator\"", "needs admin"]).await;
    bed.stop().await;
}

#[tokio::test]
async fn what_is_passed_on_is_the_call_and_nothing_beside_it() {
    let (lines, _guard) = Lines::listen();
    let bed = Bed::start().await;
    let channel = bed.client(Role::Admin).await;
    let mut request = Request::new(v1::ListCapsulesRequest { name: "tz".to_owned() });
    request.metadata_mut().insert("containerd-namespace", "moby".parse().unwrap());
    request.metadata_mut().insert("traceparent", "00-1-2-01".parse().unwrap());
    let mut client = CapsulesClient::new(channel.clone());
    client.list_capsules(request).await.unwrap();
    let headers = bed.headers.lock().unwrap().join(" ");
    assert!(headers.contains("traceparent") && !headers.contains("containerd"), "{headers}");
    // An error comes back as it is, with what it is about.
    let request = v1::InspectCapsuleRequest { name: "x".to_owned(), version: "1".to_owned() };
    let error = client.inspect_capsule(request).await.unwrap_err();
    assert_eq!((error.code(), error.message()), (Code::NotFound, "no capsule `x`"));
    lines.have(&["InspectCapsule", "object=\"x@1\"", "outcome=\"NotFound\""]).await;
    // A stream, of which the first message is looked at.
    let header = v1::BuildHeader { name: "big".to_owned(), version: "1".to_owned(), ..Default::default() };
    let first = v1::BuildRequest { part: Some(v1::build_request::Part::Header(header)) };
    let tar = v1::BuildRequest { part: Some(v1::build_request::Part::Tar(vec![7; 1 << 20])) };
    let parts = std::iter::once(first).chain(std::iter::repeat_n(tar, 20));
    let answer = client.build(tokio_stream::iter(parts)).await.unwrap().into_inner();
    assert_eq!(answer.version.unwrap().size, 20 << 20);
    lines.have(&["Capsules/Build", "object=\"big@1\"", "outcome=\"begun\""]).await;
    lines.have(&["Capsules/Build", "object=\"big@1\"", "outcome=\"OK\""]).await;
    bed.stop().await;
}

#[tokio::test]
async fn what_is_not_for_clients_elsewhere_is_not_there() {
    let (lines, _guard) = Lines::listen();
    let bed = Bed::start().await;
    let channel = bed.client(Role::Admin).await;
    let request = capsule_proto::containerd::services::snapshots::v1::ListSnapshotsRequest::default();
    let mut snapshots =
        capsule_proto::containerd::services::snapshots::v1::snapshots_client::SnapshotsClient::new(channel);
    let error = snapshots.list(request).await.unwrap_err();
    assert_eq!(error.code(), Code::Unimplemented);
    lines.have(&["Snapshots/List", "outcome=\"Unimplemented\"", "no such call"]).await;
    bed.stop().await;
}

#[tokio::test]
async fn who_was_let_in_is_told_what_there_is() {
    let bed = Bed::start().await;
    let mut reflection = ServerReflectionClient::new(bed.client(Role::Viewer).await);
    let ask = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut answers =
        reflection.server_reflection_info(tokio_stream::iter([ask])).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().unwrap().message_response;
    let Some(MessageResponse::ListServicesResponse(services)) = answer else { panic!("{answer:?}") };
    let names: Vec<_> = services.service.into_iter().map(|service| service.name).collect();
    for name in ["capsule.v1.Attachments", "grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection"] {
        assert!(names.iter().any(|known| known == name), "{names:?}");
    }
    assert!(!names.iter().any(|name| name.contains("containerd") || name.contains("node")), "{names:?}");
    bed.stop().await;
}

#[tokio::test]
async fn too_many_calls_are_refused_with_when_to_come_again() {
    let (lines, _guard) = Lines::listen();
    let bed = Bed::start_with(|remote| (remote.calls_per_second, remote.burst) = (1, 3)).await;
    let channel = bed.client(Role::Viewer).await;
    let mut refused = None;
    for _ in 0..10 {
        if let Err(status) = list(&channel, "tz").await {
            refused = Some(status);
            break;
        }
    }
    let status = refused.expect("ten calls at once are too many");
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.message().contains("more than 1 calls a second, after 3 at once"), "{status}");
    let pushback = status.metadata().get("grpc-retry-pushback-ms").unwrap().to_str().unwrap();
    assert!((1..=1000).contains(&pushback.parse::<u64>().unwrap()), "{pushback}");
    let details = capsule_proto::google::rpc::Status::decode(status.details()).unwrap().details;
    assert_eq!(details[0].type_url, "type.googleapis.com/google.rpc.RetryInfo");
    lines.have(&["outcome=\"ResourceExhausted\"", "client=\"viewer\""]).await;
    // Another client is not held up.
    list(&bed.client(Role::Admin).await, "tz").await.unwrap();
    bed.stop().await;
}

#[tokio::test]
async fn connections_of_one_client_are_counted() {
    let bed = Bed::start_with(|remote| remote.connections = 4).await;
    let own = bed.issue("greedy", Role::Viewer);
    let first = bed.channel(&own).await;
    list(&first, "tz").await.unwrap();
    assert_eq!(bed.refusal(Some(&own)).await.contains("CertificateRequired"), false);
    list(&bed.client(Role::Operator).await, "tz").await.unwrap();
    list(&first, "tz").await.unwrap();
    bed.stop().await;
}

#[tokio::test]
async fn capsuled_may_go_and_come_again() {
    let bed = Bed::start().await;
    let channel = bed.client(Role::Viewer).await;
    list(&channel, "tz").await.unwrap();
    bed.capsuled.abort();
    let socket = bed.folder.path().join("capsuled.sock");
    fs::remove_file(&socket).unwrap();
    let mut last = Ok(String::new());
    for _ in 0..600 {
        last = list(&channel, "tz").await;
        if last.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let status = last.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    assert!(status.message().contains("capsuled"), "{status}");
    let (_capsuled, _) = serve_capsuled(&socket);
    list(&channel, "tz").await.unwrap();
    bed.stop().await;
}

#[tokio::test]
async fn renewed_certificates_are_used_and_other_authorities_end_connections() {
    let bed = Bed::start().await;
    let own = bed.issue("a", Role::Viewer);
    let before = bed.connect(Some(&own)).await.unwrap().0;
    let shown = |tls: &TlsStream<TcpStream>| tls.get_ref().1.peer_certificates().unwrap()[0].to_vec();
    let channel = bed.channel(&own).await;
    // Only one of the two files is new: they are no pair, and those from before are used.
    let renewed = bed.authority.server(&["127.0.0.1".parse().unwrap()], Period::lasting(DAY)).unwrap();
    put(&bed.remote.key, &renewed.key);
    assert_eq!(shown(&bed.connect(Some(&own)).await.unwrap().0), shown(&before));
    put(&bed.remote.certificate, &renewed.certificate);
    let after = bed.connect(Some(&own)).await.unwrap().0;
    assert_ne!(shown(&after), shown(&before));
    // Connections from before go on.
    list(&channel, "tz").await.unwrap();
    let other = Authority::new(Period::lasting(DAY)).unwrap();
    put(&bed.remote.client_ca, &other.to_pem().unwrap().certificate);
    bed.reload.send(()).await.unwrap();
    let refusal = bed.refusal(Some(&own)).await;
    assert!(refusal.contains("UnknownCA"), "{refusal}");
    let mut ended = false;
    for _ in 0..600 {
        ended = list(&channel, "tz").await.is_err();
        if ended {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(ended, "a connection by an authority that is believed no more goes on");
    bed.stop().await;
}

#[tokio::test]
async fn who_is_let_in_is_not_for_longer_than_the_certificate() {
    let bed = Bed::start().await;
    let now = SystemTime::now();
    let period = Period { from: now - DAY, until: now + Duration::from_secs(4) };
    let channel = bed.channel(&bed.authority.client("short", Role::Viewer, period).unwrap()).await;
    let mut last = Ok(String::new());
    for _ in 0..600 {
        last = list(&channel, "tz").await;
        if last.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(last.unwrap_err().code(), Code::Unauthenticated);
    bed.stop().await;
}

#[tokio::test]
async fn a_call_that_is_given_up_is_written_down() {
    let (lines, _guard) = Lines::listen();
    let bed = Bed::start().await;
    let channel = bed.client(Role::Admin).await;
    let header = v1::BuildHeader { name: "late".to_owned(), version: "1".to_owned(), ..Default::default() };
    let first = v1::BuildRequest { part: Some(v1::build_request::Part::Header(header)) };
    let (sender, parts) = mpsc::channel(1);
    sender.send(first).await.unwrap();
    let mut client = CapsulesClient::new(channel);
    let call = tokio::spawn(async move {
        client.build(tokio_stream::wrappers::ReceiverStream::new(parts)).await.map(drop)
    });
    lines.have(&["Capsules/Build", "late@1", "outcome=\"begun\""]).await;
    call.abort();
    drop(sender);
    lines.have(&["Capsules/Build", "late@1", "outcome=\"Cancelled\""]).await;
    bed.stop().await;
}

#[tokio::test]
async fn following_is_for_viewers_and_written_down_when_it_begins() {
    let (lines, _guard) = Lines::listen();
    let bed = Bed::start().await;
    let channel = bed.client(Role::Viewer).await;
    let error = EventsClient::new(channel).watch(v1::WatchRequest::default()).await.unwrap_err();
    assert_eq!(error.code(), Code::Unimplemented); // the stand-in's
    lines.have(&["Events/Watch", "outcome=\"begun\""]).await;
    bed.stop().await;
}

#[test]
fn files_that_cannot_be_used_are_named_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(Period::lasting(DAY * 100)).unwrap();
    let fresh = || files(folder.path(), &authority, Period::lasting(DAY));
    Material::load(&fresh()).unwrap();
    let told = |remote: &Remote| {
        let error = Material::load(remote).unwrap_err();
        std::iter::successors(Some(&error as &dyn std::error::Error), |e| e.source())
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(": ")
    };
    let remote = fresh();
    fs::set_permissions(&remote.key, fs::Permissions::from_mode(0o640)).unwrap();
    let exposed = told(&remote);
    assert!(exposed.contains("server.key (mode 0640)") && exposed.contains("chmod 600"), "{exposed}");
    let other = authority.client("a", Role::Viewer, Period::lasting(DAY)).unwrap();
    for (which, text, words) in [
        ("server.key", other.key.as_str(), ["server.pem", "server.key"]),
        ("server.key", "", ["server.key", "no private key"]),
        ("server.pem", "x", ["server.pem", "no readable certificate"]),
        ("ca.pem", "", ["ca.pem", "no readable certificate"]),
        ("ca.pem", other.certificate.as_str(), ["ca.pem", "no authority's"]),
    ] {
        let remote = fresh();
        put(&folder.path().join(which), text);
        let told = told(&remote);
        assert!(words.iter().all(|word| told.contains(word)), "{which}: {told}");
    }
    let remote = fresh();
    fs::remove_file(&remote.client_ca).unwrap();
    assert!(told(&remote).contains("No such file"), "{}", told(&remote));
    // A server's certificate that has ended is not refused here: the node is not to lose its API for it.
    let now = SystemTime::now();
    Material::load(&files(folder.path(), &authority, Period { from: now - DAY * 2, until: now - DAY })).unwrap();
}
