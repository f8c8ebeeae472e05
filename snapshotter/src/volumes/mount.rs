//! Mounting: at a path of the node that is free, of what is mounted elsewhere or built anew.

use std::{path::Path, time::SystemTime};

use overlayfs_utils::{ContainerPath, DetachedMount, SuperBlock};

use super::{
    VolumeError,
    build::{build, source},
    engine::{Built, Volumes, owner},
    model::{At, Generation, Record, Spec, Volume, VolumeId},
    node::Node,
};
use crate::{
    capsules::Resolved,
    uppers::model::{About, Over, Place},
};

impl Volumes {
    /// Mounts one at a path of the node.
    ///
    /// # Errors
    /// [`VolumeError`]; then nothing is mounted that was not.
    pub async fn mount(
        &self,
        spec: &Spec,
        path: &ContainerPath,
        read_only: bool,
        ephemeral: bool,
    ) -> Result<Volume, VolumeError> {
        let _own = self.lock(&spec.id).await;
        if let Some(volume) = self.find(&spec.id).await? {
            check_same(spec, &volume)?;
        }
        let (id, asked) = (spec.id.clone(), path.clone());
        let path = self.blocking(&spec.id, move |this| this.free_path(&id, &asked)).await?;
        let at = At { path, read_only };
        let record = self.record(&spec.id);
        let there = record.iter().flat_map(|record| &record.paths).find(|other| other.path == at.path);
        if let Some(there) = there {
            if spec.writable && there.read_only != at.read_only {
                let how = if there.read_only { "only read" } else { "written to" };
                let how = format!("is mounted at {}, to be {how} there", there.path);
                return Err(VolumeError::Exists { id: spec.id.clone(), how });
            }
            return self.known(&spec.id).await;
        }
        let (again, id, place) = (record.clone(), spec.id.clone(), at.clone());
        let is_there = self.blocking(&spec.id, move |this| match again {
            Some(record) => this.mount_again(&id, record, place),
            None => Ok(false),
        });
        if !is_there.await? {
            if record.as_ref().is_some_and(|record| record.writable) {
                return Err(VolumeError::InUse(spec.id.clone()));
            }
            let is_new = record.is_none();
            let mounted = self.mount_first(spec, record, at, ephemeral).await;
            if mounted.is_err() && is_new && ephemeral && spec.writable && self.record(&spec.id).is_none() {
                let id = spec.id.clone();
                let removed =
                    self.blocking(&spec.id, move |this| Ok(this.0.uppers.remove_volume(&id)?)).await;
                if let Err(error) = removed {
                    // The next start removes it. Why it is not mounted is what the caller is told.
                    tracing::warn!(id = %spec.id, %error, "what was made for an ephemeral volume stays");
                }
            }
            mounted?;
        }
        self.known(&spec.id).await
    }

    /// The path without links, where it is free, or has a mount of this volume's that is on record. Of one that an earlier run has forgotten
    /// it is freed.
    fn free_path(&self, id: &VolumeId, path: &ContainerPath) -> Result<ContainerPath, VolumeError> {
        let node = Node::open()?;
        let path = node.canonical(id, path)?;
        self.check_path(&path)?;
        if self.record(id).is_some_and(|record| record.paths.is_empty()) {
            self.prune(id)?;
        }
        let known = self.record(id);
        let is_recorded = known.iter().flat_map(|record| &record.paths).any(|at| at.path == path);
        let Some(block) = node.block_at(id, &path)? else {
            if is_recorded {
                // Somebody else has unmounted it.
                self.forget(id, &path)?;
            }
            return Ok(path);
        };
        let is_ours = |one: &Generation| one.block.device == block.device;
        if is_recorded && known.iter().flat_map(|record| &record.generations).any(is_ours) {
            return Ok(path);
        }
        let devices = node.devices_at(id, &path)?;
        if devices.is_empty() || node.detach(id, &path, &devices)?.is_empty() {
            return Err(VolumeError::Occupied(path.as_ref().to_owned()));
        }
        Ok(path)
    }

