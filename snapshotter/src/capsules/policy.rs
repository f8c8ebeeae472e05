//! Whose versions this node uses: the policy of `[verify]`. Pure but for [`Policy::load`].

use std::{fs, io, path::PathBuf};

use capsule_signatures::{PublicKey, SignatureError, Subject};

use super::{
    model::{CapsuleName, Digest, Version},
    signing::{SignError, Signature},
};
use crate::config::{Require, Verify};

/// A key of the policy that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// No such file, say.
    #[error("read the key {path} of [verify]: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Not a key.
    #[error("the key {path} of [verify]: {source}")]
    Key {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: SignatureError,
    },
}

/// Who is trusted, and for what that is asked.
#[derive(Debug, Clone)]
pub struct Policy {
    keys: Vec<PublicKey>,
    require: Require,
}

impl Default for Policy {
    /// Nothing is asked.
    fn default() -> Self {
        Self { keys: Vec::new(), require: Require::None }
    }
}

impl Policy {
    /// Reads the keys.
    ///
    /// # Errors
    /// [`PolicyError`] of the first that is none: a policy with a key less would refuse what it should not.
    pub fn load(verify: &Verify) -> Result<Self, PolicyError> {
        let read = |path: &PathBuf| {
            let pem = fs::read_to_string(path)
                .map_err(|source| PolicyError::Read { path: path.clone(), source })?;
            PublicKey::from_pem(&pem).map_err(|source| PolicyError::Key { path: path.clone(), source })
        };
        let keys = verify.keys.iter().map(read).collect::<Result<_, _>>()?;
        Ok(Self { keys, require: verify.require.clone() })
    }

    /// Whether versions of this capsule need a signature.
    pub(super) fn requires(&self, name: &CapsuleName) -> bool {
        match &self.require {
            Require::None => false,
            Require::All => true,
            Require::Only(names) => names.contains(name),
        }
    }

    /// Whether a trusted key says of this version that it is this content; why not.
    pub(super) fn judge(
        &self,
        name: &CapsuleName,
        version: &Version,
        digest: &Digest,
        signature: &Signature,
    ) -> Result<(), String> {
        let subject = Subject::parse(&signature.payload).map_err(|e| e.to_string())?;
        subject.check(name.as_str(), version.as_str(), digest.as_str())?;
        if self.keys.iter().any(|key| key.verifies(&signature.payload, signature.text())) {
            return Ok(());
        }
        Err("no key of [verify] made it".to_owned())
    }

    /// The policy's word on a version with these signatures.
    pub(super) fn check(
        &self,
        name: &CapsuleName,
        version: &Version,
        digest: &Digest,
        signatures: &[Signature],
    ) -> Result<(), SignError> {
        if !self.requires(name) {
            return Ok(());
        }
        let (name, version) = (name.clone(), version.clone());
        let mut last = None;
        for signature in signatures {
            match self.judge(&name, &version, digest, signature) {
                Ok(()) => return Ok(()),
                Err(reason) => last = Some(reason),
            }
        }
        Err(match last {
            None => SignError::Unsigned { name, version },
            Some(reason) => SignError::Untrusted { name, version, reason },
        })
    }
}

#[cfg(test)]
mod tests {
    use capsule_signatures::PrivateKey;

    use super::*;

    fn subject(digest: &Digest, named: Option<(&str, &str)>) -> Vec<u8> {
        let (name, version) = named.map(|(name, version)| (name.to_owned(), version.to_owned())).unzip();
        Subject { repository: "r".into(), digest: digest.to_string(), name, version }.payload()
    }

    #[test]
    fn the_policy_asks_for_a_trusted_signature_of_this_version() {
        let (ours, theirs) = (PrivateKey::generate(), PrivateKey::generate());
        let (digest, other) = (Digest::from_sha256(&[1; 32]), Digest::from_sha256(&[2; 32]));
        let (name, version): (CapsuleName, Version) = ("a".parse().unwrap(), "1".parse().unwrap());
        let sign = |key: &PrivateKey, payload: Vec<u8>| {
            let text = key.sign(&payload);
            Signature::new(payload, text)
        };
        let forged = {
            let signature = sign(&ours, subject(&other, None));
            Signature { payload: subject(&digest, None), ..signature }
        };
        let policy = |require| Policy { keys: vec![ours.public()], require };
        for (signatures, refusal) in [
            (vec![], Some("is not signed")),
            (vec![sign(&theirs, subject(&digest, None))], Some("no key of [verify]")),
            (vec![forged], Some("no key of [verify]")),
            (vec![sign(&ours, subject(&other, None))], Some("is one of sha256:0202")),
            (vec![sign(&ours, subject(&digest, Some(("b", "1"))))], Some("signed as b@1")),
            (vec![sign(&ours, subject(&digest, Some(("a", "2"))))], Some("signed as a@2")),
            (vec![Signature::new(b"no JSON".to_vec(), String::new())], Some("payload")),
            (vec![sign(&ours, subject(&digest, Some(("a", "1"))))], None),
            (vec![sign(&theirs, subject(&digest, None)), sign(&ours, subject(&digest, None))], None),
        ] {
            let told = policy(Require::All)
                .check(&name, &version, &digest, &signatures)
                .err()
                .map(|e| e.to_string());
            match refusal {
                None => assert_eq!(told, None),
                Some(words) => assert!(told.as_ref().is_some_and(|t| t.contains(words)), "{words}: {told:?}"),
            }
            let only = policy(Require::Only([name.clone()].into()));
            assert_eq!(only.check(&name, &version, &digest, &signatures).is_err(), refusal.is_some());
            let elsewhere = policy(Require::Only(["b".parse().unwrap()].into()));
            assert!(elsewhere.check(&name, &version, &digest, &signatures).is_ok());
            assert!(policy(Require::None).check(&name, &version, &digest, &signatures).is_ok());
        }
    }
}
