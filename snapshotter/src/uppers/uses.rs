//! Who has which upper directory, and what may go. Pure: no I/O.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::model::UpperName;
use crate::{attachments::model::ContainerKey, volumes::model::VolumeId};

/// Which upper directory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// That of the attachment of this id.
    Own(String),
    /// That of this name.
    Named(UpperName),
    /// That of a volume.
    Volume(VolumeId),
}

/// Why somebody cannot have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Taken {
    /// An attachment has it, whose id and container this is.
    By(String),
    /// It is published.
    Read,
    /// It is being removed, and will be gone in a moment.
    Removed,
}

/// One that somebody has, or may have.
#[derive(Debug, Clone, Default)]
struct Use {
    /// None when only readers have it, or whoever removes it.
    attachment: Option<String>,
    /// Where; none when it was found without a record.
    container: Option<ContainerKey>,
    /// Its attachment has ended: it may drain.
    has_ended: bool,
    /// How many read it now.
    readers: usize,
    /// It is to be removed, though it has a name.
    goes: bool,
    /// It is being removed.
    is_removed: bool,
}

impl Use {
    fn is_of(&self, attachment: &str) -> bool {
        self.attachment.as_deref() == Some(attachment)
    }

    fn taken(&self) -> Taken {
        match (&self.attachment, &self.container) {
            _ if self.is_removed => Taken::Removed,
            (None, _) => Taken::Read,
            (Some(id), Some(container)) => Taken::By(format!("{id} of {container}")),
            (Some(id), None) => Taken::By(id.clone()),
        }
    }

    fn removed() -> Self {
        Self { is_removed: true, ..Self::default() }
    }
}

/// Everything that is in use.
#[derive(Debug, Default)]
pub struct Uses {
    uses: BTreeMap<Key, Use>,
    /// What drains in each container, by the id that the attachment had; not known when `None`.
    draining: HashMap<ContainerKey, Option<HashSet<String>>>,
}

impl Uses {
    /// Somebody has it from now on.
    ///
    /// # Errors
    /// Why not.
    pub fn claim(&mut self, key: Key, attachment: &str, container: &ContainerKey) -> Result<(), Taken> {
        let one = match self.uses.get(&key) {
            Some(other) if !other.is_of(attachment) => return Err(other.taken()),
            Some(own) => own.clone(),
            None => Use::default(),
        };
        let (attachment, container) = (Some(attachment.to_owned()), Some(container.clone()));
        self.uses.insert(key, Use { attachment, container, has_ended: false, goes: false, ..one });
        Ok(())
    }

    /// Somebody removes it: nobody else has it until [`Uses::removed`].
    ///
    /// # Errors
    /// Who has it.
    pub fn remove(&mut self, key: Key) -> Result<(), Taken> {
        if let Some(other) = self.uses.get(&key) {
            return Err(other.taken());
        }
        self.uses.insert(key, Use::removed());
        Ok(())
    }

    /// It has no name any more.
    pub fn removed(&mut self, key: &Key) {
        if self.uses.get(key).is_some_and(|one| one.is_removed) {
            self.uses.remove(key);
        }
    }

    /// It was found, and no record says whose it is: it may drain somewhere. `goes`: nobody was told of it.
    pub fn find(&mut self, key: Key, attachment: String, goes: bool) {
        let found = Use { attachment: Some(attachment), has_ended: true, goes, ..Use::default() };
        self.uses.entry(key).or_insert(found);
    }

    /// It has another name now.
    pub fn rename(&mut self, from: &Key, to: &Key) {
        if let Some(one) = self.uses.remove(from) {
            self.uses.insert(to.clone(), one);
        }
    }

    /// The attachment does not have it, whatever it claimed; what is another's by now stays that.
    pub fn release(&mut self, key: &Key, attachment: &str) {
        if self.uses.get(key).is_some_and(|one| one.is_of(attachment)) {
            self.uses.remove(key);
        }
    }

    /// The attachment that has it.
    pub fn holder(&self, key: &Key) -> Option<String> {
        self.uses.get(key)?.attachment.clone()
    }

