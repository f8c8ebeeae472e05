//! Which versions have the signatures that their `Capsule` asks for.

use std::collections::BTreeSet;

use capsule_proto::capsule::v1::Signature;
use capsule_signatures::{PublicKey, Subject};
use tonic::Status;

use super::{
    fetch::{Key, There, Unsigned},
    node::{Node, is_away},
};
use crate::api::Wanted;

/// What was found to be signed: no signature goes away while its version is there.
#[derive(Default)]
pub struct Signed {
    known: BTreeSet<(Key, String, Vec<String>)>,
}

/// What may be used of capsules that have to be signed.
#[derive(Debug, Default)]
pub struct Judged {
    names: BTreeSet<String>,
    good: BTreeSet<Key>,
    /// Versions that may not be used, and why.
    pub unsigned: Unsigned,
}

impl Judged {
    /// Whether a version may be used; why not. What was not looked at may not.
    ///
    /// # Errors
    /// Why not.
    pub fn allow(&self, key: &Key) -> Result<(), String> {
        if !self.names.contains(&key.0) || self.good.contains(key) {
            return Ok(());
        }
        let unknown = || format!("{}@{} is not used: its signatures were not looked at yet", key.0, key.1);
        Err(self.unsigned.get(key).cloned().unwrap_or_else(unknown))
    }

    /// Whether nothing has to be signed.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }
}

impl Signed {
    /// Looks at the versions that are there, of capsules that have to be signed.
    ///
    /// # Errors
    /// capsuled is away.
    pub async fn look(&mut self, wanted: &[Wanted], there: &There, node: &Node) -> Result<Judged, Status> {
        let (mut judged, mut known) = (Judged::default(), BTreeSet::new());
        for one in wanted.iter().filter(|one| !one.keys.is_empty()) {
            judged.names.insert(one.name.clone());
            for (key, digest) in there.versions.iter().filter(|(key, _)| key.0 == one.name) {
                let as_it_is = (key.clone(), digest.clone(), one.keys.clone());
                let found = match self.known.contains(&as_it_is) {
                    true => Ok(()),
                    false => look_at(key, digest, &one.keys, node).await?,
                };
                match found {
                    Ok(()) => {
                        judged.good.insert(key.clone());
                        known.insert(as_it_is);
                    }
                    Err(why) => drop(judged.unsigned.insert(key.clone(), why)),
                }
            }
        }
        self.known = known;
        Ok(judged)
    }
}

async fn look_at(
    key: &Key,
    digest: &str,
    keys: &[String],
    node: &Node,
) -> Result<Result<(), String>, Status> {
    match node.signatures(key).await {
        Ok((found, signatures)) if found == digest => Ok(judge(keys, key, digest, &signatures)),
        Ok(_) => Ok(Err(format!("{}@{} has changed a moment ago", key.0, key.1))),
        Err(status) if is_away(&status) => Err(status),
        // It is about this version alone: it is being removed, or its signatures cannot be read.
        Err(status) => Ok(Err(status.message().to_owned())),
    }
}

/// Whether one of these keys says of a version that it is this content; why not.
pub fn judge(keys: &[String], of: &Key, digest: &str, signatures: &[Signature]) -> Result<(), String> {
    let (name, version) = of;
    let keys: Vec<PublicKey> = keys
        .iter()
        .map(|pem| PublicKey::from_pem(pem).map_err(|error| format!("a key of the Capsule {name}: {error}")))
        .collect::<Result<_, _>>()?;
    let mut last = "it has no signature: sign it with \"capsulectl sign\", and push it again".to_owned();
    for signature in signatures {
        let is_by_one = || keys.iter().any(|key| key.verifies(&signature.payload, &signature.signature));
        let subject = Subject::parse(&signature.payload).map_err(|error| error.to_string());
        match subject.and_then(|subject| subject.check(name, version, digest)) {
            Ok(()) if is_by_one() => return Ok(()),
            Ok(()) => last = format!("no key of the Capsule {name} made its signature"),
            Err(why) => last = why,
        }
    }
    Err(format!("{name}@{version} is not used: {last}"))
}

#[cfg(test)]
mod tests {
    use capsule_signatures::PrivateKey;

    use super::*;

    fn signature(key: &PrivateKey, digest: &str, version: &str) -> Signature {
        let subject = Subject {
            repository: "localhost/tz".into(),
            digest: digest.into(),
            name: Some("tz".into()),
            version: Some(version.into()),
        };
        let payload = subject.payload();
        Signature { signature: key.sign(&payload), payload, trusted: false }
    }

    #[test]
    fn one_key_of_several_is_enough_and_what_it_says_has_to_be_so() {
        let (ours, other) = (PrivateKey::generate(), PrivateKey::generate());
        let keys = [&other, &ours].map(|key| key.public().to_pem().unwrap());
        let of = ("tz".to_owned(), "1".to_owned());
        let judge = |keys: &[String], signatures: &[Signature]| judge(keys, &of, "sha256:a", signatures);
        let good = signature(&ours, "sha256:a", "1");
        assert_eq!(judge(&keys, &[signature(&ours, "sha256:b", "1"), good.clone()]), Ok(()));
        for (keys, signatures, word) in [
            (&keys[..], vec![], "no signature"),
            (&keys[..1], vec![good.clone()], "no key of the Capsule tz"),
            (&keys[..], vec![signature(&ours, "sha256:b", "1")], "one of sha256:b, and this is sha256:a"),
            (&keys[..], vec![signature(&ours, "sha256:a", "2")], "signed as tz@2"),
            (&["none".to_owned()][..], vec![good], "a key of the Capsule tz"),
        ] {
            let why = judge(keys, &signatures).unwrap_err();
            assert!(why.contains(word), "{why}");
        }
    }

    #[test]
    fn what_was_not_looked_at_may_not_be_used() {
        let key = |name: &str, version: &str| (name.to_owned(), version.to_owned());
        let judged = Judged {
            names: ["tz".to_owned()].into(),
            good: [key("tz", "1")].into(),
            unsigned: [(key("tz", "2"), "no signature".to_owned())].into(),
        };
        assert_eq!(judged.allow(&key("tz", "1")), Ok(()));
        assert_eq!(judged.allow(&key("lib", "1")), Ok(()));
        assert_eq!(judged.allow(&key("tz", "2")).unwrap_err(), "no signature");
        assert!(judged.allow(&key("tz", "3")).unwrap_err().contains("not looked at yet"));
    }
}
