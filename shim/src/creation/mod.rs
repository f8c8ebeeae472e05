//! Devices of a container that is being created, and what its capsules deny: it is edited into its `config.json`, before the runtime
//! reads it.
//!
//! capsuled is asked, which knows the node's devices, and answers in plain values: `edits` (from the wire, validated), `patch` (pure: a
//! spec with them). Of what attachments bring before the first process, the spec gets what a live container cannot be given; where
//! one can be given no devices at all, it gets everything.
//!
//! What somebody else has put there already, as containerd does with CRI's and `ctr`'s devices, is not put there twice.

mod edits;
mod patch;

use std::path::Path;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    bundle::{Bundle, BundleError, Spec},
    cgroup,
    edits::InvalidEdit,
    node::{self, NodeError},
    seccomp::{Denied, ProfileError, narrow_spec},
};
pub use edits::SpecEdits;
pub use patch::PatchError;

/// Why a container is not created with its devices. Its bundle is as it was.
#[derive(Debug, Error)]
pub enum CreationError {
    /// capsuled refuses, or is away.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// What it answers cannot be understood.
    #[error("capsuled's answer about devices")]
    Edit(#[from] InvalidEdit),
    /// `config.json` cannot be read or written.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// A capsule denies a system call that this shim does not know.
    #[error(
        "capsuled's answer denies the system call {0:?}, which this shim does not know: install the shim of capsuled's release"
    )]
    Call(String),
    /// `config.json` has a filter of no known form.
    #[error("what capsules deny cannot be put into the container's config.json")]
    Profile(#[from] ProfileError),
    /// `config.json` does not take them.
    #[error("the container's devices cannot be put into its config.json")]
    Patch(#[from] PatchError),
}

/// What devices gave a container when it was created, kept in its bundle: its spec outside has nothing of it, and that is what
/// its later processes are described by.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Given {
    /// `process.env` as it was before.
    pub own_env: Vec<String>,
    /// The variables of devices that annotations name. Those of attachments are their records'.
    pub env: Vec<String>,
    /// Likewise.
    pub additional_gids: Vec<u32>,
    /// System calls that the container is denied by attachments.
    #[serde(default)]
    pub denied: Denied,
}

/// What a container asks for.
pub struct Wanted<'a> {
    /// containerd's namespace.
    pub namespace: &'a str,
    /// Its id.
    pub id: &'a str,
    /// What the shim knows of its spec.
    pub spec: &'a Spec,
    /// It is given attachments before its first process.
    pub takes_attachments: bool,
    /// There are some that its last task had.
    pub has_kept: bool,
}

/// Edits what devices ask for into the spec of `bundle`. Whether it has, or would have, what only a spec can give.
///
/// # Errors
/// [`CreationError`]; then the bundle is as it was.
pub async fn edit(bundle: &Bundle, wanted: Wanted<'_>) -> Result<bool, CreationError> {
    let Wanted { namespace, id, spec, takes_attachments, has_kept } = wanted;
    let devices = spec.named_devices();
    let named = spec.named_attachments().filter(|_| takes_attachments);
    if devices.is_empty() && named.is_none() && !(takes_attachments && has_kept) {
        return Ok(false);
    }
    let Some(answer) = node::devices_at_creation(namespace, id, &devices, named, takes_attachments).await?
    else {
        return Ok(false);
    };
    let denied = Denied::parse(answer.denied_calls).map_err(CreationError::Call)?;
    let own = SpecEdits::parse(answer.own.into_option().unwrap_or_default())?;
    let attached = SpecEdits::parse(answer.attached.into_option().unwrap_or_default())?;
    let lives = cgroup::is_unified() && !spec.has_user_namespace();
    let attached = if lives { attached.beyond_live() } else { attached };
    if own == SpecEdits::default() && attached == SpecEdits::default() && denied.is_empty() {
        return Ok(true);
    }
    let mut config = bundle.read_config()?;
    let given = Given {
        own_env: patch::env_of(&config),
        env: own.env.clone(),
        additional_gids: own.additional_gids.clone(),
        denied: denied.clone(),
    };
    for edits in [&attached, &own] {
        patch::apply(&mut config, edits)?;
    }
    if !denied.is_empty() {
        narrow_spec(&mut config, &denied)?;
    }
    bundle.write_given(&given)?;
    bundle.write_config(&config)?;
    log::info!(
        "container {id}: its spec has {} of its devices, and denies {} system calls",
        own.summary(&attached),
        denied.len()
    );
    Ok(true)
}

/// What devices gave the container of `bundle` when it was created; nothing where they gave nothing.
///
/// # Errors
/// [`BundleError`].
pub fn given(bundle: &Path) -> Result<Option<Given>, BundleError> {
    Bundle::new(&bundle.display().to_string())?.read_given()
}
