//! What the workload writes down while it works: the marks.
//!
//! A call is marked as begun before it is made, with all that is needed to know its effect, and as done when its
//! answer is there. So the marks before any point of the record say what had been acknowledged by then.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result, ensure};
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};

use super::attached::model::Deed;
use super::record::Event;

/// Labels by key.
pub type Labels = BTreeMap<String, String>;

/// A call that changes something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Call {
    /// Makes an active snapshot, or a view.
    Create {
        /// Its key.
        key: String,
        /// A committed one's name, or nothing.
        parent: String,
        /// Its labels.
        labels: Labels,
        /// Read-only.
        view: bool,
    },
    /// Makes an active snapshot a committed one.
    Commit {
        /// The active one's.
        key: String,
        /// The committed one's.
        name: String,
        /// Its labels.
        labels: Labels,
        /// What is in its directory, see [`super::tree::manifest`].
        manifest: Vec<String>,
    },
    /// Removes a snapshot.
    Remove {
        /// Its key or name.
        key: String,
    },
    /// Replaces a snapshot's labels.
    Update {
        /// Its key or name.
        key: String,
        /// The new ones.
        labels: Labels,
    },
    /// Removes what crashes left.
    Cleanup,
    /// No call about snapshots.
    Deed(Deed),
}

/// One mark.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mark {
    /// A call is about to be made.
    Begin {
        /// By which client; each makes one call at a time.
        client: usize,
        /// The call.
        call: Call,
    },
    /// A call was answered.
    Done {
        /// Whose.
        client: usize,
        /// Nothing, or the refusal.
        refused: Option<String>,
    },
    /// The workload ran to its end.
    End {
        /// How many calls were answered.
        calls: usize,
    },
    /// The workload failed, or capsuled did.
    Failed {
        /// Why.
        reason: String,
    },
}

const MAGIC: &[u8; 8] = b"CAPSMARK";
/// Direct writes are aligned to what any disk wants.
const ALIGNMENT: usize = 4096;

/// Writes marks to their device, past every cache.
#[derive(Debug)]
pub struct Marker {
    device: File,
    next: AtomicU64,
}

impl Marker {
    /// Opens the device of marks.
    pub fn open(device: &Path) -> Result<Self> {
        let fd = rustix::fs::open(device, OFlags::WRONLY | OFlags::DIRECT | OFlags::CLOEXEC, Mode::empty())
            .with_context(|| format!("open {}", device.display()))?;
        Ok(Self { device: File::from(fd), next: AtomicU64::new(0) })
    }

    /// Writes a mark; when this returns, it is in the record. Nothing is flushed: that would flush what capsuled
    /// should have flushed.
    pub fn mark(&self, mark: &Mark) -> Result<()> {
        let json = serde_json::to_vec(mark).context("encode a mark")?;
        let header = [MAGIC.as_slice(), &(json.len() as u64).to_le_bytes()].concat();
        let length = (header.len() + json.len()).next_multiple_of(ALIGNMENT);
        let mut buffer = vec![0_u8; length + ALIGNMENT];
        let start = buffer.as_ptr().align_offset(ALIGNMENT);
        let aligned = buffer.get_mut(start..start + length).context("align a mark")?;
        for (place, byte) in aligned.iter_mut().zip(header.iter().chain(&json)) {
            *place = *byte;
        }
        let offset = self.next.fetch_add(length as u64, Ordering::Relaxed);
        self.device.write_all_at(aligned, offset).context("write a mark")
    }
}

/// Takes marks from events. The kernel and qemu may split a write, and make one of adjacent ones.
#[derive(Debug, Default)]
pub struct Marks {
    /// Begun and not complete: offset of the next piece, bytes so far.
    open: Vec<(u64, Vec<u8>)>,
}

impl Marks {
    /// Takes the next event; the marks that are complete with it.
    pub fn take(&mut self, event: &Event) -> Result<Vec<Mark>> {
        let Event::Mark { offset, data } = event else { return Ok(Vec::new()) };
        let known = self.open.iter().position(|(next, _)| next == offset);
        let mut bytes = known.map(|at| self.open.swap_remove(at).1).unwrap_or_default();
        bytes.extend_from_slice(data);
        let mut rest = bytes.as_slice();
        let mut marks = Vec::new();
        while let Some((header, body)) = rest.split_first_chunk::<16>() {
            ensure!(header.starts_with(MAGIC), "the record has a mark that is none, at {offset}");
            let length = header.last_chunk::<8>().copied().map_or(0, u64::from_le_bytes);
            let length = usize::try_from(length).context("a mark's length")?;
            let Some(after) = rest.get((header.len() + length).next_multiple_of(ALIGNMENT)..) else { break };
            let json = body.get(..length).context("a mark's text")?;
            marks.push(serde_json::from_slice(json).context("decode a mark")?);
            rest = after;
        }
        if !rest.is_empty() {
            self.open.push((offset + data.len() as u64, rest.to_vec()));
        }
        Ok(marks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(text: &str) -> Vec<u8> {
        let json = serde_json::to_vec(&Mark::Failed { reason: text.to_owned() }).unwrap_or_default();
        let mut bytes = [MAGIC.as_slice(), &(json.len() as u64).to_le_bytes(), &json].concat();
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
        bytes
    }

    #[test]
    fn marks_are_found_however_their_writes_are_cut() -> Result<()> {
        let texts = ["a".repeat(9000), "b".to_owned(), "c".repeat(4096)];
        let whole: Vec<u8> = texts.iter().flat_map(|text| written(text)).collect();
        for piece in [512, 4096, 8192, 12288, whole.len()] {
            let (mut marks, mut found) = (Marks::default(), Vec::new());
            for (at, data) in whole.chunks(piece).enumerate() {
                found.extend(marks.take(&Event::Mark { offset: (at * piece) as u64, data: data.to_vec() })?);
                found.extend(marks.take(&Event::Flush)?);
            }
            let expected: Vec<Mark> =
                texts.iter().map(|text| Mark::Failed { reason: text.clone() }).collect();
            assert_eq!(found, expected, "pieces of {piece}");
        }
        Ok(())
    }
}
