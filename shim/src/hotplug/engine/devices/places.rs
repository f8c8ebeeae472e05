//! Where devices' nodes and files go in a container.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use overlayfs_utils::{
    ContainerPath, ContainerRoot, CreatedFile, DetachedMount, FileThere, MountPoint, NodeSpec, ResolveError,
    SuperBlock,
};

use crate::hotplug::{
    edits::{Bind, Node},
    error::EngineError,
    journal::{DeviceRecord, Mounted},
    scene::Scene,
};

/// Of nodes for which neither the spec nor the host's own says one, as runc has it.
const DEFAULT_MODE: u32 = 0o666;

/// A file or directory of a container, held open until something is mounted on it.
#[derive(Debug)]
pub(super) struct Target(OwnedFd);

impl Target {
    /// The file at `path`, whose parent has no links.
    pub(super) fn find(root: &ContainerRoot, path: &ContainerPath) -> Result<Self, EngineError> {
        match root.file_at(path)? {
            FileThere::Present { fd, .. } => Ok(Self(fd)),
            FileThere::Link => Err(ResolveError::Link(path.clone()).into()),
            FileThere::Missing => Err(ResolveError::Missing(path.clone()).into()),
        }
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A mount, and its place.
#[derive(Debug)]
pub(super) struct Placed {
    pub(super) mount: DetachedMount,
    pub(super) point: MountPoint,
    pub(super) target: Target,
    pub(super) mounted: Mounted,
}

/// Makes the nodes that are not another attachment's already. `record` knows of each that is made, also after an error.
pub(super) fn make_nodes(
    scene: &Scene,
    record: &mut DeviceRecord,
    user: (u32, u32),
) -> Result<(), EngineError> {
    for node in record.edits.nodes.clone() {
        let path = make_parent(scene, record, &node.path)?;
        if let Some(shared) = shared_node(scene, record, &node, &path) {
            record.nodes.push(shared);
            continue;
        }
        let spec = NodeSpec {
            kind: node.kind.file_type(),
            major: node.major,
            minor: node.minor,
            mode: node.mode.unwrap_or(DEFAULT_MODE),
            owner: (node.uid.unwrap_or(user.0), node.gid.unwrap_or(user.1)),
        };
        record.nodes.push(scene.task.root().make_node(&path, &spec)?);
    }
    Ok(())
}

/// The same node, as another attachment has it.
fn shared_node(
    scene: &Scene,
    record: &DeviceRecord,
    node: &Node,
    path: &ContainerPath,
) -> Option<CreatedFile> {
    let others = scene.journal.devices.iter().filter(|other| other.id != record.id);
    let mut pairs = others.flat_map(|other| other.edits.nodes.iter().zip(&other.nodes));
    let is_it = |(theirs, made): &(&Node, &CreatedFile)| {
        made.path == *path && *theirs == node && scene.task.root().has_file(made)
    };
    pairs.find(is_it).map(|(_, made)| made.clone())
}

/// Makes the directories above `path`; the path without links.
fn make_parent(
    scene: &Scene,
    record: &mut DeviceRecord,
    path: &ContainerPath,
) -> Result<ContainerPath, EngineError> {
    let Some((parent, name)) = path.split() else { return Err(ResolveError::Exists(path.clone()).into()) };
    let (dir, made) = scene.task.root().make_dirs(&parent)?;
    record.created.extend(made);
    dir.path().join(name).map_err(|_| ResolveError::Unstable(path.clone()).into())
}

/// Finds or makes the places of mounts. `record` has all that are to be there, and what was made for them.
pub(super) fn place_all(
    scene: &Scene,
    record: &mut DeviceRecord,
    mounts: Vec<DetachedMount>,
) -> Result<Vec<Placed>, EngineError> {
    let mut placed = Vec::with_capacity(mounts.len());
    for (bind, mount) in record.edits.mounts.clone().into_iter().zip(mounts) {
        let path = make_parent(scene, record, &bind.target)?;
        if let Some((mounted, placeholders)) = shared_mount(scene, record, &bind, &path)? {
            record.mounts.push(mounted);
            record.placeholders.extend(placeholders);
            continue;
        }
        let target = make_target(scene, record, &path, &mount)?;
        let point = scene.task.root().mount_point(&path)?;
        let mounted = Mounted { path, block: SuperBlock::of(mount.fd())?, alone: true };
        record.mounts.push(mounted.clone());
        placed.push(Placed { mount, point, target, mounted });
    }
    Ok(placed)
}

/// The same mount, as another attachment has it, and the file that was made to put it on.
fn shared_mount(
    scene: &Scene,
    record: &DeviceRecord,
    bind: &Bind,
    path: &ContainerPath,
) -> Result<Option<(Mounted, Vec<CreatedFile>)>, EngineError> {
    for other in scene.journal.devices.iter().filter(|other| other.id != record.id) {
        for (theirs, mounted) in other.edits.mounts.iter().zip(&other.mounts) {
            if mounted.path == *path && theirs == bind && scene.is_there(mounted)? {
                let on = other.placeholders.iter().filter(|file| file.path == *path).cloned();
                return Ok(Some((mounted.clone(), on.collect())));
            }
        }
    }
    Ok(None)
}

/// What `mount` is put on: what is there, if it is a file for a file or a directory for a directory, and not a mount.
fn make_target(
    scene: &Scene,
    record: &mut DeviceRecord,
    path: &ContainerPath,
    mount: &DetachedMount,
) -> Result<Target, EngineError> {
    let root = scene.task.root();
    let is_dir = mount.is_directory().map_err(|source| ResolveError::Kernel {
        step: "look at what is to be mounted on",
        path: path.clone(),
        source,
    })?;
    match root.file_at(path)? {
        FileThere::Present { mounted: true, .. } => {
            let by = scene.read_mounts()?.top_at(path.as_ref()).map(|entry| scene.name_mount(entry));
            Err(EngineError::Occupied { path: path.clone(), by: by.unwrap_or_default() })
        }
        FileThere::Present { fd, directory, .. } if directory == is_dir => Ok(Target(fd)),
        FileThere::Present { directory: true, .. } => Err(ResolveError::Exists(path.clone()).into()),
        FileThere::Present { .. } => Err(ResolveError::NotADirectory(path.clone()).into()),
        FileThere::Link => Err(ResolveError::Link(path.clone()).into()),
        FileThere::Missing if is_dir => {
            let (_, made) = root.make_dirs(path)?;
            record.created.extend(made);
            Target::find(root, path)
        }
        FileThere::Missing => {
            record.placeholders.push(root.make_file(path)?);
            Target::find(root, path)
        }
    }
}
