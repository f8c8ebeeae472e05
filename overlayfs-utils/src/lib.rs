//! Linux's new mount API made safe, for overlayfs mounts that enter another mount namespace.
//!
//! Everything here yields a *detached* mount, and the attach comes last, so that no path ever shows a half-made
//! mount: [`OverlayPlan`] (pure) → [`DetachedMount`] → [`MountPoint`] in a container, by [`attach`], [`swap`],
//! [`unmount`]. The container is hostile: [`ContainerRoot`] resolves paths so that nothing it planted leads out.
//!
//! | room | what lives there | what it may touch |
//! | --- | --- | --- |
//! | `bind` | files of the host, and a container's root, as detached mounts | the caller's mount namespace, read-only |
//! | `bpf` | device programs of control groups | programs, and which control group has which |
//! | `plan` | which layers make which overlay | nothing: pure |
//! | `context` | filesystem context, and the log the kernel keeps in it | `fsopen`, `fsconfig`, `fsmount` |
//! | `detached` | detached mounts and trees, id-mapping | the caller's mount namespace, read-only |
//! | `loopback` | files as block devices | loop devices that nobody uses |
//! | `image` | file systems in files | the file, and its loop device |
//! | `upper` | what makes an overlay writable | the directory that holds it |
//! | `holders` | who has devices and bound files open | `/proc`, read-only |
//! | `ids` | mappings of ids, as user namespaces | a child process, for a moment |
//! | `stage` | mounts that nobody else sees | a namespace of its own |
//! | `point` | attach, swap, unmount | the mount namespace the calling thread is in |
//! | `namespace` | a thread of its own in another mount namespace or directory | those of its own threads |
//! | `task` | pinning a container's process | `/proc/PID`, read-only |
//! | `path` | absolute paths in a container | nothing: pure |
//! | `file` | device nodes and files to mount on | the container's directories: makes and removes them |
//! | `target` | directories in a container | the container's directories: resolves and makes them |
//! | `mountinfo` | a namespace's mount table | pure parser, and `/proc/PID/mountinfo` |
//! | `trial` | whether a place can hold writable overlays | that place |
//! | `copies` | where else a mount is | `/proc`, read-only |
//! | `users` | who uses a mount | `/proc`, read-only |
//! | `child` | limits of child processes, not of this one | nothing of this process |
//! | `probe` | what this kernel can do | a namespace of its own |
//! | `sys` | the crate's only `unsafe` | raw system calls |
//!
//! Supported kernels and what was measured on them: `docs/kernel-policy.md`.

mod bind;
mod bpf;
mod child;
mod context;
mod copies;
mod detached;
mod error;
mod file;
mod holders;
mod ids;
mod image;
mod loopback;
mod mountinfo;
mod namespace;
mod path;
mod plan;
mod point;
mod probe;
mod stage;
mod sys;
mod target;
mod task;
mod trial;
mod upper;
mod users;

pub use bind::BindOptions;
pub use bpf::{
    Attached, BpfError, BpfStep, DeviceCgroup, DeviceProgram, Instruction, ProgramId, ProgramInfo,
    ProgramTag, Sharing,
};
pub use child::limit_open_files;
pub use copies::{MountCopy, find_copies};
pub use detached::{DetachedMount, LayerDir, LayersBy, Tree, TreeError};
pub use error::{MountError, Step};
pub use file::{CreatedFile, FileThere, NodeSpec};
pub use holders::{Held, find_holders};
pub use ids::{IdMapping, InvalidMapping, UserNamespaceError, in_user_namespace, new_user_namespace};
pub use image::{ImageError, mount_image};
pub use loopback::{LoopDevice, LoopError};
pub use mountinfo::{MountEntry, MountTable, ParseMountInfoError, Propagation, parse_mountinfo};
pub use namespace::{NamespaceError, in_directory, in_mount_namespace, in_new_mount_namespace};
pub use path::{ContainerPath, InvalidPath};
pub use plan::{Lower, OverlayPlan, PlanError};
pub use point::{
    MountId, MountPoint, Unmounted, attach, block_at, clone_at, detach_file_lazily, detach_lazily, dissolve,
    mount_at, swap, unmount,
};
pub use probe::{Features, KernelVersion, ProbeError, probe};
pub use target::{ContainerRoot, Created, ResolveError, Resolved};
pub use task::{PinError, PinnedTask, send_signal};
pub use trial::try_writable_overlay;
pub use upper::{MADE, UPPER, Upper, UpperBase, UpperError, WORK, made_as};
pub use users::{SuperBlock, Usage, User, find_users};
