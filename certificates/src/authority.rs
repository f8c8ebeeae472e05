//! Making certificates.

use std::{
    str::FromStr,
    time::{Duration, SystemTime},
};

use p256::{
    ecdsa::{DerSignature, SigningKey},
    elliptic_curve::Generate,
    pkcs8::{DecodePrivateKey, EncodePrivateKey, LineEnding},
};
use x509_cert::{
    Certificate, TbsCertificate,
    builder::{self, Builder, CertificateBuilder, profile::BuilderProfile},
    der::{DecodePem, Encode, EncodePem, asn1::Ia5String, flagset::FlagSet, oid::db::rfc5280},
    ext::{
        Extension, ToExtension,
        pkix::{
            AuthorityKeyIdentifier, BasicConstraints, ExtendedKeyUsage, KeyUsage, KeyUsages, SubjectAltName,
            SubjectKeyIdentifier, name::GeneralName,
        },
    },
    name::Name,
    serial_number::SerialNumber,
    spki::{SubjectPublicKeyInfo, SubjectPublicKeyInfoRef},
    time::Validity,
};

use crate::{CertificateError, Facts, Host, Role, client_name};

/// How far clocks may differ: what is made counts from so long ago.
const SKEW: Duration = Duration::from_secs(300);

/// When a certificate counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Period {
    /// From then.
    pub from: SystemTime,
    /// Until then.
    pub until: SystemTime,
}

impl Period {
    /// From now on, for so long; in fact from five minutes ago, for clocks that are behind.
    pub fn lasting(time: Duration) -> Self {
        let now = SystemTime::now();
        Self { from: now - SKEW, until: now + time }
    }

    fn validity(self) -> Result<Validity, CertificateError> {
        Ok(Validity::new(self.from.try_into()?, self.until.try_into()?))
    }
}

/// A certificate with its key.
#[derive(Clone)]
pub struct Issued {
    /// In PEM.
    pub certificate: String,
    /// In PEM (PKCS#8). A secret.
    pub key: String,
}

/// Who vouches for others: a certificate that signs, with its key.
pub struct Authority {
    key: SigningKey,
    certificate: Certificate,
}

impl Authority {
    /// A new one. Its name has random digits in it, so that two are not taken for each other.
    ///
    /// # Errors
    /// When it cannot be encoded.
    pub fn new(period: Period) -> Result<Self, CertificateError> {
        let key = SigningKey::generate();
        let name = format!("Resource Capsules {}", &hex(&random())[..8]);
        let subject = common_name(&name)?;
        let profile = Profile { issuer: subject.clone(), subject, kind: Kind::Authority };
        let certificate = sign(profile, period, &key, &key)?;
        Ok(Self { key, certificate })
    }

    /// From PEM.
    ///
    /// # Errors
    /// When either cannot be read, they do not belong together, or the certificate is no authority's.
    pub fn from_pem(certificate: &str, key: &str) -> Result<Self, CertificateError> {
        if !Facts::of_pem(certificate)?.first().is_some_and(|facts| facts.authority) {
            return Err(CertificateError::NotAnAuthority);
        }
        let certificate = Certificate::from_pem(certificate).map_err(|_| CertificateError::Unreadable)?;
        let key = SigningKey::from_pkcs8_pem(key).map_err(|_| CertificateError::Key)?;
        let public = SubjectPublicKeyInfo::from_key(key.verifying_key()).map_err(builder::Error::from)?;
        if public.to_der()? != certificate.tbs_certificate().subject_public_key_info().to_der()? {
            return Err(CertificateError::Mismatch);
        }
        Ok(Self { key, certificate })
    }

    /// As PEM.
    ///
    /// # Errors
    /// When it cannot be encoded.
    pub fn to_pem(&self) -> Result<Issued, CertificateError> {
        encode(&self.certificate, &self.key)
    }

    /// A certificate with a new key for a server that is reached by `hosts`.
    ///
    /// # Errors
    /// [`CertificateError::TooLong`].
    pub fn server(&self, hosts: &[Host], period: Period) -> Result<Issued, CertificateError> {
        let name = |host: &Host| match host {
            Host::Name(name) => Ok(GeneralName::DnsName(Ia5String::new(name)?)),
            Host::Address(address) => Ok(GeneralName::from(*address)),
        };
        let names = hosts.iter().map(name).collect::<Result<Vec<_>, CertificateError>>()?;
        self.issue("capsuled", Kind::Server(names), period)
    }

