//! Signatures of versions, as sigstore's `cosign` makes and reads them with a key pair: ECDSA on P-256 with SHA-256 over a
//! "simple signing" payload that names the digest of a manifest (cosign `specs/SIGNATURE_SPEC.md`). Pure: no I/O but the
//! randomness of a new key. The cryptography is the crate `p256`'s.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use p256::{
    SecretKey,
    ecdsa::{
        Signature, SigningKey, VerifyingKey,
        signature::{Signer as _, Verifier as _},
    },
    elliptic_curve::Generate as _,
    pkcs8::{
        DecodePrivateKey as _, DecodePublicKey as _, EncodePrivateKey as _, EncodePublicKey as _, LineEnding,
    },
};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// Media type of a payload, which is a layer of the image that holds signatures.
pub const PAYLOAD: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
/// The layer's annotation that is the signature over it: base64 of its ASN.1 form.
pub const SIGNATURE: &str = "dev.cosignproject.cosign/signature";

/// What every payload of this format says it is.
const TYPE: &str = "cosign container image signature";

/// Why a key or payload is none.
#[derive(Debug, thiserror::Error)]
pub enum SignatureError {
    /// Not a private key.
    #[error("it is no private key: expected an unencrypted ECDSA P-256 key in PEM, PKCS#8 or SEC1")]
    PrivateKey,
    /// Not a public key.
    #[error("it is no public key: expected an ECDSA P-256 key in PEM (\"-----BEGIN PUBLIC KEY-----\")")]
    PublicKey,
    /// Not JSON of its kind.
    #[error("the payload is not that of a signature: {0}")]
    Payload(String),
    /// A key could not be written.
    #[error("the key cannot be written as PEM")]
    Encode,
}

/// What is signed: a manifest, and what it is to be called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// Repository that it was signed in; no part of what is checked.
    pub repository: String,
    /// Digest of the manifest.
    pub digest: String,
    /// The capsule, where the signer said so.
    pub name: Option<String>,
    /// The version, where the signer said so.
    pub version: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct Payload {
    critical: Critical,
    optional: Option<Optional>,
}

#[derive(Serialize, Deserialize)]
struct Critical {
    identity: Identity,
    image: Image,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Serialize, Deserialize)]
struct Identity {
    #[serde(rename = "docker-reference")]
    reference: String,
}

#[derive(Serialize, Deserialize)]
struct Image {
    #[serde(rename = "docker-manifest-digest")]
    digest: String,
}

/// What others wrote beside these is theirs.
#[derive(Serialize, Deserialize)]
struct Optional {
    #[serde(rename = "resourcecapsules.io/name", default, skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(rename = "resourcecapsules.io/version", default, skip_serializing_if = "Option::is_none")]
    version: Option<String>,
}

impl Subject {
    /// The bytes to sign.
    pub fn payload(&self) -> Vec<u8> {
        let Self { repository, digest, name, version } = self.clone();
        let optional = Some(Optional { name, version }).filter(|o| o.name.is_some() || o.version.is_some());
        let critical = Critical {
            identity: Identity { reference: repository },
            image: Image { digest },
            kind: TYPE.to_owned(),
        };
        // Strings and maps of strings: there is nothing that could not be written.
        serde_json::to_vec(&Payload { critical, optional }).unwrap_or_default()
    }

    /// What a payload says. Its signature is still to be checked.
    ///
    /// # Errors
    /// [`SignatureError::Payload`].
    pub fn parse(payload: &[u8]) -> Result<Self, SignatureError> {
        let parsed: Payload =
            serde_json::from_slice(payload).map_err(|e| SignatureError::Payload(e.to_string()))?;
        if parsed.critical.kind != TYPE {
            return Err(SignatureError::Payload(format!("it is a {:?}", parsed.critical.kind)));
        }
        let (name, version) = parsed.optional.map(|o| (o.name, o.version)).unwrap_or_default();
        let (repository, digest) = (parsed.critical.identity.reference, parsed.critical.image.digest);
        Ok(Self { repository, digest, name, version })
    }

