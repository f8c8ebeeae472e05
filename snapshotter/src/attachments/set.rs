//! Sets: what a call asks for, with all that it requires, and where each of it goes.

use std::collections::{BTreeMap, BTreeSet};

use overlayfs_utils::ContainerPath;

use super::{
    AttachSpec, Attachments,
    containers::Wanted as WantedContainer,
    error::AttachmentError,
    model::Attachment,
    plan::{self, Wanted},
    unmet::{Holding, unmet},
};
use crate::{
    capsules::{
        CapsuleError, Resolved,
        model::{CapsuleName, Mode, Version},
        requirement::Requirement,
        set::{Member, Present},
    },
    resources, uppers,
};

/// One attachment of a set, to be made or there already.
#[derive(Debug, Clone)]
pub struct Planned {
    /// The version.
    pub version: Resolved,
    /// Where.
    pub target: ContainerPath,
    /// How.
    pub mode: Mode,
    /// What it is to write to; none for one that is read-only.
    pub writable: Option<uppers::Wanted>,
    /// What it is to do to the container's limits, over what the version says.
    pub resources: resources::Wanted,
    /// The entry of the container's annotation that it is, if it is one.
    pub named: Option<String>,
    /// The container has it, and it is not asked for.
    pub present: bool,
    /// What of the set requires it.
    pub required_by: Vec<CapsuleName>,
    /// What it takes the place of.
    pub from: Option<Version>,
}

impl Attachments {
    /// What [`Attachments::attach`] would do with a container, or with one that has nothing. Changes nothing.
    ///
    /// # Errors
    /// As [`Attachments::attach`], but for what only the container's shim knows.
    pub async fn plan(
        &self,
        container: Option<&WantedContainer>,
        specs: &[AttachSpec],
    ) -> Result<Vec<Planned>, AttachmentError> {
        let existing = match container {
            Some(wanted) => self.records.shown(&self.containers.find(wanted).await?),
            None => Vec::new(),
        };
        self.plan_set(specs, &existing).await
    }

    pub(super) async fn plan_set(
        &self,
        specs: &[AttachSpec],
        existing: &[Attachment],
    ) -> Result<Vec<Planned>, AttachmentError> {
        if specs.is_empty() {
            return Err(AttachmentError::NoSpecs);
        }
        let present = present(existing);
        let specs = &self.settle_tags(specs).await?;
        let wanted: Vec<_> = specs.iter().map(|spec| (spec.capsule.clone(), spec.version.clone())).collect();
        let mut left: Vec<&AttachSpec> = specs.iter().collect();
        let mut planned = Vec::new();
        let members = self.capsules.resolve_set(&wanted, &present).await?;
        let mut newest: BTreeMap<CapsuleName, Version> = BTreeMap::new();
        for Member { version: Resolved { name, version, .. }, .. } in &members {
            let highest = newest.entry(name.clone()).or_insert_with(|| version.clone());
            *highest = version.max(highest).clone();
        }
        for member in members {
            if !specs.iter().any(|spec| spec.capsule == member.version.name) {
                planned.push(place_required(member, existing)?);
                continue;
            }
            let (of_it, others) = left.into_iter().partition(|spec| asks_for(spec, &member.version, &newest));
            left = others;
            for spec in of_it {
                let has = existing
                    .iter()
                    .any(|a| a.capsule == member.version.name && a.current.version == member.version.version);
                planned.push(Planned { present: has && spec.unless_present, ..place(&member, spec)? });
            }
        }
        Ok(planned)
    }

    /// With the version in place of a tag.
    pub(super) async fn settle_tags(&self, specs: &[AttachSpec]) -> Result<Vec<AttachSpec>, AttachmentError> {
        let mut settled = specs.to_vec();
        for spec in &mut settled {
            if let Some(version) = &mut spec.version {
                *version = self.capsules.resolve(&spec.capsule, Some(version)).await?.version;
            }
        }
        Ok(settled)
    }