    /// A certificate with a new key for the client `name`.
    ///
    /// # Errors
    /// [`CertificateError::Nameless`], [`CertificateError::TooLong`].
    pub fn client(&self, name: &str, role: Role, period: Period) -> Result<Issued, CertificateError> {
        let uri = GeneralName::UniformResourceIdentifier(Ia5String::new(&role.uri())?);
        self.issue(client_name(name)?, Kind::Client(vec![uri]), period)
    }

    fn issue(&self, name: &str, kind: Kind, period: Period) -> Result<Issued, CertificateError> {
        let own = self.certificate.tbs_certificate();
        // Who checks a chain does not look at the end of what it trusts.
        if period.until > own.validity().not_after.to_system_time() {
            return Err(CertificateError::TooLong);
        }
        let key = SigningKey::generate();
        let profile = Profile { issuer: own.subject().clone(), subject: common_name(name)?, kind };
        let certificate = sign(profile, period, &key, &self.key)?;
        encode(&certificate, &key)
    }
}

fn common_name(text: &str) -> Result<Name, CertificateError> {
    Ok(Name::from_str(&format!("CN={text}"))?)
}

fn sign(
    profile: Profile,
    period: Period,
    key: &SigningKey,
    signer: &SigningKey,
) -> Result<Certificate, CertificateError> {
    let public = SubjectPublicKeyInfo::from_key(key.verifying_key()).map_err(builder::Error::from)?;
    let serial = SerialNumber::new(&random())?;
    let builder = CertificateBuilder::new(profile, serial, period.validity()?, public)?;
    Ok(builder.build::<_, DerSignature>(signer)?)
}

fn encode(certificate: &Certificate, key: &SigningKey) -> Result<Issued, CertificateError> {
    let certificate = certificate.to_pem(LineEnding::LF)?;
    let key = key.to_pkcs8_pem(LineEnding::LF).map_err(|_| CertificateError::Key)?;
    Ok(Issued { certificate, key: key.as_str().to_owned() })
}

/// 126 random bits, as a positive number of 16 bytes.
fn random() -> [u8; 16] {
    let mut bytes = [0; 16];
    // Does not fail once the kernel's generator is seeded, which it is long before people log in (getrandom(2)).
    let _filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    bytes[0] = bytes[0] & 0x3f | 0x40;
    bytes
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().rev().map(|byte| format!("{byte:02x}")).collect()
}

/// What a certificate is for.
enum Kind {
    Authority,
    Server(Vec<GeneralName>),
    Client(Vec<GeneralName>),
}

struct Profile {
    issuer: Name,
    subject: Name,
    kind: Kind,
}

impl BuilderProfile for Profile {
    fn get_issuer(&self, _: &Name) -> Name {
        self.issuer.clone()
    }

    fn get_subject(&self) -> Name {
        self.subject.clone()
    }