    /// Where it may drain; none when nobody has it, or an attachment that has not ended.
    pub fn drains_in(&self, key: &Key) -> Option<ContainerKey> {
        self.uses.get(key).filter(|one| one.has_ended)?.container.clone()
    }

    /// Somebody reads it: it stays where it is, or gets a name. Gives whose it is, for [`Uses::read_no_more`].
    ///
    /// # Errors
    /// [`Taken::Removed`].
    pub fn read(&mut self, key: &Key) -> Result<Option<String>, Taken> {
        let free = || Use { has_ended: true, ..Use::default() };
        let one = self.uses.entry(key.clone()).or_insert_with(free);
        if one.is_removed {
            return Err(Taken::Removed);
        }
        one.readers += 1;
        Ok(one.attachment.clone())
    }

    /// Whether somebody reads it.
    pub fn is_read(&self, key: &Key) -> bool {
        self.uses.get(key).is_some_and(|one| one.readers > 0)
    }

    /// Nobody does any more. It may have got a name meanwhile.
    pub fn read_no_more(&mut self, key: &Key, attachment: Option<&str>) {
        let is_its = |one: &Use| attachment.is_some_and(|attachment| one.is_of(attachment));
        let renamed = |(_, one): &(&Key, &mut Use)| is_its(one) && one.readers > 0;
        let one = match self.uses.contains_key(key) {
            true => self.uses.get_mut(key),
            false => self.uses.iter_mut().find(renamed).map(|(_, one)| one),
        };
        if let Some(one) = one {
            one.readers = one.readers.saturating_sub(1);
        }
    }

    /// The attachment has ended; `never_was`: it never came to be, and what was made for it goes also where it has a name.
    pub fn end(&mut self, attachment: &str, never_was: bool) {
        for one in self.uses.values_mut().filter(|one| one.is_of(attachment)) {
            (one.has_ended, one.goes) = (true, never_was);
        }
    }

    /// What drains in a container, as its shim says; `None` until it has said so.
    pub fn drains(&mut self, container: &ContainerKey, ids: Option<HashSet<String>>) {
        match ids {
            Some(ids) if ids.is_empty() => _ = self.draining.remove(container),
            ids => _ = self.draining.insert(container.clone(), ids),
        }
    }

