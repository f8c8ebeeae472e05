//! Power cuts: where in the record, what the disk's cache had written by then, and the image that leaves.

use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::journal::{Mark, Marks};
use super::random::Random;
use super::record::{Disk, Event, Record, SECTOR};

/// What becomes of the writes that no flush followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Loss {
    /// All are lost: the disk had them in its cache.
    All,
    /// None is lost: the disk was quick.
    None,
    /// Each is there or not; so many in a hundred are.
    Some {
        /// Percent that are there.
        kept: usize,
        /// Percent of those that are torn between sectors.
        torn: usize,
    },
}

/// One power cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cut {
    /// After so many events.
    pub at: usize,
    /// The cache's fate.
    pub loss: Loss,
    /// Chooses which writes survive.
    pub seed: u64,
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "after event {}, ", self.at)?;
        match self.loss {
            Loss::All => write!(f, "all unflushed writes lost"),
            Loss::None => write!(f, "no write lost"),
            Loss::Some { kept, torn } => {
                write!(f, "{kept} % of unflushed writes kept, {torn} % of them torn, seed {}", self.seed)
            }
        }
    }
}

/// Chooses `count` cuts, in the order of the record: a third each right after a mark, anywhere, and right before a
/// flush, when most is at stake.
pub fn choose(record: &Record, count: usize, seed: u64) -> Result<Vec<Cut>> {
    let mut random = Random::new(seed);
    let (mut done, mut flushes, mut marks) = (Vec::new(), Vec::new(), Marks::default());
    for (at, event) in record.events.iter().enumerate() {
        if marks.take(event)?.iter().any(|mark| matches!(mark, Mark::Done { .. })) {
            done.push(at + 1);
        } else if *event == Event::Flush {
            flushes.push(at);
        }
    }
    // Before the first flush there is only the empty file system.
    let first = *flushes.first().context("the record has no flush")?;
    let mut cuts = Vec::with_capacity(count);
    for number in 0..count {
        let at = match number % 3 {
            0 => random.pick(&done).copied().context("the record has no acknowledged call")?,
            1 => first + random.below(record.events.len() - first) + 1,
            _ => random.pick(&flushes).copied().unwrap_or(first),
        };
        let loss = match random.below(4) {
            0 | 1 if number % 3 == 0 => Loss::All,
            0 => Loss::None,
            1 => Loss::All,
            _ => Loss::Some { kept: 10 + random.below(81), torn: random.below(3) * 20 },
        };
        cuts.push(Cut { at: at.max(first + 1), loss, seed: random.number() });
    }
    cuts.sort_by_key(|cut| cut.at);
    Ok(cuts)
}

/// Makes images, from cuts in the order of the record.
#[derive(Debug)]
pub struct Images<'a> {
    record: &'a Record,
    /// What is on the medium for sure after `applied` events, the last of them a flush.
    durable: Disk,
    applied: usize,
}

impl<'a> Images<'a> {
    /// Of one record.
    pub fn new(record: &'a Record) -> Self {
        Self { record, durable: Disk::default(), applied: 0 }
    }

    /// Makes the image that `cut` leaves; how many writes the cut put at stake, and how many of them it kept whole.
    pub fn make(&mut self, cut: &Cut, path: &Path) -> Result<(usize, usize)> {
        let before = self.record.events.get(..cut.at).context("a cut after the end of the record")?;
        let flushed = before.iter().rposition(|event| *event == Event::Flush).map_or(0, |at| at + 1);
        for event in before.get(self.applied..flushed).context("cuts come in the order of the record")? {
            if let Event::Write { offset, data } = event {
                self.durable.write(*offset, data);
            }
        }
        self.applied = flushed;
        self.durable.save(path, self.record.size)?;
        let image =
            File::options().write(true).open(path).with_context(|| format!("open {}", path.display()))?;
        let mut random = Random::new(cut.seed);
        let (mut at_stake, mut kept) = (0, 0);
        for event in before.get(flushed..).unwrap_or_default() {
            if let Event::Write { offset, data } = event {
                at_stake += 1;
                let sectors = surviving(cut.loss, data.len().div_ceil(SECTOR), &mut random);
                kept += usize::from(sectors.iter().all(|survives| *survives));
                for (number, (sector, survives)) in data.chunks(SECTOR).zip(sectors).enumerate() {
                    if survives {
                        image
                            .write_all_at(sector, offset + (number * SECTOR) as u64)
                            .with_context(|| format!("write {}", path.display()))?;
                    }
                }
            }
        }
        Ok((at_stake, kept))
    }
}

/// Which sectors of a write survive.
fn surviving(loss: Loss, sectors: usize, random: &mut Random) -> Vec<bool> {
    match loss {
        Loss::All => vec![false; sectors],
        Loss::None => vec![true; sectors],
        Loss::Some { kept, torn } => {
            let survives = random.percent(kept);
            if !survives || !random.percent(torn) {
                return vec![survives; sectors];
            }
            // A device writes a long request from its beginning, or in any order.
            if random.percent(50) {
                let end = random.below(sectors + 1);
                (0..sectors).map(|sector| sector < end).collect()
            } else {
                (0..sectors).map(|_| random.percent(50)).collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(offset: u64, byte: u8) -> Event {
        Event::Write { offset, data: vec![byte; 1024] }
    }

    fn record() -> Record {
        let events = vec![write(0, 1), Event::Flush, write(1024, 2), write(0, 3), Event::Flush, write(0, 4)];
        Record { size: 4096, events }
    }

    /// The image after a cut: the first byte of each of its first four sectors.
    fn image(cut: Cut, name: &str) -> Result<Vec<u8>> {
        let record = record();
        let path = std::env::temp_dir().join(format!("capsule-cut-{name}-{}", std::process::id()));
        Images::new(&record).make(&cut, &path)?;
        let content = std::fs::read(&path)?;
        std::fs::remove_file(&path)?;
        assert_eq!(content.len(), 4096);
        Ok([0, 512, 1024, 1536].iter().map(|at| content[*at]).collect())
    }

    #[test]
    fn what_was_flushed_is_always_there_and_the_rest_as_chosen() -> Result<()> {
        let cut = |at, loss| Cut { at, loss, seed: 1 };
        assert_eq!(image(cut(4, Loss::All), "a")?, [1, 1, 0, 0]);
        assert_eq!(image(cut(4, Loss::None), "b")?, [3, 3, 2, 2]);
        assert_eq!(image(cut(5, Loss::All), "c")?, [3, 3, 2, 2]);
        assert_eq!(image(cut(6, Loss::All), "d")?, [3, 3, 2, 2]);
        assert_eq!(image(cut(6, Loss::None), "e")?, [4, 4, 2, 2]);
        Ok(())
    }

    #[test]
    fn torn_writes_keep_whole_sectors_of_either_version() -> Result<()> {
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..64 {
            seen.insert(image(Cut { at: 6, loss: Loss::Some { kept: 80, torn: 100 }, seed }, "t")?);
        }
        let possible: std::collections::BTreeSet<Vec<u8>> =
            [[3, 3, 2, 2], [4, 3, 2, 2], [3, 4, 2, 2], [4, 4, 2, 2]].map(Vec::from).into();
        assert_eq!(seen, possible);
        Ok(())
    }
}