    /// Mounts once more what is mounted elsewhere; false when it is nowhere.
    fn mount_again(&self, id: &VolumeId, mut record: Record, at: At) -> Result<bool, VolumeError> {
        let Some(current) = record.generations.last().map(|one| one.block.device) else { return Ok(false) };
        let node = Node::open()?;
        for other in record.paths.clone() {
            if node.block_at(id, &other.path)?.is_none_or(|block| block.device != current) {
                continue;
            }
            let Some(mount) = node.clone_below(id, &other.path, Path::new(""))? else { continue };
            self.attach(&node, &mount, &mut record, at)?;
            return Ok(true);
        }
        Ok(false)
    }

    /// Mounts it where it is mounted nowhere.
    async fn mount_first(
        &self,
        spec: &Spec,
        record: Option<Record>,
        at: At,
        ephemeral: bool,
    ) -> Result<(), VolumeError> {
        let written = if spec.writable { Some(self.written(spec, ephemeral).await?) } else { None };
        let wanted = match (&written, &record) {
            (Some((about, _)), _) => about.over.clone(),
            // One that is mounted nowhere has what is asked for.
            (None, Some(record)) if !record.paths.is_empty() => record.over().cloned(),
            (None, _) => None,
        };
        let version = match (&spec.capsule, wanted) {
            (None, _) => None,
            (Some(capsule), Some(over)) => Some(self.0.capsules.resolve(capsule, Some(&over.version)).await?),
            (Some(capsule), None) => Some(self.0.capsules.resolve(capsule, spec.version.as_ref()).await?),
        };
        let record = record.unwrap_or_else(|| Record {
            id: spec.id.clone(),
            capsule: spec.capsule.clone(),
            writable: spec.writable,
            ephemeral,
            since: written.as_ref().map_or_else(SystemTime::now, |(about, _)| about.since),
            generations: Vec::new(),
            paths: Vec::new(),
        });
        let built = self.build(&spec.id, version.as_ref(), written.clone()).await?;
        let over = built.generation.over.clone();
        let about = written.map(|(about, _)| about);
        let attached = self.blocking(&spec.id, move |this| this.attach_written(record, built, at, about));
        let attached = attached.await;
        if attached.is_err() {
            self.let_go(&spec.id, over.as_ref());
        }
        attached
    }

    /// Attaches it, and writes down that its root is as it was to be made, and over which version it is mounted.
    fn attach_written(
        &self,
        record: Record,
        built: Built,
        at: At,
        about: Option<About>,
    ) -> Result<(), VolumeError> {
        let (id, over) = (record.id.clone(), built.generation.over.clone());
        let Some(mut about) = about else { return self.attach_first(record, built, at) };
        if about.pending {
            // Before somebody can change it: it is not to be made so again.
            about.pending = false;
            self.0.uppers.tell_of_volume(&id, &about)?;
        }
        let is_other = about.over != over;
        self.attach_first(record, built, at)?;
        if is_other && let Err(error) = self.0.uppers.tell_of_volume(&id, &About { over, ..about }) {
            tracing::warn!(%id, %error, "over which version it is mounted is not written down");
        }
        Ok(())
    }

    /// What is written to it; made where it goes with its mount.
    async fn written(&self, spec: &Spec, ephemeral: bool) -> Result<(About, Place), VolumeError> {
        let look = || {
            let id = spec.id.clone();
            self.blocking(&spec.id, move |this| Ok(this.0.uppers.volume(&id)?))
        };
        if let Some(there) = look().await? {
            return Ok(there);
        }
        if !ephemeral {
            return Err(VolumeError::NotMade(spec.id.clone()));
        }
        let (size, most) = (self.0.uppers.size_of(spec.size), self.0.ephemeral);
        if size > most {
            return Err(VolumeError::TooLarge { id: spec.id.clone(), size, most });
        }
        let over = self.over(spec).await?;
        self.make(spec, over, true).await?;
        look().await?.ok_or_else(|| VolumeError::NotMade(spec.id.clone()))
    }

