//! Looking at volumes.

use overlayfs_utils::ContainerPath;

use super::{
    VolumeError,
    engine::Volumes,
    model::{Record, Volume, VolumeId},
    node::Node,
};

/// How full what is written is: in bytes and in files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Room {
    /// Bytes: of all, free, used.
    pub bytes: [u64; 3],
    /// Files, likewise.
    pub files: [u64; 3],
}

impl Volumes {
    /// All volumes, by their ids. Blocks.
    ///
    /// # Errors
    /// [`VolumeError`].
    pub fn list(&self) -> Result<Vec<Volume>, VolumeError> {
        let records = self.all();
        let written = self.0.uppers.volumes()?;
        let mut all: Vec<Volume> = Vec::new();
        for (id, about) in &written {
            let record = records.iter().find(|record| record.id == *id);
            all.push(Volume::of(id, record, about.as_ref()).unwrap_or_else(|| Volume::new(id)));
        }
        let others = records.iter().filter(|record| !written.iter().any(|(id, _)| *id == record.id));
        all.extend(others.filter_map(|record| Volume::of(&record.id, Some(record), None)));
        all.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(all)
    }

    /// A volume, how full it is, and what is wrong with it at a path, or wherever it should be mounted. Blocks.
    ///
    /// # Errors
    /// [`VolumeError::Unknown`].
    pub fn stat(
        &self,
        id: &VolumeId,
        path: Option<&ContainerPath>,
    ) -> Result<(Volume, Room, Option<String>), VolumeError> {
        let about = self.0.uppers.volume(id)?.map(|(about, _)| about);
        let record = self.record(id);
        let volume = Volume::of(id, record.as_ref(), about.as_ref());
        let volume = volume.ok_or_else(|| VolumeError::Unknown(id.clone()))?;
        let node = Node::open()?;
        let paths: Vec<ContainerPath> = match path {
            Some(path) => vec![node.canonical(id, path)?],
            None => volume.paths.clone(),
        };
        let mut room = Room::default();
        let mut trouble = None;
        for path in &paths {
            match wrong(&node, id, record.as_ref(), path)? {
                Some(wrong) => trouble = Some(wrong),
                None if volume.writable => {
                    let stat = node.statvfs(id, path)?;
                    room = Room {
                        bytes: of(stat.f_blocks, stat.f_bavail, stat.f_bfree, stat.f_frsize),
                        files: of(stat.f_files, stat.f_favail, stat.f_ffree, 1),
                    };
                }
                None => {}
            }
        }
        Ok((volume, room, trouble))
    }
}

fn of(all: u64, available: u64, free: u64, unit: u64) -> [u64; 3] {
    [all.saturating_mul(unit), available.saturating_mul(unit), all.saturating_sub(free).saturating_mul(unit)]
}

fn wrong(
    node: &Node,
    id: &VolumeId,
    record: Option<&Record>,
    path: &ContainerPath,
) -> Result<Option<String>, VolumeError> {
    let on_record = record.is_some_and(|record| record.paths.iter().any(|at| at.path == *path));
    if !on_record {
        return Ok(Some(format!("it is not mounted at {path}")));
    }
    let current = record.and_then(|record| record.generations.last()).map(|one| one.block.device);
    Ok(match node.block_at(id, path)? {
        Some(block) if Some(block.device) == current => None,
        Some(_) => Some(format!("something else, or another version, is mounted at {path}")),
        None => Some(format!("somebody has unmounted it at {path}: what uses it does not see it")),
    })
}
