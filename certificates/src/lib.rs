//! Certificates of the remote API: made ([`Authority`]), read ([`Facts`]), and what they say of who a client is ([`Client`]).
//!
//! X.509 as RFC 5280 has it. Keys are of P-256, signatures ECDSA with SHA-256. Nothing here verifies a chain: that is the
//! TLS library's, and what is read here counts only after it has.

mod authority;
mod facts;
mod host;
mod role;

pub use self::{
    authority::{Authority, Issued, Period},
    facts::{Client, Facts, client_name},
    host::Host,
    role::Role,
};

/// Why there is no certificate, or none that can be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// The text has no certificate, or one that cannot be read.
    #[error("there is no readable certificate in it")]
    Unreadable,
    /// The key is none of those that are made here.
    #[error("there is no readable private key of P-256 in it (PEM, PKCS#8)")]
    Key,
    /// The key is another certificate's.
    #[error("the key is not the certificate's")]
    Mismatch,
    /// The certificate cannot sign others.
    #[error("the certificate is no authority's: it cannot sign others")]
    NotAnAuthority,
    /// What is issued would outlive who vouches for it.
    #[error(
        "the authority's own certificate ends before that: make the time shorter, or make a new authority"
    )]
    TooLong,
    /// The certificate names nobody.
    #[error("the certificate names no client: its common name must be {NAME_RULE}")]
    Nameless,
    /// The certificate has no role.
    #[error(
        "the certificate has no role: it needs one URI capsule:role/viewer, capsule:role/operator or capsule:role/admin"
    )]
    NoRole,
    /// The certificate has several roles, or one that there is not.
    #[error("the certificate's roles are not one of viewer, operator and admin: {0}")]
    Roles(String),
    /// The encoding failed.
    #[error("the certificate could not be made: {0}")]
    Encode(#[from] x509_cert::builder::Error),
}

impl From<x509_cert::der::Error> for CertificateError {
    fn from(error: x509_cert::der::Error) -> Self {
        Self::Encode(error.into())
    }
}

/// What a client's name is.
pub const NAME_RULE: &str = "1 to 64 letters, digits, '.', '_', '-' and '@'";
