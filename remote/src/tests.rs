//! Clients of every kind against a server with certificates, over loopback; capsuled is a stand-in that says what it was
//! asked.

mod calls;
mod connections;

use std::{
    fs,
    io::{self, Write as _},
    net::SocketAddr,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
    sync::{Arc, Mutex, OnceLock},
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
    capsuled: Option<oneshot::Sender<()>>,
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

/// In a runtime of its own, with which its connections end. It is there while the sender is.
fn serve_capsuled(socket: &Path) -> (oneshot::Sender<()>, Arc<Mutex<Vec<String>>>) {
    _ = fs::remove_file(socket);
    let listener = std::os::unix::net::UnixListener::bind(socket).unwrap();
    listener.set_nonblocking(true).unwrap();
    let stand_in = Capsuled::default();
    let headers = stand_in.headers.clone();
    let (alive, killed) = oneshot::channel::<()>();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let listener = UnixListener::from_std(listener).unwrap();
            let server = tonic::transport::Server::builder()
                .add_service(capsules_server::CapsulesServer::new(stand_in))
                .serve_with_incoming(UnixListenerStream::new(listener));
            tokio::select! {
                served = server => served.unwrap(),
                _ = killed => {}
            }
        });
    });
    (alive, headers)
}

impl Bed {
    async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    async fn start_with(configure: impl FnOnce(&mut Remote)) -> Self {
        log();
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
        Self { folder, remote, authority, address, capsuled: Some(capsuled), headers, stop, served, reload }
    }

    /// The name of a client of this server's: the log is one for all tests.
    fn name(&self, name: &str) -> String {
        format!("{name}.{}", self.address.port())
    }

    fn issue(&self, name: &str, role: Role) -> Issued {
        self.authority.client(&self.name(name), role, Period::lasting(DAY)).unwrap()
    }

    /// Waits for a line about a client of this server's that has all of these words.
    async fn wrote(&self, client: &str, words: &[&str]) {
        let client = format!("client=\"{}\"", self.name(client));
        written(&[&[client.as_str()], words].concat()).await;
    }

    /// A connection of a client with this certificate, which the server has let in.
    async fn connect(&self, own: Option<&Issued>) -> io::Result<(TlsStream<TcpStream>, Vec<u8>)> {
        let mut roots = RootCertStore::empty();
        let ca = self.authority.to_pem().unwrap().certificate;
        roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
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
        self.over(self.connect(Some(own)).await.unwrap()).await
    }

    /// Calls over a connection.
    async fn over(&self, (tls, heard): (TlsStream<TcpStream>, Vec<u8>)) -> Channel {
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
        match self.connect(own).await {
            Err(error) => error.to_string(),
            Ok((_, heard)) => {
                assert!(heard.is_empty(), "let in, and told {heard:?}");
                "hung up".to_owned()
            }
        }
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
        ..Default::default()
    };
    AttachmentsClient::new(channel.clone()).attach(request).await.unwrap_err()
}

async fn pull(channel: &Channel) -> Status {
    let request = v1::PullRequest { reference: "registry.example/tz:1".to_owned(), ..Default::default() };
    TransfersClient::new(channel.clone()).pull(request).await.unwrap_err()
}

/// The log of all tests: tracing knows one subscriber for all threads, or forgets lines of some.
#[derive(Clone)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn log() -> Log {
    static LOG: OnceLock<Log> = OnceLock::new();
    let start = || {
        let log = Log(Arc::default());
        let written = log.clone();
        tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(move || written.clone())
            .with_env_filter(format!("error,{}=info", audit::TARGET))
            .init();
        log
    };
    LOG.get_or_init(start).clone()
}

/// Waits for a line that has all of these words.
async fn written(words: &[&str]) {
    let mut text = String::new();
    for _ in 0..1200 {
        text = String::from_utf8(log().0.lock().unwrap().clone()).unwrap();
        if text.lines().any(|line| words.iter().all(|word| line.contains(word))) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("no line with {words:?}:\n{text}");
}
