//! `sign`, `verify` and `keygen`.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use capsule_proto::capsule::v1;
use capsule_signatures::{PrivateKey, PublicKey, Subject};
use serde::Serialize;

use super::Target;
use crate::args::{SignArgs, VerifyArgs};
use crate::error::Error;
use crate::text::{Text, escape_control};
use crate::view::Version;

/// Result of `sign`.
#[derive(Debug, Serialize)]
struct Signed {
    version: Version,
    /// How many signatures it has now.
    signatures: usize,
    /// Fingerprint of the key's public half.
    key: String,
}

impl Text for Signed {
    fn text(&self, _: SystemTime) -> String {
        let Version { capsule, version, digest, .. } = &self.version;
        escape_control(&format!("{capsule}@{version}  {digest}  (signed by {})", short(&self.key))) + "\n"
    }
}

/// Result of `verify`.
#[derive(Debug, Serialize)]
struct Verified {
    version: Version,
    signatures: usize,
    /// Those by the key that was named, or by keys of the node's policy.
    good: usize,
}

impl Text for Verified {
    fn text(&self, _: SystemTime) -> String {
        let Version { capsule, version, digest, .. } = &self.version;
        let (good, of) = (self.good, self.signatures);
        escape_control(&format!("{capsule}@{version}  {digest}  (good signatures: {good} of {of})")) + "\n"
    }
}

/// Result of `keygen`.
#[derive(Debug, Serialize)]
struct Generated {
    private: PathBuf,
    public: PathBuf,
    /// Fingerprint.
    key: String,
}

impl Text for Generated {
    fn text(&self, _: SystemTime) -> String {
        let (private, public) = (self.private.display(), self.public.display());
        let line = format!("{private} to sign with, {public} for those who check (key {})", short(&self.key));
        escape_control(&line) + "\n"
    }
}

fn short(fingerprint: &str) -> &str {
    fingerprint.get(..12).unwrap_or(fingerprint)
}

fn read(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path).map_err(|source| Error::ReadDeclaration { path: path.to_owned(), source })
}

fn no_key(path: &Path) -> impl FnOnce(capsule_signatures::SignatureError) -> Error + '_ {
    move |source| Error::Key { path: path.to_owned(), source }
}

pub async fn sign(to: Target<'_>, args: SignArgs) -> Result<(), Error> {
    let SignArgs { capsule, key: path } = args;
    let key = PrivateKey::from_pem(&read(&path)?).map_err(no_key(&path))?;
    let client = to.connect().await?;
    let which =
        v1::InspectCapsuleRequest { name: capsule.name, version: capsule.version.unwrap_or_default() };
    let found = client.capsules().inspect_capsule(which).await?.into_inner();
    let found = found.version.ok_or(Error::Answer("inspect"))?;
    let repository = found.image.rsplit_once(':').map_or(found.image.as_str(), |(name, _)| name).to_owned();
    let subject = Subject {
        repository,
        digest: found.digest,
        name: Some(found.capsule.clone()),
        version: Some(found.version.clone()),
    };
    let payload = subject.payload();
    let signature = Some(v1::Signature { signature: key.sign(&payload), payload, trusted: false });
    let request = v1::SignRequest { name: found.capsule, version: found.version, signature };
    let answer = client.signatures().sign(request).await?.into_inner();
    let signed = Signed {
        version: answer.version.ok_or(Error::Answer("sign"))?.into(),
        signatures: answer.signatures.len(),
        key: key.public().fingerprint(),
    };
    to.print(&signed, &signed)
}

/// # Errors
/// [`Error::Unsigned`] when no signature is good.
pub async fn verify(to: Target<'_>, args: VerifyArgs) -> Result<(), Error> {
    let VerifyArgs { capsule, key } = args;
    let key = match &key {
        Some(path) => Some(PublicKey::from_pem(&read(path)?).map_err(no_key(path))?),
        None => None,
    };
    let request =
        v1::ListSignaturesRequest { name: capsule.name, version: capsule.version.unwrap_or_default() };
    let answer = to.connect().await?.signatures().list_signatures(request).await?.into_inner();
    let version: Version = answer.version.ok_or(Error::Answer("verify"))?.into();
    let is_good = |signature: &&v1::Signature| match &key {
        None => signature.trusted,
        Some(key) => is_of(key, signature, &version),
    };
    let good = answer.signatures.iter().filter(is_good).count();
    let signatures = answer.signatures.len();
    if good == 0 {
        let what = format!("{}@{}", version.capsule, version.version);
        let by = if key.is_some() { "that key" } else { "a key of this node's policy" };
        return Err(Error::Unsigned { what, by, signatures });
    }
    let verified = Verified { version, signatures, good };
    to.print(&verified, &verified)
}

/// The same rules as capsuled's.
fn is_of(key: &PublicKey, signature: &v1::Signature, version: &Version) -> bool {
    let Ok(subject) = Subject::parse(&signature.payload) else { return false };
    let called = |said: &Option<String>, is: &str| said.as_deref().is_none_or(|said| said == is);
    subject.digest == version.digest
        && called(&subject.name, &version.capsule)
        && called(&subject.version, &version.version)
        && key.verifies(&signature.payload, &signature.signature)
}

/// Writes a new pair of keys. A file that is there stays.
pub fn keygen(to: Target<'_>, prefix: &Path) -> Result<(), Error> {
    let key = PrivateKey::generate();
    let with = |end: &str| {
        let mut name = prefix.as_os_str().to_owned();
        name.push(end);
        PathBuf::from(name)
    };
    let (private, public) = (with(".key"), with(".pub"));
    let pem = |path: &Path, pem: Result<String, _>| pem.map_err(no_key(path));
    let written = [
        (&private, pem(&private, key.to_pem())?, 0o600),
        (&public, pem(&public, key.public().to_pem())?, 0o644),
    ];
    for (path, pem, mode) in written {
        let failed = |source| Error::WriteKey { path: path.clone(), source };
        let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
        file.and_then(|mut file| file.write_all(pem.as_bytes()).and_then(|()| file.sync_all()))
            .map_err(failed)?;
    }
    let generated = Generated { private, public, key: key.public().fingerprint() };
    to.print(&generated, &generated)
}
