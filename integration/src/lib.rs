//! The test bed: real containerd on a real kernel, in two kinds of machine that have one API.
//!
//! | room | what lives there | what it may touch |
//! | --- | --- | --- |
//! | [`workspace`] | where things are on the host, locks | paths below `target/` |
//! | [`rootfs`] | Debian root file systems | `mmdebstrap`, `target/rootfs` |
//! | [`apt`] | Debian packages | apt's client, folders it is given |
//! | [`capsules`] | real input: two releases of `tzdata`, a tree of debugging tools | apt's client, `target/capsules` |
//! | [`criu`] | the program that checkpoints | mmdebstrap, `target/criu` |
//! | [`images`] | OCI images, made here: of one layer and of very many | `rustc`, `gzip`, `target/images` |
//! | [`peers`] | other snapshotters, to compare ours with | apt's client, `target/peers` |
//! | [`go`] | Debian's Go, which builds what Debian has no package of | mmdebstrap, folders it is given |
//! | [`nerdctl`] | the client nerdctl, built from its module | Go and its module proxy, apt's client, `target/nerdctl` |
//! | [`packages`] | our own Debian package, made by the Makefile | `target/packages` |
//! | [`kubernetes`] | a cluster's programs and a node's, built as tools of a module | Go and its module proxy, apt's client, `target/kubernetes` |
//! | [`payload`] | what a machine is given: programs, images, capsule trees | `target/payload` |
//! | [`native`] | a machine of private namespaces on this kernel | namespaces, cgroups below its own |
//! | [`vm`] | a machine of its own kernel | qemu |
//! | [`machine`] | one API for both | |
//! | [`trees`] | whole trees of files, compared | files it reads |
//! | [`event`] | what a scenario reports, line by line | |
//! | [`power`] | power cuts: a VM whose disk forgets what was not flushed | qemu, loop devices in a mount namespace |
//! | [`scenario`] | what is done *inside* a machine, as a user would do it | that machine only |
//! | [`bench`] | the benchmark's table | `target/bench.*` |
//! | [`narrate`] | events as a person wants to read them | standard output |
//!
//! A scenario runs inside the machine and never learns which kind it is in. Nothing here has `unsafe`: namespaces
//! are entered by re-executing the test bed's own binary below `unshare(1)`.

pub mod apt;
pub mod bench;
pub mod capsules;
pub mod criu;
pub mod event;
pub mod go;
pub mod image;
pub mod images;
pub mod kubernetes;
pub mod machine;
pub mod narrate;
pub mod native;
pub mod nerdctl;
pub mod packages;
pub mod payload;
pub mod peers;
pub mod power;
pub mod rootfs;
pub mod scenario;
pub mod trees;
pub mod vm;
pub mod workspace;