    /// Builds its file system; what it has of a version is pinned, until [`Volumes::let_go`].
    pub(super) async fn build(
        &self,
        id: &VolumeId,
        version: Option<&Resolved>,
        written: Option<(About, Place)>,
    ) -> Result<Built, VolumeError> {
        let over = version.map(Over::from);
        let layers = match version {
            Some(version) => self.0.capsules.pin_published(version, &owner(id, over.as_ref())).await,
            None => Ok(Vec::new()),
        };
        let (name, of) = (id.clone(), over.clone());
        let built = match layers {
            Ok(layers) => {
                let building = self.blocking(id, move |this| {
                    let source = source(&name, of.as_ref());
                    let mount = build(&this.means()?, &name, &layers, written.as_ref(), &source)?;
                    let block = SuperBlock::of(mount.fd());
                    let block = block.map_err(|source| VolumeError::Mount { id: name, source })?;
                    Ok(Built { mount, generation: Generation { over: of, block, source, layers } })
                });
                building.await
            }
            Err(error) => Err(error.into()),
        };
        if built.is_err() {
            self.let_go(id, over.as_ref());
        }
        built
    }

    /// Unpins a version, unless it is on record that the volume has it.
    pub(super) fn let_go(&self, id: &VolumeId, over: Option<&Over>) {
        let record = self.record(id);
        let has =
            |one: &Generation| one.over.as_ref().map(|over| &over.digest) == over.map(|over| &over.digest);
        if !record.iter().flat_map(|record| &record.generations).any(has) {
            self.0.snapshots.unpin(&owner(id, over));
        }
    }

    fn attach_first(&self, mut record: Record, built: Built, at: At) -> Result<(), VolumeError> {
        let node = Node::open()?;
        let before = record.clone();
        record.generations.push(built.generation);
        let attached = self.attach(&node, &built.mount, &mut record, at);
        if attached.is_err() {
            self.restore(before);
        }
        attached
    }

    /// Puts the path on record, and attaches there: after a crash, what is on record and not mounted is forgotten.
    fn attach(
        &self,
        node: &Node,
        mount: &DetachedMount,
        record: &mut Record,
        at: At,
    ) -> Result<(), VolumeError> {
        let id = record.id.clone();
        mount.make_private().map_err(|source| VolumeError::Mount { id: id.clone(), source })?;
        if record.writable {
            let set = mount.set_read_only(at.read_only);
            set.map_err(|source| VolumeError::Mount { id: id.clone(), source })?;
        }
        let path = at.path.clone();
        record.paths.push(at);
        self.settle(record.clone())?;
        let attached = node.attach(&id, mount, &path);
        if attached.is_err() {
            record.paths.pop();
            self.restore(record.clone());
        }
        attached
    }
}

/// Refuses what is there and is not as it is asked for. Its version may be another by now.
pub(super) fn check_same(spec: &Spec, there: &Volume) -> Result<(), VolumeError> {
    let refuse = |how: String| Err(VolumeError::Exists { id: spec.id.clone(), how });
    let capsule = there.over.as_ref().map(|over| &over.capsule);
    if capsule != spec.capsule.as_ref() {
        return refuse(
            capsule.map_or_else(|| "is of no capsule".to_owned(), |name| format!("is of the capsule {name}")),
        );
    }
    if there.writable != spec.writable {
        return refuse(if there.writable { "is written to" } else { "is only read" }.to_owned());
    }
    match spec.size {
        Some(size) if Some(size) != there.size => {
            refuse(format!("holds {} bytes", there.size.unwrap_or_default()))
        }
        _ => Ok(()),
    }
}
