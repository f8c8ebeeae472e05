//! Connections: accepted, asked for a certificate, served, and ended.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    path::PathBuf,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use capsule_proto::capsule::v1;
use capsuled::config::Remote;
use hyper::{server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tonic::service::Routes;

use crate::{
    audit::{Peer, Refusals},
    clients::{Clients, Limits},
    service::Calls,
    tls::{self, Material, MaterialError, Stamp},
    upstream::Upstream,
};

/// How long strangers may take to say who they are.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How many may be at it at once. Others wait in the kernel's queue.
const HANDSHAKES: usize = 128;
/// How long calls under way may take at the end.
const DRAIN: Duration = Duration::from_secs(5);
/// How often the files of certificates are looked at, beside each new connection.
const LOOK: Duration = Duration::from_secs(30);
/// A certificate that ends sooner is warned of, once a day.
const SOON: Duration = Duration::from_secs(14 * 24 * 3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
/// Calls of one connection at once.
const STREAMS: u32 = 64;
/// Who does not answer for so long has gone.
const ALIVE: Duration = Duration::from_secs(20);
/// Bytes of what a client says beside a call.
const HEADERS: u32 = 16 << 10;

/// Serves until it is told to stop.
pub struct Server {
    listener: TcpListener,
    remote: Remote,
    socket: Arc<PathBuf>,
    material: Material,
    stamp: Stamp,
    warned: Option<Instant>,
    clients: Clients,
    room: Arc<Semaphore>,
    handshakes: Arc<Semaphore>,
    refusals: Arc<Refusals>,
    reflection: Routes,
    /// Set to end all connections: when the process is to end, and when other authorities are believed.
    end: watch::Sender<bool>,
}

/// Why it does not serve.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The address cannot be had.
    #[error("listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Certificates cannot be used.
    #[error(transparent)]
    Material(#[from] MaterialError),
    /// The API's description cannot be read.
    #[error("describe the API: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

impl Server {
    /// Listens on `address`, and asks capsuled at `socket`.
    ///
    /// # Errors
    /// [`ServerError`].
    pub async fn bind(address: SocketAddr, remote: Remote, socket: PathBuf) -> Result<Self, ServerError> {
        let stamp = Stamp::of(&remote); // before they are read: what changes meanwhile is read again
        let material = Material::load(&remote)?;
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(v1::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1()?;
        let listener =
            TcpListener::bind(address).await.map_err(|source| ServerError::Listen { address, source })?;
        let limits = Limits { per_second: remote.calls_per_second, burst: remote.burst };
        let connections = usize::from(remote.connections);
        let server = Self {
            listener,
            socket: Arc::new(socket),
            material,
            stamp,
            warned: None,
            clients: Clients::new(limits, connections.div_ceil(4)),
            room: Arc::new(Semaphore::new(connections)),
            handshakes: Arc::new(Semaphore::new(HANDSHAKES)),
            refusals: Arc::default(),
            reflection: Routes::new(reflection),
            end: watch::Sender::new(false),
            remote,
        };
        Ok(server)
    }

    /// Where it listens.
    ///
    /// # Errors
    /// The kernel's.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop`. Each time `reload` gives something, the files of certificates are read again; so they are when
    /// they have changed.
    pub async fn serve(
        mut self,
        stop: impl Future<Output = ()>,
        mut reload: tokio::sync::mpsc::Receiver<()>,
    ) {
        let mut connections = JoinSet::new();
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut stop = pin!(stop);
        loop {
            let handshakes = self.handshakes.clone();
            let accepted = async {
                // Closed never: it is not held elsewhere.
                let turn = handshakes.acquire_owned().await;
                (turn, self.listener.accept().await)
            };
            tokio::select! {
                () = &mut stop => break,
                Some(()) = reload.recv() => self.reload(),
                _ = look.tick() => self.look(),
                Some(_) = connections.join_next() => {}
                (turn, accepted) = accepted => match accepted {
                    Ok((stream, address)) => {
                        self.look();
                        let connection = self.connection(address);
                        connections.spawn(async move { connection.run(stream, turn).await });
                    }
                    // Of the connection (it went away), or of descriptors: there are some again in a while.
                    Err(error) => {
                        tracing::warn!(%error, "a connection could not be accepted");
                        sleep(Duration::from_millis(50)).await;
                    }
                }
            }
        }
        drop(self.listener);
        self.end.send_replace(true);
        let ended = timeout(DRAIN * 2, async { while connections.join_next().await.is_some() {} });
        if ended.await.is_err() {
            tracing::warn!("connections that do not end are dropped");
        }
    }

    fn connection(&self, address: SocketAddr) -> Connection {
        Connection {
            address,
            acceptor: TlsAcceptor::from(self.material.config.clone()),
            clients: self.clients.clone(),
            room: self.room.clone(),
            refusals: self.refusals.clone(),
            reflection: self.reflection.clone(),
            socket: self.socket.clone(),
            end: self.end.subscribe(),
        }
    }

    /// Reads the files again if they have changed, and warns of an end that is near.
    fn look(&mut self) {
        if Stamp::of(&self.remote) != self.stamp {
            self.reload();
        }
        let left = self.material.not_after.duration_since(SystemTime::now()).unwrap_or_default();
        if left < SOON && self.warned.is_none_or(|warned| warned.elapsed() > DAY) {
            self.warned = Some(Instant::now());
            let (certificate, days) = (self.remote.certificate.display(), left.as_secs() / DAY.as_secs());
            if left.is_zero() {
                tracing::error!(%certificate, "the server's certificate has ended, and clients refuse it: renew it (capsulectl certs server)");
            } else {
                tracing::warn!(%certificate, days, "the server's certificate ends soon: renew it (capsulectl certs server)");
            }
        }
    }

    fn reload(&mut self) {
        self.stamp = Stamp::of(&self.remote);
        match Material::load(&self.remote) {
            Ok(material) => {
                if !material.believes_as(&self.material) {
                    tracing::info!("other authorities are believed: connections end, and clients come again");
                    self.end.send_replace(true);
                    self.end = watch::Sender::new(false);
                }
                self.material = material;
                self.warned = None;
                tracing::info!("certificates read again");
            }
            // Certificate and key are two files: one of them is new before the other.
            Err(error) => {
                let error: &dyn std::error::Error = &error;
                tracing::error!(error, "certificates could not be read again: those from before are used");
            }
        }
    }
}

/// One connection, with what it needs of the server.
struct Connection {
    address: SocketAddr,
    acceptor: TlsAcceptor,
    clients: Clients,
    room: Arc<Semaphore>,
    refusals: Arc<Refusals>,
    reflection: Routes,
    socket: Arc<PathBuf>,
    end: watch::Receiver<bool>,
}

impl Connection {
    /// `turn` is kept while the client says who it is.
    async fn run<T>(self, stream: TcpStream, turn: T) {
        _ = stream.set_nodelay(true); // it is only slower otherwise
        let accepted = timeout(HANDSHAKE, self.acceptor.accept(stream)).await;
        drop(turn);
        match accepted {
            Err(_) => self.refusals.write(self.address, "no certificate was shown in time"),
            Ok(Err(error)) => self.refusals.write(self.address, &error.to_string()),
            Ok(Ok(stream)) => self.serve(stream).await,
        }
    }

    async fn serve(mut self, stream: TlsStream<TcpStream>) {
        let client = match tls::client(stream.get_ref().1.peer_certificates()) {
            Ok(client) => client,
            Err(error) => return self.refusals.write(self.address, &error.to_string()),
        };
        let room = self.room.clone().try_acquire_owned();
        let held = room.and_then(|room| {
            let held = self.clients.connect(&client.name, Instant::now());
            held.map(|held| (room, held)).ok_or(tokio::sync::TryAcquireError::NoPermits)
        });
        let Ok((_room, held)) = held else {
            return self
                .refusals
                .write(self.address, &format!("{} has too many connections, or all have", client.name));
        };
        let peer = Arc::new(Peer { client, address: self.address });
        peer.connected();
        let upstream = Upstream::new(self.socket.clone());
        let calls = Arc::new(Calls::new(peer.clone(), held, upstream, self.reflection.clone()));
        let service = service_fn(move |request| {
            let calls = calls.clone();
            async move { calls.answer(request).await }
        });
        let mut connection = pin!(
            http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .max_concurrent_streams(STREAMS)
                .max_header_list_size(HEADERS)
                .keep_alive_interval(ALIVE)
                .keep_alive_timeout(ALIVE)
                .serve_connection(TokioIo::new(stream), service)
        );
        let ended = tokio::select! {
            ended = &mut connection => Some(ended),
            _ = self.end.wait_for(|end| *end) => None,
        };
        if ended.is_none() {
            connection.as_mut().graceful_shutdown();
            _ = timeout(DRAIN, connection).await; // what has not ended then is cut off
        }
        peer.disconnected();
    }
}
