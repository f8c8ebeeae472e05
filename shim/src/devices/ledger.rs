//! Which attachment of a container wants which devices. Pure; the shim's journal keeps it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::rules::{Access, Device, Grant};

/// What all attachments together allow: each device once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Grants(BTreeMap<Device, Access>);

impl Grants {
    /// Adds one; of a device that is there already, the accesses add up.
    pub fn add(&mut self, grant: Grant) {
        if !grant.access.is_empty() {
            let held = self.0.entry(grant.device).or_insert(Access::NONE);
            *held = held.union(grant.access);
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = Grant> {
        self.0.iter().map(|(device, access)| Grant { device: *device, access: *access })
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<Grant> for Grants {
    fn from_iter<I: IntoIterator<Item = Grant>>(grants: I) -> Self {
        let mut all = Self::default();
        grants.into_iter().for_each(|grant| all.add(grant));
        all
    }
}

/// The devices of each attachment that is there. What the container may open by its own rules is none of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Ledger(BTreeMap<String, Vec<Grant>>);

impl Ledger {
    /// With what an attachment wants, instead of what it had.
    #[must_use]
    pub fn with(&self, attachment: &str, grants: Vec<Grant>) -> Self {
        let mut next = self.clone();
        next.0.insert(attachment.to_owned(), grants);
        next
    }

    /// Without an attachment.
    #[must_use]
    pub fn without(&self, attachment: &str) -> Self {
        let mut next = self.clone();
        next.0.remove(attachment);
        next
    }

    /// What all want together.
    pub fn wanted(&self) -> Grants {
        self.0.values().flatten().copied().collect()
    }

    /// Which attachments have a device.
    pub fn users(&self, device: Device) -> impl Iterator<Item = &str> {
        let has = move |grants: &Vec<Grant>| grants.iter().any(|grant| grant.device == device);
        self.0.iter().filter(move |(_, grants)| has(grants)).map(|(attachment, _)| attachment.as_str())
    }
}