    /// RFC 5280, section 4.2.1.
    fn build_extensions(
        &self,
        own: SubjectPublicKeyInfoRef<'_>,
        issuer: SubjectPublicKeyInfoRef<'_>,
        signed: &TbsCertificate,
    ) -> builder::Result<Vec<Extension>> {
        let (names, purpose) = match &self.kind {
            Kind::Authority => (None, None),
            Kind::Server(names) => (Some(names), Some(rfc5280::ID_KP_SERVER_AUTH)),
            Kind::Client(names) => (Some(names), Some(rfc5280::ID_KP_CLIENT_AUTH)),
        };
        let authority = matches!(self.kind, Kind::Authority);
        let usages: FlagSet<KeyUsages> = match authority {
            true => KeyUsages::KeyCertSign | KeyUsages::CRLSign,
            false => KeyUsages::DigitalSignature.into(),
        };
        let path = authority.then_some(0);
        let mut made = Vec::new();
        let mut add = |extension: Result<Extension, x509_cert::der::Error>| extension.map(|e| made.push(e));
        let (subject, none) = (signed.subject(), &[][..]);
        add((&BasicConstraints { ca: authority, path_len_constraint: path }).to_extension(subject, none))?;
        add((&KeyUsage(usages)).to_extension(subject, none))?;
        add((&SubjectKeyIdentifier::try_from(own)?).to_extension(subject, none))?;
        add((&AuthorityKeyIdentifier::try_from(issuer)?).to_extension(subject, none))?;
        if let Some(purpose) = purpose {
            add((&ExtendedKeyUsage(vec![purpose])).to_extension(subject, none))?;
        }
        if let Some(names) = names {
            add((&SubjectAltName(names.clone())).to_extension(subject, none))?;
        }
        Ok(made)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn facts(issued: &Issued) -> Facts {
        Facts::of_pem(&issued.certificate).unwrap().remove(0)
    }

    #[test]
    fn what_is_made_is_read_again() {
        let authority = Authority::new(Period::lasting(DAY * 10)).unwrap();
        let own = authority.to_pem().unwrap();
        assert!(facts(&own).authority && facts(&own).name.starts_with("Resource Capsules "));
        let authority = Authority::from_pem(&own.certificate, &own.key).unwrap();
        let server = authority
            .server(&["node".parse().unwrap(), "::1".parse().unwrap()], Period::lasting(DAY))
            .unwrap();
        let hosts: Vec<_> = facts(&server).hosts.iter().map(Host::to_string).collect();
        assert_eq!(hosts, ["node", "::1"]);
        assert!(matches!(facts(&server).client(), Err(CertificateError::NoRole)));
        for role in Role::ALL {
            let issued = authority.client("ci@example", role, Period::lasting(DAY)).unwrap();
            let client = facts(&issued).client().unwrap();
            assert_eq!((client.name.as_str(), client.role), ("ci@example", role));
            assert_eq!(client.serial.len(), 32);
            let left = client.not_after.duration_since(SystemTime::now()).unwrap();
            assert!(left <= DAY && left > DAY - Duration::from_secs(60), "{left:?}");
        }
    }

    #[test]
    fn nothing_is_issued_that_could_not_be_used_or_taken_back() {
        let authority = Authority::new(Period::lasting(DAY)).unwrap();
        let own = authority.to_pem().unwrap();
        let other = Authority::new(Period::lasting(DAY)).unwrap().to_pem().unwrap();
        assert!(matches!(
            authority.client("a", Role::Admin, Period::lasting(DAY * 2)),
            Err(CertificateError::TooLong)
        ));
        for name in ["", "a b", "a,CN=b", "ä", &"a".repeat(65)] {
            let refused = authority.client(name, Role::Admin, Period::lasting(DAY / 2));
            assert!(matches!(refused, Err(CertificateError::Nameless)), "{name:?}");
        }
        let client = authority.client("a", Role::Admin, Period::lasting(DAY / 2)).unwrap();
        for (certificate, key, reason) in [
            (&own.certificate, &other.key, "not the certificate's"),
            (&own.certificate, &own.certificate, "no readable private key"),
            (&own.key, &own.key, "no readable certificate"),
            (&client.certificate, &client.key, "no authority's"),
        ] {
            let error = Authority::from_pem(certificate, key).err().unwrap().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn a_role_is_one_of_three_and_only_one() {
        let authority = Authority::new(Period::lasting(DAY)).unwrap();
        let issue = |uris: &[&str]| {
            let names =
                uris.iter().map(|uri| GeneralName::UniformResourceIdentifier(Ia5String::new(*uri).unwrap()));
            facts(&authority.issue("a", Kind::Client(names.collect()), Period::lasting(DAY / 2)).unwrap())
        };
        let refusal = |uris: &[&str]| issue(uris).client().unwrap_err().to_string();
        assert!(refusal(&["spiffe://x/role/admin"]).contains("no role"));
        assert!(refusal(&["capsule:role/root"]).contains("root"));
        assert!(refusal(&["capsule:role/"]).contains("not one of"));
        assert!(refusal(&["capsule:role/viewer", "capsule:role/admin"]).contains("viewer, admin"));
        assert_eq!(issue(&["https://x", "capsule:role/viewer"]).client().unwrap().role, Role::Viewer);
    }
}