    /// Whether it is about this content as this version of this capsule; why not.
    ///
    /// # Errors
    /// What it is about instead.
    pub fn check(&self, name: &str, version: &str, digest: &str) -> Result<(), String> {
        if self.digest != digest {
            return Err(format!("the signature is one of {}, and this is {digest}", self.digest));
        }
        let called = |said: &Option<String>, is: &str| said.as_deref().is_none_or(|said| said == is);
        if !called(&self.name, name) || !called(&self.version, version) {
            let or_any = |said: &Option<String>| said.as_deref().unwrap_or("*").to_owned();
            return Err(format!("it was signed as {}@{}", or_any(&self.name), or_any(&self.version)));
        }
        Ok(())
    }
}

/// A key to sign with.
pub struct PrivateKey(SigningKey);

impl PrivateKey {
    /// A new one.
    pub fn generate() -> Self {
        Self(SigningKey::generate())
    }

    /// From PEM, as [`PrivateKey::to_pem`] and `openssl` write it. Keys that a password protects are not read.
    ///
    /// # Errors
    /// [`SignatureError::PrivateKey`].
    pub fn from_pem(pem: &str) -> Result<Self, SignatureError> {
        let sec1 = || SecretKey::from_sec1_pem(pem).map(SigningKey::from);
        SigningKey::from_pkcs8_pem(pem)
            .ok()
            .or_else(|| sec1().ok())
            .map(Self)
            .ok_or(SignatureError::PrivateKey)
    }

    /// As PEM (PKCS#8).
    ///
    /// # Errors
    /// [`SignatureError::Encode`].
    pub fn to_pem(&self) -> Result<String, SignatureError> {
        let pem = self.0.to_pkcs8_pem(LineEnding::LF).map_err(|_| SignatureError::Encode)?;
        Ok(pem.as_str().to_owned())
    }

    /// Who checks needs this of it.
    pub fn public(&self) -> PublicKey {
        PublicKey(*self.0.verifying_key())
    }

    /// The signature over a payload, as the annotation has it. The same payload gives the same (RFC 6979).
    pub fn sign(&self, payload: &[u8]) -> String {
        let signature: Signature = self.0.sign(payload);
        STANDARD.encode(signature.to_der())
    }
}

/// A key to check with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey(VerifyingKey);

impl PublicKey {
    /// From PEM, as `cosign.pub` is.
    ///
    /// # Errors
    /// [`SignatureError::PublicKey`].
    pub fn from_pem(pem: &str) -> Result<Self, SignatureError> {
        VerifyingKey::from_public_key_pem(pem).map(Self).map_err(|_| SignatureError::PublicKey)
    }

    /// As PEM.
    ///
    /// # Errors
    /// [`SignatureError::Encode`].
    pub fn to_pem(&self) -> Result<String, SignatureError> {
        self.0.to_public_key_pem(LineEnding::LF).map_err(|_| SignatureError::Encode)
    }

