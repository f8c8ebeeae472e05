//! Reading what is written, wherever it lies.

use std::{
    io::{self, Write},
    path::PathBuf,
};

use overlayfs_utils::{DetachedMount, LayerDir, UPPER, mount_image};
use tokio::sync::mpsc;

use super::{
    UpperError, Uppers,
    layer::{Broken, write_layer},
    model::{Over, Place},
    uses::Key,
};
use crate::trees::Layers;

/// How much of a tar is handed on at once.
const CHUNK: usize = 1 << 20;

/// An upper directory that is being read.
#[derive(Debug)]
pub struct Reading {
    uppers: Uppers,
    key: Key,
    whose: Option<String>,
    place: Place,
    over: Over,
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.uppers.uses().read_no_more(&self.key, self.whose.as_deref());
        self.uppers.tidy();
    }
}

impl Reading {
    /// Of what the caller has taken with [`Uses::read`](super::uses::Uses::read).
    pub(super) fn new(uppers: Uppers, key: Key, whose: Option<String>, place: Place, over: Over) -> Self {
        Self { uppers, key, whose, place, over }
    }

    /// What it was written over. It cannot become another while it is read.
    pub fn over(&self) -> &Over {
        &self.over
    }

    /// Writes what was written as the tar of a layer to `to`, in pieces, and gives the number of its members. Blocks.
    ///
    /// # Errors
    /// [`Broken`].
    pub(super) fn write(
        &self,
        layers: Layers,
        to: &mpsc::Sender<Result<Vec<u8>, String>>,
    ) -> Result<usize, Broken> {
        let (mut layers, given_up) = (layers, to.clone());
        let (_mount, number) = self.open(&mut layers).map_err(Broken::Failed)?;
        let layers = layers.until(move || given_up.is_closed());
        write_layer(&layers, number, Pieces { to, filling: Vec::with_capacity(CHUNK) })
    }

    fn open(&self, layers: &mut Layers) -> Result<(Option<DetachedMount>, usize), UpperError> {
        let (mount, base) = match &self.place {
            Place::Directory(path) => (None, LayerDir::open(path)),
            Place::Image(path) => {
                let mount = mount_image(path, true)?;
                let root = mount.root();
                (Some(mount), root)
            }
        };
        let path = self.uppers.path(&self.key).join(UPPER);
        let failed = |source: io::Error| UpperError::Disk { step: "open", path: path.clone(), source };
        let base = base.map_err(|error| failed(io::Error::other(error)))?;
        // Nothing was ever attached there when it is missing.
        let upper = base.open_below(UPPER.as_ref()).map_err(|error| failed(io::Error::other(error)))?;
        let upper = upper.ok_or(UpperError::Nothing)?;
        let fd = upper.fd().try_clone_to_owned().map_err(failed)?;
        Ok((mount, layers.add_open(PathBuf::from(&path), fd)))
    }
}

/// Hands a tar on in pieces.
struct Pieces<'a> {
    to: &'a mpsc::Sender<Result<Vec<u8>, String>>,
    filling: Vec<u8>,
}

impl Write for Pieces<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let now = bytes.len().min(CHUNK - self.filling.len());
        self.filling.extend_from_slice(&bytes[..now]);
        if self.filling.len() == CHUNK {
            self.flush()?;
        }
        Ok(now)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.filling.is_empty() {
            return Ok(());
        }
        let piece = std::mem::replace(&mut self.filling, Vec::with_capacity(CHUNK));
        self.to.blocking_send(Ok(piece)).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}
