//! OCI images, made here: nothing is pulled from a registry.
//!
//! | room | what lives there | what it may touch |
//! | --- | --- | --- |
//! | [`layer`] | a layer's archive, with every kind of file | memory |
//! | [`oci`] | layers to an image's archive | the file it writes |
//! | [`busybox`] | the test container's image | `rustc` |
//! | [`deep`] | layers of images with very many of them | memory |

pub mod busybox;
pub mod deep;
pub mod layer;
pub mod oci;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

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
}

/// What every image is made by: an image is made anew when it changes.
const SOURCES: [&str; 2] = [include_str!("layer.rs"), include_str!("oci.rs")];

impl Image {
    /// All there are.
    pub const ALL: [Self; 3] = [Self::Busybox, Self::Forty, Self::Deep];

    /// What containerd calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Busybox => "localhost/busybox:latest",
            Self::Forty => "localhost/forty:latest",
            Self::Deep => "localhost/deep:latest",
        }
    }

    /// The archive's file name.
    pub fn file(self) -> &'static str {
        match self {
            Self::Busybox => "busybox.tar",
            Self::Forty => "forty.tar",
            Self::Deep => "deep.tar",
        }
    }

    /// The archive as a machine sees it.
    pub fn in_machine(self) -> PathBuf {
        Path::new("/payload/images").join(self.file())
    }

    /// How many layers it has.
    pub fn layers(self) -> usize {
        match self {
            Self::Busybox => 1,
            Self::Forty => 40,
            Self::Deep => 140,
        }
    }

    /// The images that a scenario is given.
    pub fn needed_by(scenario: &str) -> &'static [Self] {
        match scenario {
            "images" => &[Self::Busybox, Self::Deep],
            _ => &[Self::Busybox],
        }
    }

    /// The archive on the host; made when it is not there.
    pub fn ready(self, workspace: &Workspace) -> Result<PathBuf> {
        let folder = match self {
            Self::Busybox => busybox::ready(workspace)?,
            Self::Forty => self.on_busybox(workspace, deep::sizable)?,
            Self::Deep => self.on_busybox(workspace, deep::tiny)?,
        };
        Ok(folder.join(self.file()))
    }

    /// All layers but the first by `layer`, which is given their numbers.
    fn on_busybox(self, workspace: &Workspace, layer: fn(usize) -> Vec<layer::Entry>) -> Result<PathBuf> {
        let base = busybox::ready(workspace)?;
        let recipe = format!("{} {} {} {SOURCES:?}", self.layers(), base.display(), include_str!("deep.rs"));
        workspace.cached("images", self.file().trim_end_matches(".tar"), &recipe, |folder| {
            fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
            let mut layers = vec![busybox::layer(workspace, &base)?];
            layers.extend((1..self.layers()).map(layer));
            oci::write(&folder.join(self.file()), self.name(), &layers)
        })
    }
}
