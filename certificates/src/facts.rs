//! What certificates say.

use std::{net::IpAddr, time::SystemTime};

use x509_cert::{
    Certificate,
    der::{Decode, asn1::Ia5String},
    ext::pkix::{BasicConstraints, SubjectAltName, name::GeneralName},
};

use crate::{CertificateError, Host, Role};

/// What one certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The common name of its subject; may be empty.
    pub name: String,
    /// URIs that it names the subject by.
    pub uris: Vec<String>,
    /// DNS names and addresses that it is for.
    pub hosts: Vec<Host>,
    /// It can sign others.
    pub authority: bool,
    /// In hexadecimal.
    pub serial: String,
    /// It counts from then.
    pub not_before: SystemTime,
    /// It counts until then.
    pub not_after: SystemTime,
}

/// Whom a certificate is for, and what they may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// Their name.
    pub name: String,
    /// What they may do.
    pub role: Role,
    /// The certificate's number, in hexadecimal.
    pub serial: String,
    /// The certificate counts until then.
    pub not_after: SystemTime,
}

/// A client's name, checked.
///
/// # Errors
/// [`CertificateError::Nameless`].
pub fn client_name(text: &str) -> Result<&str, CertificateError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-@".contains(&byte);
    if (1..=64).contains(&text.len()) && text.bytes().all(plain) {
        Ok(text)
    } else {
        Err(CertificateError::Nameless)
    }
}

impl Facts {
    /// Of one certificate in DER.
    ///
    /// # Errors
    /// [`CertificateError::Unreadable`].
    pub fn of_der(der: &[u8]) -> Result<Self, CertificateError> {
        Self::of(&Certificate::from_der(der).map_err(|_| CertificateError::Unreadable)?)
    }

    /// Of all certificates in a PEM text, at least one.
    ///
    /// # Errors
    /// [`CertificateError::Unreadable`].
    pub fn of_pem(pem: &str) -> Result<Vec<Self>, CertificateError> {
        let all = Certificate::load_pem_chain(pem.as_bytes()).map_err(|_| CertificateError::Unreadable)?;
        if all.is_empty() {
            return Err(CertificateError::Unreadable);
        }
        all.iter().map(Self::of).collect()
    }

    fn of(certificate: &Certificate) -> Result<Self, CertificateError> {
        let unreadable = |_| CertificateError::Unreadable;
        let signed = certificate.tbs_certificate();
        let name = signed.subject().common_name().map_err(unreadable)?;
        let names = signed.get_extension::<SubjectAltName>().map_err(unreadable)?;
        let (mut uris, mut hosts) = (Vec::new(), Vec::new());
        for name in names.into_iter().flat_map(|(_, names)| names.0) {
            match name {
                GeneralName::UniformResourceIdentifier(uri) => uris.push(text(&uri)),
                GeneralName::DnsName(name) => hosts.push(Host::Name(text(&name))),
                GeneralName::IpAddress(bytes) => hosts.extend(address(bytes.as_bytes()).map(Host::Address)),
                _ => {}
            }
        }
        let constraints = signed.get_extension::<BasicConstraints>().map_err(unreadable)?;
        Ok(Self {
            name: name.map(String::from).unwrap_or_default(),
            uris,
            hosts,
            authority: constraints.is_some_and(|(_, constraints)| constraints.ca),
            serial: signed.serial_number().as_bytes().iter().map(|byte| format!("{byte:02x}")).collect(),
            not_before: signed.validity().not_before.to_system_time(),
            not_after: signed.validity().not_after.to_system_time(),
        })
    }

    /// Whom it is for. That it is genuine must be known.
    ///
    /// # Errors
    /// When it has no name, or not exactly one role.
    pub fn client(&self) -> Result<Client, CertificateError> {
        let words: Vec<&str> = self.uris.iter().filter_map(|uri| Role::word(uri)).collect();
        let role = match words.as_slice() {
            [] => return Err(CertificateError::NoRole),
            [word] => {
                word.parse().map_err(|_| CertificateError::Roles((*word).escape_debug().to_string()))?
            }
            several => return Err(CertificateError::Roles(several.join(", ").escape_debug().to_string())),
        };
        let name = client_name(&self.name)?.to_owned();
        Ok(Client { name, role, serial: self.serial.clone(), not_after: self.not_after })
    }
}

fn text(ascii: &Ia5String) -> String {
    ascii.as_str().to_owned()
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let four: Result<[u8; 4], _> = bytes.try_into();
    let sixteen: Result<[u8; 16], _> = bytes.try_into();
    four.map(IpAddr::from).or(sixteen.map(IpAddr::from)).ok()
}
