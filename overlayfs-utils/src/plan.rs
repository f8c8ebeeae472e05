//! Which layers make which overlay. Pure: nothing here touches the world.

use std::os::fd::BorrowedFd;

use thiserror::Error;

use crate::{
    detached::{LayerDir, Tree},
    upper::Upper,
};

/// Lower layers that one overlay may have (`OVL_MAX_STACK` in `fs/overlayfs/params.h`).
const MAX_LAYERS: usize = 500;

/// One lower layer.
///
/// Open for a second kind, EROFS images mounted from a file (Linux 6.12); nothing outside this crate matches on it.
#[derive(Debug)]
#[non_exhaustive]
pub enum Lower<'a> {
    /// A directory, opened before: no path is looked up again when it is mounted.
    Dir(&'a LayerDir),
    /// A detached tree, perhaps id-mapped.
    Tree(&'a Tree),
}

impl Lower<'_> {
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Dir(dir) => dir.fd(),
            Self::Tree(tree) => tree.fd(),
        }
    }

    pub(crate) fn name(&self) -> String {
        match self {
            Self::Dir(dir) => dir.name(),
            Self::Tree(tree) => tree.name(),
        }
    }
}

/// Why a plan cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum PlanError {
    /// There is no layer.
    #[error("a capsule needs at least one layer")]
    NoLayers,
    /// There are more layers than the kernel takes.
    #[error("{0} layers are more than the {MAX_LAYERS} that overlayfs takes: flatten the image")]
    TooManyLayers(usize),
}

/// An overlay: its lower layers, topmost first, and how it is to be mounted. Read-only unless it has an upper one.
#[derive(Debug)]
pub struct OverlayPlan<'a> {
    lowers: Vec<Lower<'a>>,
    upper: Option<&'a Upper>,
    userxattr: bool,
}

impl<'a> OverlayPlan<'a> {
    /// The layers alone, topmost first. `empty` is an empty directory: overlayfs takes no single lower layer
    /// without an upper one, so a lone layer gets it as a second.
    ///
    /// # Errors
    /// [`PlanError`], by the number of layers.
    pub fn ro(layers: Vec<Lower<'a>>, empty: &'a LayerDir) -> Result<Self, PlanError> {
        let mut plan = Self::over(layers)?;
        if plan.lowers.len() == 1 {
            plan.lowers.push(Lower::Dir(empty));
        }
        Ok(plan)
    }

    /// The layers, topmost first, with `upper` over them, to which writes go.
    ///
    /// # Errors
    /// [`PlanError`], by the number of layers.
    pub fn rw(layers: Vec<Lower<'a>>, upper: &'a Upper) -> Result<Self, PlanError> {
        Ok(Self::over(layers)?.with_upper(upper))
    }

    /// The layers, topmost first, over what `below` holds already.
    ///
    /// # Errors
    /// [`PlanError`], by the number of layers.
    pub fn union(layers: Vec<Lower<'a>>, below: Lower<'a>) -> Result<Self, PlanError> {
        let mut plan = Self::over(layers)?;
        plan.lowers.push(below);
        Self::check(&plan.lowers)?;
        Ok(plan)
    }

    fn over(lowers: Vec<Lower<'a>>) -> Result<Self, PlanError> {
        Self::check(&lowers)?;
        Ok(Self { lowers, upper: None, userxattr: false })
    }

    fn check(lowers: &[Lower<'a>]) -> Result<(), PlanError> {
        match lowers.len() {
            0 => Err(PlanError::NoLayers),
            n if n > MAX_LAYERS => Err(PlanError::TooManyLayers(n)),
            _ => Ok(()),
        }
    }

    /// Reads whiteouts and opaque marks from `user.overlay.*` rather than `trusted.overlay.*` attributes.
    #[must_use]
    pub fn with_userxattr(mut self) -> Self {
        self.userxattr = true;
        self
    }

    /// Writes go to `upper`.
    #[must_use]
    pub fn with_upper(mut self, upper: &'a Upper) -> Self {
        self.upper = Some(upper);
        self
    }

    pub(crate) fn upper(&self) -> Option<&'a Upper> {
        self.upper
    }

    pub(crate) fn lowers(&self) -> &[Lower<'a>] {
        &self.lowers
    }

    pub(crate) fn userxattr(&self) -> bool {
        self.userxattr
    }
}
