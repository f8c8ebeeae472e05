//! OCI images, made here: nothing is pulled from a registry.
//!
//! | room | what lives there | what it may touch |
//! | --- | --- | --- |
//! | [`layer`] | a layer's archive, with every kind of file | memory |
//! | [`oci`] | layers to an image's archive | the file it writes |
//! | [`busybox`] | the test container's image | `rustc` |
//! | [`deep`] | layers of images with very many of them | memory |
//! | [`odd`] | layers of what images seldom hold | memory |
//! | [`debian`] | images of Debian packages | apt's client, `dpkg-deb` |

pub mod busybox;
pub mod debian;
pub mod deep;
pub mod layer;
pub mod oci;
pub mod odd;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::scenario::{snapshotters, storage};
use crate::workspace::Workspace;

/// An image that machines can be given. Each is made when it is first needed, and kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Image {
    /// What every test container is made from.
    Busybox,
    /// 40 layers, about 40 MiB, to measure how fast they are unpacked.
    Forty,
    /// 140 layers: more than Docker allows, and a string of directories that no page holds.
    Deep,
    /// What images seldom hold: see [`odd`].
    Odd,
    /// Debian's Python, about 40 layers.
    Python,
    /// Debian's git, about 50 layers, compressed.
    Git,
    /// A small Debian system with `sudo`, `ping` and their set-user bits and capabilities, about 60 layers.
    System,
}

/// What every image is made by: an image is made anew when it changes.
const SOURCES: [&str; 2] = [include_str!("layer.rs"), include_str!("oci.rs")];

impl Image {
    /// All there are.
    pub const ALL: [Self; 7] =
        [Self::Busybox, Self::Forty, Self::Deep, Self::Odd, Self::Python, Self::Git, Self::System];

    /// What containerd calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Busybox => "localhost/busybox:latest",
            Self::Forty => "localhost/forty:latest",
            Self::Deep => "localhost/deep:latest",
            Self::Odd => "localhost/odd:latest",
            Self::Python => "localhost/python:latest",
            Self::Git => "localhost/git:latest",
            Self::System => "localhost/system:latest",
        }
    }

    /// The archive's file name.
    pub fn file(self) -> &'static str {
        match self {
            Self::Busybox => "busybox.tar",
            Self::Forty => "forty.tar",
            Self::Deep => "deep.tar",
            Self::Odd => "odd.tar",
            Self::Python => "python.tar",
            Self::Git => "git.tar",
            Self::System => "system.tar",
        }
    }

    /// The archive as a machine sees it.
    pub fn in_machine(self) -> PathBuf {
        Path::new("/payload/images").join(self.file())
    }

    /// The images that a scenario is given.
    pub fn needed_by(scenario: &str) -> &'static [Self] {
        match scenario {
            "images" => &[Self::Busybox, Self::Deep, Self::Odd, Self::Python, Self::Git, Self::System],
            snapshotters::FULL | snapshotters::QUICK => &[Self::Busybox, Self::Forty],
            storage::FULL => &[Self::Busybox, Self::Python],
            "idmapped" => &[Self::Odd, Self::Deep, Self::System],
            _ => &[Self::Busybox],
        }
    }

    /// The archive on the host; made when it is not there.
    pub fn ready(self, workspace: &Workspace) -> Result<PathBuf> {
        let folder = match self {
            Self::Busybox => busybox::ready(workspace)?,
            Self::Forty => self.on_busybox(workspace, |_| (1..40).map(deep::sizable).collect())?,
            Self::Deep => self.on_busybox(workspace, |_| (1..140).map(deep::tiny).collect())?,
            Self::Odd => self.on_busybox(workspace, odd::layers)?,
            Self::Python | Self::Git | Self::System => debian::ready(workspace)?,
        };
        Ok(folder.join(self.file()))
    }

    /// With busybox as the lowest layer; `above` is given its program.
    fn on_busybox(
        self,
        workspace: &Workspace,
        above: fn(&[u8]) -> Vec<Vec<layer::Entry>>,
    ) -> Result<PathBuf> {
        let base = busybox::ready(workspace)?;
        let sources = [include_str!("mod.rs"), include_str!("deep.rs"), include_str!("odd.rs")];
        let recipe = format!("{} {sources:?}", base.display());
        workspace.cached("images", self.file().trim_end_matches(".tar"), &recipe, |folder| {
            fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
            let mut layers = vec![busybox::layer(workspace, &base)?];
            layers.extend(above(&busybox::program(workspace)?));
            oci::write(&folder.join(self.file()), self.name(), &layers)
        })
    }
}
