//! The connection to a node: TCP, TLS with both certificates, and the server's first word.

use std::io::{self, Cursor};
use std::sync::Arc;
use std::time::Duration;

use capsule_certificates::Host;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{AlertDescription, CertificateError, ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt as _, split};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tonic::transport::Channel;

use super::{Node, RemoteError};
use crate::client::channel;

/// How long each step may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Connects, and waits until the server has let the client in.
///
/// # Errors
/// With who does not believe whom, and what to do.
pub async fn connect(node: &Node) -> Result<Channel, RemoteError> {
    let (name, address) = (node.name.clone(), node.entry.address.clone());
    let unreachable =
        |source| RemoteError::Unreachable { node: name.clone(), address: address.clone(), source };
    let late = |_| unreachable(io::ErrorKind::TimedOut.into());
    let config = config(node)?;
    let host = address.host.to_string();
    let tcp = timeout(PATIENCE, TcpStream::connect((host.as_str(), address.port))).await.map_err(late)?;
    let tcp = tcp.map_err(unreachable)?;
    let _ = tcp.set_nodelay(true); // it is only slower otherwise
    let tls = timeout(PATIENCE, TlsConnector::from(config).connect(server_name(node)?, tcp)).await;
    let mut tls = tls.map_err(late)?.map_err(|error| refused(node, &error))?;
    // Of TLS 1.3 the client's part is over before the server has seen its certificate: whether it is let in, it hears with
    // the first bytes, which a server of HTTP/2 sends unasked.
    let mut heard = vec![0; 4096];
    let count = timeout(PATIENCE, tls.read(&mut heard)).await.map_err(late)?;
    heard.truncate(count.map_err(|error| refused(node, &error))?);
    if heard.is_empty() {
        return Err(refused(node, &io::ErrorKind::UnexpectedEof.into()));
    }
    let (rest, write) = split(tls);
    let stream = tokio::io::join(Cursor::new(heard).chain(rest), write);
    channel(stream).await.map_err(|source| RemoteError::Handshake { node: name, address, source })
}

/// TLS 1.3 alone, with the authorities of the file and no others.
fn config(node: &Node) -> Result<Arc<ClientConfig>, RemoteError> {
    let unusable = |what: &str| RemoteError::Syntax {
        path: node.file.clone(),
        what: format!("the {what} of node `{}` cannot be read", node.name),
    };
    let all = |pem: &str| CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<Vec<_>, _>>();
    let mut roots = RootCertStore::empty();
    for authority in all(&node.entry.ca).map_err(|_| unusable("ca"))? {
        roots.add(authority).map_err(|_| unusable("ca"))?;
    }
    let own = all(&node.entry.certificate).map_err(|_| unusable("certificate"))?;
    let key = PrivateKeyDer::from_pem_slice(node.entry.key.as_bytes()).map_err(|_| unusable("key"))?;
    let mut config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|_| unusable("certificate"))?
        .with_root_certificates(roots)
        .with_client_auth_cert(own, key)
        .map_err(|_| unusable("certificate and key"))?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

fn server_name(node: &Node) -> Result<ServerName<'static>, RemoteError> {
    match node.entry.address.host.clone() {
        Host::Address(address) => Ok(ServerName::from(address)),
        Host::Name(name) => ServerName::try_from(name).map_err(|_| RemoteError::Syntax {
            path: node.file.clone(),
            what: format!("the address of node `{}` is no DNS name", node.name),
        }),
    }
}

fn refused(node: &Node, error: &io::Error) -> RemoteError {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let what = match tls {
        Some(rustls::Error::InvalidCertificate(why)) => of_the_server(node, why),
        Some(rustls::Error::AlertReceived(alert)) => of_the_client(node, *alert),
        Some(other) => format!("TLS failed: {other}"),
        None if error.kind() == io::ErrorKind::UnexpectedEof => {
            "it hung up: it may have too many connections".to_owned()
        }
        None => format!("TLS failed: {error}"),
    };
    RemoteError::Refused { node: node.name.clone(), address: node.entry.address.clone(), what }
}

/// The client does not believe the server.
fn of_the_server(node: &Node, why: &CertificateError) -> String {
    let host = &node.entry.address.host;
    match why {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "its certificate has ended: whoever runs it renews it with `capsulectl certs server`".to_owned()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "its certificate does not count yet: compare the clocks of both machines".to_owned()
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => format!(
            "its certificate is not for {host}: use a name that it is for, or renew it with `capsulectl certs server --host {host}`"
        ),
        CertificateError::UnknownIssuer | CertificateError::BadSignature => format!(
            "its certificate is of another authority than {} has for it: it is another server, or needs a new client file",
            node.file.display()
        ),
        other => format!("its certificate cannot be used: {other}"),
    }
}

/// The server does not believe the client.
fn of_the_client(node: &Node, alert: AlertDescription) -> String {
    let name = &node.client.name;
    match alert {
        AlertDescription::CertificateExpired => format!(
            "it says that the certificate of {name} has ended or does not count yet: compare the clocks of both machines"
        ),
        AlertDescription::UnknownCA | AlertDescription::DecryptError => format!(
            "it does not know the authority that the certificate of {name} is of: ask for a new client file"
        ),
        alert => format!("it refuses the certificate of {name} ({alert:?}): ask for a new client file"),
    }
}