    /// Refuses a change after which something lacks what it requires. `moved`: attachments and the version they are to have;
    /// nothing for those that go. `new`: what comes.
    pub(super) fn check_requirements(
        &self,
        existing: &[Attachment],
        moved: &[(&Attachment, Option<&Version>)],
        new: &[Attachment],
    ) -> Result<(), AttachmentError> {
        let before = self.holdings(existing);
        let after = existing.iter().zip(&before).filter_map(|(a, held)| {
            match moved.iter().find(|(m, _)| m.id == a.id) {
                Some((_, version)) => version.map(|version| self.holding(a, version)),
                None => Some(held.clone()),
            }
        });
        let after: Vec<Holding> = after.chain(self.holdings(new)).collect();
        match unmet(&before, &after) {
            Some((holding, requirement)) => Err(AttachmentError::Unmet {
                container: existing.first().map(|a| a.container.to_string()).unwrap_or_default(),
                label: format!("{}@{}", holding.capsule, holding.version),
                requirement: requirement.to_string(),
            }),
            None => Ok(()),
        }
    }

    /// For each attachment of a container, the capsules there that require it.
    pub(super) fn requirers(&self, all: &[Attachment]) -> Vec<Vec<CapsuleName>> {
        let holdings = self.holdings(all);
        let of = |required: &Holding| {
            let requires = |other: &&Holding| {
                let meant =
                    |r: &Requirement| r.name == required.capsule && r.versions.contains(&required.version);
                other.requires.iter().any(meant)
            };
            let names: BTreeSet<_> = holdings.iter().filter(requires).map(|h| h.capsule.clone()).collect();
            names.into_iter().collect()
        };
        holdings.iter().map(of).collect()
    }

    fn holdings(&self, all: &[Attachment]) -> Vec<Holding> {
        all.iter().map(|a| self.holding(a, &a.current.version)).collect()
    }

    /// One whose image is gone requires nothing that is known.
    fn holding(&self, attachment: &Attachment, version: &Version) -> Holding {
        let published = self.capsules.catalogue().find(&attachment.capsule, Some(version));
        let image = published.ok().and_then(|published| published.image.ok());
        let declared = image.and_then(|image| image.declared().ok());
        Holding {
            capsule: attachment.capsule.clone(),
            version: version.clone(),
            requires: declared.map(|declared| declared.requires).unwrap_or_default(),
        }
    }
}

/// The versions that a container has.
pub(super) fn present(existing: &[Attachment]) -> Present {
    let mut present = Present::new();
    for attachment in existing.iter().filter(|attachment| attachment.has_capsule()) {
        present.entry(attachment.capsule.clone()).or_default().insert(attachment.current.version.clone());
    }
    present
}

/// An entry that names no version asks for the highest, whatever another entry of the capsule names.
fn asks_for(spec: &AttachSpec, version: &Resolved, newest: &BTreeMap<CapsuleName, Version>) -> bool {
    let asked = spec.version.as_ref().or_else(|| newest.get(&spec.capsule));
    spec.capsule == version.name && asked == Some(&version.version)
}

fn place(member: &Member, spec: &AttachSpec) -> Result<Planned, AttachmentError> {
    let version = &member.version;
    if let Some(wanted) = spec.digest.as_ref().filter(|wanted| **wanted != version.digest) {
        return Err(AttachmentError::Capsule(CapsuleError::OtherDigest {
            name: version.name.clone(),
            version: version.version.clone(),
            found: version.digest.clone(),
            wanted: wanted.clone(),
        }));
    }
    let target = spec.target.as_deref().map(ContainerPath::parse).transpose()?;
    let wanted = Wanted { version: version.clone(), target, mode: spec.mode };
    let (target, mode) = plan::plan_place(&wanted)?;
    Ok(Planned {
        version: wanted.version,
        target,
        mode,
        writable: spec.writable.clone(),
        resources: spec.resources.clone(),
        named: spec.named.clone(),
        present: false,
        required_by: member.required_by.clone(),
        from: None,
    })
}

/// What nobody asked for goes where it says itself, or is where it is.
pub(super) fn place_required(member: Member, existing: &[Attachment]) -> Result<Planned, AttachmentError> {
    let Member { version, present, required_by } = member;
    let there = existing
        .iter()
        .find(|a| present && a.capsule == version.name && a.current.version == version.version);
    let (target, mode) = match there {
        Some(attachment) => (ContainerPath::parse(&attachment.target)?, attachment.mode),
        None => {
            let wanted = Wanted { version: version.clone(), target: None, mode: None };
            plan::plan_place(&wanted).map_err(|error| match error {
                AttachmentError::NoTarget { capsule } => AttachmentError::NoTargetOfRequired {
                    capsule,
                    by: required_by.first().map(ToString::to_string).unwrap_or_default(),
                },
                other => other,
            })?
        }
    };
    let (writable, resources, named, from) = Default::default();
    Ok(Planned { version, target, mode, writable, resources, named, present, required_by, from })
}
