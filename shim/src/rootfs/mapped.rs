//! Mounts whose files have other owners on the host than in the container: id-mapped ones (`mount_setattr(2)`).
//!
//! All of it is made in a mount namespace of a thread's own, and only the finished mount comes out: the host's shows no
//! step between, and a crash leaves nothing. containerd's own shim makes them in a temporary directory of the host
//! (`core/mount/mount_linux.go`, `prepareIDMappedOverlay`).

use std::path::Path;

use overlayfs_utils::{
    DetachedMount, IdMapping, LayerDir, MountError, NamespaceError, Tree, TreeError, UserNamespaceError,
    attach, in_new_mount_namespace, new_user_namespace,
};
use rustix::{
    io::Errno,
    mount::{MountPropagationFlags, mount_change},
};
use thiserror::Error;

use super::{Plan, RootfsError, apply, place::Place};

/// Why the owners cannot be mapped.
#[derive(Debug, Error)]
pub enum MappedError {
    /// The mapping, as a namespace.
    #[error(transparent)]
    Users(#[from] UserNamespaceError),
    /// The thread.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// The thread's mounts, which must not show in the host's.
    #[error("cannot make the mounts of a new mount namespace private")]
    Private(#[source] Errno),
    /// A directory.
    #[error(transparent)]
    Open(#[from] TreeError),
    /// The mapping, or the mount.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The directory that relative layers are looked up in.
    #[error("cannot change to the layers")]
    Enter(#[source] Errno),
}

/// Makes `inner` on `place` with its owners mapped; with `layers`, those of the layers in that directory. The mounts on
/// the way are made on the root, whatever the place.
///
/// # Errors
/// [`RootfsError`]; then nothing is mounted.
pub fn mount(
    uids: &IdMapping,
    gids: &IdMapping,
    layers: Option<&Path>,
    inner: &Plan,
    place: &Place,
) -> Result<(), RootfsError> {
    let failed = |source: MappedError| RootfsError::Mapped { target: place.to_string(), source };
    let stage = place.root();
    let on_stage = Place::new(stage, "");
    let users = new_user_namespace(uids, gids).map_err(|e| failed(e.into()))?;
    let make = || -> Result<DetachedMount, RootfsError> {
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        mount_change("/", private).map_err(|e| failed(MappedError::Private(e)))?;
        let map = |dir: &Path| -> Result<DetachedMount, MappedError> {
            let tree = Tree::clone_of(&LayerDir::open(dir)?)?;
            Ok(tree.id_mapped(std::os::fd::AsFd::as_fd(&users))?.into_mount())
        };
        let Some(layers) = layers else {
            apply(inner, &on_stage)?;
            return map(stage).map_err(failed);
        };
        // The layers lie under the overlay, where it will be itself: it is made of what is seen before it is there.
        put(&map(layers).map_err(failed)?, stage).map_err(failed)?;
        rustix::process::chdir(stage).map_err(|e| failed(MappedError::Enter(e)))?;
        apply(inner, &on_stage)?;
        let whole = || Ok(Tree::clone_of(&LayerDir::open(stage)?)?.into_mount());
        whole().map_err(failed)
    };
    let made = in_new_mount_namespace(make).map_err(|e| failed(e.into()))??;
    put(&made, place.find()?.path()).map_err(failed)
}

fn put(mount: &DetachedMount, target: &Path) -> Result<(), MappedError> {
    let dir = LayerDir::open(target)?;
    Ok(attach(mount, dir.fd(), target)?)
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{MetadataExt, chown},
        path::Path,
    };

    use super::super::{Mount, Reaper, mount_all, unmount_all};

    /// How many mounts are below a directory: other tests mount too.
    fn mounts_below(dir: &Path) -> usize {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        table.lines().filter(|line| line.contains(&format!(" {}/", dir.display()))).count()
    }

    #[tokio::test]
    async fn privileged_owners_are_mapped_and_the_layers_keep_theirs() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["1/fs", "2/fs", "upper", "work", "rootfs"] {
            fs::create_dir_all(at(name)).unwrap();
        }
        fs::write(at("1/fs/low"), "").unwrap();
        fs::write(at("2/fs/high"), "").unwrap();
        chown(at("2/fs/high"), Some(7), Some(8)).unwrap();
        chown(at("upper"), Some(100_000), Some(200_000)).unwrap();
        let maps = ["uidmap=0:100000:1000".to_owned(), "gidmap=0:200000:1000".to_owned()];
        let lower = format!("lowerdir={}:{}", at("2/fs").display(), at("1/fs").display());
        let upper = format!("upperdir={},workdir={}", at("upper").display(), at("work").display());
        let of = |kind: &str, source: &str, options: &[&str]| Mount {
            kind: kind.into(),
            source: source.into(),
            options: options.iter().map(|o| (*o).to_owned()).chain(maps.clone()).collect(),
            ..Default::default()
        };
        let bound = at("2/fs").display().to_string();
        let target = at("rootfs");
        for (mount, writable) in [
            (of("overlay", "overlay", &[&lower, &upper]), true),
            (of("overlay", "overlay", &[&lower]), false),
            (of("bind", &bound, &["rbind", "rw"]), false),
            (of("bind", &bound, &["rbind", "ro"]), false),
        ] {
            mount_all(std::slice::from_ref(&mount), &target, &Reaper::idle())
                .await
                .expect("this test mounts: run it as root");
            let owner = |name: &str| {
                let seen = fs::metadata(target.join(name)).unwrap();
                (seen.uid(), seen.gid())
            };
            assert_eq!(owner("high"), (100_007, 200_008), "{mount:?}");
            if writable {
                assert_eq!((owner("."), owner("low")), ((100_000, 200_000), (100_000, 200_000)));
                chown(target.join("low"), Some(100_005), Some(200_005)).unwrap();
                assert_eq!(fs::metadata(at("upper/low")).unwrap().uid(), 100_005);
            }
            assert_eq!(mounts_below(dir.path()), 1);
            unmount_all(&target).await.unwrap();
            assert_eq!(mounts_below(dir.path()), 0);
        }
        assert_eq!(fs::metadata(at("2/fs/high")).unwrap().uid(), 7);
        assert_eq!(fs::metadata(at("1/fs/low")).unwrap().uid(), 0);
    }
}