    /// Takes out what nobody has any more; gives what of it is to be removed, which nobody has until [`Uses::removed`].
    pub fn free(&mut self) -> Vec<Key> {
        let drains = |one: &Use| {
            let Some(attachment) = &one.attachment else { return false };
            let may = |ids: &Option<HashSet<String>>| ids.as_ref().is_none_or(|ids| ids.contains(attachment));
            match &one.container {
                Some(container) => self.draining.get(container).is_some_and(may),
                None => self.draining.values().any(may),
            }
        };
        let is_free = |one: &Use| one.has_ended && one.readers == 0 && !one.is_removed && !drains(one);
        let free: Vec<(Key, bool)> = self
            .uses
            .iter()
            .filter(|(_, one)| is_free(one))
            .map(|(key, one)| (key.clone(), one.goes || matches!(key, Key::Own(_))))
            .collect();
        for (key, goes) in &free {
            match goes {
                true => self.uses.insert(key.clone(), Use::removed()),
                false => self.uses.remove(key),
            };
        }
        free.into_iter().filter(|(_, goes)| *goes).map(|(key, _)| key).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(id: &str) -> ContainerKey {
        ContainerKey { namespace: "default".into(), id: id.into() }
    }

    fn own(id: &str) -> Key {
        Key::Own(id.into())
    }

    fn ids(ids: &[&str]) -> Option<HashSet<String>> {
        Some(ids.iter().map(|id| (*id).to_owned()).collect())
    }

    #[test]
    fn one_attachment_has_it_until_it_has_ended_and_does_not_drain() {
        let (mut uses, c) = (Uses::default(), container("c"));
        let name = Key::Named("notes".parse().unwrap());
        uses.claim(name.clone(), "1", &c).unwrap();
        uses.claim(name.clone(), "1", &c).unwrap();
        assert_eq!(uses.claim(name.clone(), "2", &c), Err(Taken::By("1 of default/c".into())));
        uses.drains(&c, ids(&["1"]));
        uses.end("1", false);
        assert_eq!(uses.free(), []);
        assert!(uses.claim(name.clone(), "2", &c).is_err());
        uses.drains(&c, ids(&[]));
        assert_eq!(uses.free(), []);
        uses.claim(name.clone(), "2", &c).unwrap();
        uses.end("2", true);
        assert_eq!(uses.free(), [name]);
    }

    #[test]
    fn what_was_found_waits_until_every_shim_has_said_what_drains() {
        let (mut uses, [c, d]) = (Uses::default(), ["c", "d"].map(container));
        uses.drains(&c, None);
        uses.drains(&d, None);
        uses.find(own("1"), "1".into(), false);
        uses.claim(own("2"), "2", &c).unwrap();
        uses.end("2", false);
        uses.drains(&c, ids(&["9"]));
        assert_eq!(uses.free(), [own("2")]);
        uses.drains(&d, ids(&["1"]));
        assert_eq!(uses.free(), []);
        uses.drains(&d, ids(&[]));
        assert_eq!(uses.free(), [own("1")]);
    }

    #[test]
    fn what_is_read_stays() {
        let (mut uses, c) = (Uses::default(), container("c"));
        uses.claim(own("1"), "1", &c).unwrap();
        let whose = uses.read(&own("1")).unwrap();
        // It goes on with what it has.
        uses.claim(own("1"), "1", &c).unwrap();
        uses.end("1", false);
        assert_eq!(uses.free(), []);
        uses.read_no_more(&own("1"), whose.as_deref());
        assert_eq!(uses.free(), [own("1")]);
        let kept = Key::Named("kept".parse().unwrap());
        let whose = uses.read(&kept).unwrap();
        assert_eq!(uses.claim(kept.clone(), "3", &c), Err(Taken::Read));
        assert_eq!((uses.remove(kept.clone()), uses.holder(&kept)), (Err(Taken::Read), None));
        uses.read_no_more(&kept, whose.as_deref());
        assert_eq!(uses.free(), []);
        uses.claim(kept, "3", &c).unwrap();
    }

    #[test]
    fn what_is_removed_is_nobodys_until_it_is_gone() {
        let (mut uses, c) = (Uses::default(), container("c"));
        let name = Key::Named("kept".parse().unwrap());
        uses.claim(name.clone(), "1", &c).unwrap();
        uses.end("1", true);
        assert_eq!(uses.free(), std::slice::from_ref(&name));
        for _ in 0..2 {
            assert_eq!(uses.claim(name.clone(), "2", &c), Err(Taken::Removed));
            assert_eq!(
                (uses.read(&name), uses.remove(name.clone())),
                (Err(Taken::Removed), Err(Taken::Removed))
            );
            assert_eq!((uses.free(), uses.holder(&name)), (vec![], None));
            uses.removed(&name);
            uses.remove(name.clone()).unwrap();
        }
        uses.removed(&name);
        uses.claim(name.clone(), "2", &c).unwrap();
        uses.removed(&name);
        assert_eq!(uses.holder(&name).as_deref(), Some("2"));
    }

    #[test]
    fn what_gets_a_name_while_it_is_read_is_free_afterwards() {
        let (mut uses, c) = (Uses::default(), container("c"));
        let name = Key::Named("kept".parse().unwrap());
        uses.claim(own("1"), "1", &c).unwrap();
        let whose = uses.read(&own("1")).unwrap();
        uses.rename(&own("1"), &name);
        uses.end("1", false);
        uses.free();
        assert!(uses.claim(name.clone(), "2", &c).is_err());
        uses.read_no_more(&own("1"), whose.as_deref());
        uses.free();
        uses.claim(name.clone(), "2", &c).unwrap();
        // It is another's now.
        uses.release(&name, "1");
        assert_eq!(uses.holder(&name).as_deref(), Some("2"));
    }
}
