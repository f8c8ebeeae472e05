//! Whom a connection is from: certificates, checked by rustls, and read again when their files change.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use capsule_certificates::{CertificateError, Client, Facts};
use capsuled::config::Remote;
use rustls::{
    DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject},
    server::{
        NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};

/// The one protocol that is spoken (ALPN, RFC 7301).
const HTTP2: &[u8] = b"h2";

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MaterialError {
    /// A file could not be read.
    #[error("read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Others can read the key.
    #[error("others than its owner may read the key {} (mode {mode:04o}): chmod 600, and make a new one if somebody has", path.display())]
    Exposed {
        /// The key.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// A file has no key.
    #[error("{} has no private key in PEM", path.display())]
    NoKey {
        /// The file.
        path: PathBuf,
    },
    /// A file has no certificates, or other ones than it should.
    #[error("{}", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: CertificateError,
    },
    /// An authority cannot be used as one.
    #[error("{}", path.display())]
    Authority {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rustls::Error,
    },
    /// The authorities cannot be used.
    #[error("{}", path.display())]
    Verifier {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: VerifierBuilderError,
    },
    /// Certificate and key do not fit.
    #[error("{} and {}", certificate.display(), key.display())]
    Pair {
        /// The certificate.
        certificate: PathBuf,
        /// The key.
        key: PathBuf,
        /// Why.
        #[source]
        source: rustls::Error,
    },
}

/// What a server shows and whom it believes.
#[derive(Clone, Debug)]
pub struct Material {
    /// For connections from now on.
    pub config: Arc<ServerConfig>,
    /// The server's certificate ends then.
    pub not_after: SystemTime,
    /// The authorities of clients, as their file has them.
    authorities: Vec<u8>,
}

impl Material {
    /// Reads the files. A certificate that has ended is no error: clients see that themselves.
    ///
    /// # Errors
    /// When clients could not be served with them.
    pub fn load(remote: &Remote) -> Result<Self, MaterialError> {
        let (chain, first) = certificates(&remote.certificate)?;
        let key = private_key(&remote.key)?;
        let authorities = read(&remote.client_ca)?;
        let provider = Arc::new(ring::default_provider());
        let verifier = Arc::new(Verifier(verifier(remote, &provider)?));
        let pair = |source| MaterialError::Pair {
            certificate: remote.certificate.clone(),
            key: remote.key.clone(),
            source,
        };
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(pair)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .map_err(pair)?;
        config.alpn_protocols = vec![HTTP2.to_vec()];
        // Who comes again shows the certificate again: a session that is taken up would not be checked.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Self { config: Arc::new(config), not_after: first.not_after, authorities })
    }

    /// Whether both believe the same authorities.
    pub fn believes_as(&self, other: &Self) -> bool {
        self.authorities == other.authorities
    }
}

/// What the files were when they were looked at: changes when one is written or replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp([Option<Seen>; 3]);

/// When a file was changed (seconds and nanoseconds), its inode, size and mode.
type Seen = (i64, i64, u64, u64, u32);

impl Stamp {
    /// Of the files as they are. Those that are not there are told from those that are.
    pub fn of(remote: &Remote) -> Self {
        Self([&remote.certificate, &remote.key, &remote.client_ca].map(|path| {
            let seen = fs::metadata(path).ok()?;
            Some((seen.mtime(), seen.mtime_nsec(), seen.ino(), seen.size(), seen.mode()))
        }))
    }
}

/// Whom the certificate of a connection is for. It was verified when the connection was made.
///
/// # Errors
/// As [`Facts::client`].
pub fn client(certificates: Option<&[CertificateDer<'_>]>) -> Result<Client, CertificateError> {
    let own = certificates.and_then(<[_]>::first).ok_or(CertificateError::Unreadable)?;
    Facts::of_der(own)?.client()
}

fn read(path: &Path) -> Result<Vec<u8>, MaterialError> {
    fs::read(path).map_err(|source| MaterialError::Read { path: path.to_owned(), source })
}

/// All certificates of a file, and what the first says.
fn certificates(path: &Path) -> Result<(Vec<CertificateDer<'static>>, Facts), MaterialError> {
    let text = read(path)?;
    let unreadable = |source| MaterialError::Certificate { path: path.to_owned(), source };
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let all = all.map_err(|_| unreadable(CertificateError::Unreadable))?;
    let first = all.first().ok_or_else(|| unreadable(CertificateError::Unreadable))?;
    let facts = Facts::of_der(first).map_err(unreadable)?;
    Ok((all, facts))
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, MaterialError> {
    let failed = |source| MaterialError::Read { path: path.to_owned(), source };
    let mode = fs::metadata(path).map_err(failed)?.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(MaterialError::Exposed { path: path.to_owned(), mode });
    }
    PrivateKeyDer::from_pem_slice(&read(path)?).map_err(|_| MaterialError::NoKey { path: path.to_owned() })
}

fn verifier(
    remote: &Remote,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, MaterialError> {
    let path = || remote.client_ca.clone();
    let (all, _) = certificates(&remote.client_ca)?;
    let mut roots = RootCertStore::empty();
    for certificate in all {
        let facts = Facts::of_der(&certificate)
            .map_err(|source| MaterialError::Certificate { path: path(), source })?;
        if !facts.authority {
            let source = CertificateError::NotAnAuthority;
            return Err(MaterialError::Certificate { path: path(), source });
        }
        roots.add(certificate).map_err(|source| MaterialError::Authority { path: path(), source })?;
    }
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .map_err(|source| MaterialError::Verifier { path: path(), source })
}

/// rustls' own, and then: the certificate names a client and a role. Strangers are not told whom it believes.
#[derive(Debug)]
struct Verifier(Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        own: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.0.verify_client_cert(own, between, now)?;
        match Facts::of_der(own).and_then(|facts| facts.client()) {
            Ok(_) => Ok(verified),
            Err(error) => {
                let other = rustls::OtherError(Arc::new(error));
                Err(rustls::Error::InvalidCertificate(rustls::CertificateError::Other(other)))
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}