    /// Its fingerprint: SHA-256 of its DER form, in hexadecimal digits.
    pub fn fingerprint(&self) -> String {
        let der = self.0.to_public_key_der().map(|der| der.as_bytes().to_vec()).unwrap_or_default();
        Sha256::digest(der).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Whether `signature`, an annotation's text, is one of this key over `payload`.
    pub fn verifies(&self, payload: &[u8], signature: &str) -> bool {
        let signature = STANDARD.decode(signature.trim()).ok();
        let signature = signature.and_then(|der| Signature::from_der(&der).ok());
        signature.is_some_and(|signature| self.0.verify(payload, &signature).is_ok())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    // Made with OpenSSL 3: `genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256`, `pkey -pubout`, `ec`, and
    // `dgst -sha256 -sign` over a payload as cosign writes it. The key is of no use elsewhere.
    const PUBLIC: &str = "-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEIzpVWx101RWCULqj1yJSZDvZ52M1
doqUc1vunttTsZAEGVS933Lf9Hu739wTxTuAtt7oGUlkh4dsTVAe5pNvmw==
-----END PUBLIC KEY-----
";
    const PKCS8: &str = "-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgXssFV50wQWsrnF7k
EtMH85FTffndmPDJTk9mTQafTLChRANCAAQjOlVbHXTVFYJQuqPXIlJkO9nnYzV2
ipRzW+6e21OxkAQZVL3fct/0e7vf3BPFO4C23ugZSWSHh2xNUB7mk2+b
-----END PRIVATE KEY-----
";
    const SEC1: &str = "-----BEGIN EC PRIVATE KEY-----
MHcCAQEEIF7LBVedMEFrK5xe5BLTB/ORU3353ZjwyU5PZk0Gn0ywoAoGCCqGSM49
AwEHoUQDQgAEIzpVWx101RWCULqj1yJSZDvZ52M1doqUc1vunttTsZAEGVS933Lf
9Hu739wTxTuAtt7oGUlkh4dsTVAe5pNvmw==
-----END EC PRIVATE KEY-----
";
    const SIGNED: &str = r#"{"critical":{"identity":{"docker-reference":"registry.example/team/zones"},"image":{"docker-manifest-digest":"sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa7"},"type":"cosign container image signature"},"optional":null}"#;
    const BY_OPENSSL: &str =
        "MEQCIGTqSkPpXSUP3z/sFwt5C1LS2Z/pubxmmajUcxmp8jK+AiBI++N9mC09CFPNVzNHYSxtMKoor5foQ+ZxuBUa6pVaiQ==";

    #[test]
    fn what_another_made_is_checked() {
        let key = PublicKey::from_pem(PUBLIC).unwrap();
        assert!(key.verifies(SIGNED.as_bytes(), BY_OPENSSL));
        assert!(!key.verifies(SIGNED.replace("zones", "zonez").as_bytes(), BY_OPENSSL));
        assert!(!key.verifies(SIGNED.as_bytes(), &BY_OPENSSL.replacen('G', "H", 1)));
        for none in ["", "AAAA", "no base64!"] {
            assert!(!key.verifies(SIGNED.as_bytes(), none), "{none:?}");
        }
        assert!(!PrivateKey::generate().public().verifies(SIGNED.as_bytes(), BY_OPENSSL));
        assert_eq!(key.to_pem().unwrap(), PUBLIC);
    }

    #[test]
    fn payloads_are_byte_for_byte_those_of_cosign() {
        let subject = Subject::parse(SIGNED.as_bytes()).unwrap();
        assert_eq!(subject.repository, "registry.example/team/zones");
        assert!(subject.digest.ends_with("aaa7") && subject.name.is_none());
        assert_eq!(String::from_utf8(subject.payload()).unwrap(), SIGNED);
        let named = Subject { name: Some("tz".into()), version: Some("1".into()), ..subject };
        assert_eq!(Subject::parse(&named.payload()).unwrap(), named);
        // Annotations that others gave it stay out of the way.
        let more = SIGNED.replace("null", r#"{"team":"time","timestamp":1}"#);
        assert_eq!(Subject::parse(more.as_bytes()).unwrap().name, None);
        for wrong in ["", "{}", &SIGNED.replace("cosign container", "atomic container")] {
            assert!(Subject::parse(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn keys_are_read_in_both_forms_and_written_in_one() {
        for pem in [PKCS8, SEC1] {
            let key = PrivateKey::from_pem(pem).unwrap();
            assert_eq!(key.public(), PublicKey::from_pem(PUBLIC).unwrap());
            assert!(key.public().verifies(b"x", &key.sign(b"x")));
            assert_eq!(key.sign(b"x"), key.sign(b"x"));
            assert_eq!(key.to_pem().unwrap(), PKCS8);
        }
        assert!(PrivateKey::from_pem(PUBLIC).is_err() && PublicKey::from_pem(PKCS8).is_err());
        assert_eq!(PrivateKey::generate().public().fingerprint().len(), 64);
    }
}
