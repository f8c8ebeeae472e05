//! What a disk was told, in order: every write, every flush, and the marks that the workload set between them.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, BufWriter, ErrorKind, Read, Seek as _, SeekFrom, Write};
use std::path::Path;

use anyhow::{Context as _, Result, bail};

/// What a device writes as a whole or not at all.
pub const SECTOR: usize = 512;
const BLOCK: usize = 4096;

/// One thing that happened on the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The device said that it has this data; until the next flush it may have it in its cache alone.
    Write {
        /// Where, in bytes.
        offset: u64,
        /// What.
        data: Vec<u8>,
    },
    /// The device said that everything before is on the medium.
    Flush,
    /// What the workload did or learned. Marks go to a device of their own and are no part of the disk.
    Mark {
        /// Where on the device of marks: a long mark may come in several pieces.
        offset: u64,
        /// The piece.
        data: Vec<u8>,
    },
}

/// The events, and the size of the disk in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Record {
    /// Bytes.
    pub size: u64,
    /// In the order in which the device answered.
    pub events: Vec<Event>,
}

const WRITE: u8 = 1;
const FLUSH: u8 = 2;
const MARK: u8 = 3;

impl Record {
    /// Begins with the content of an image: all of it written and flushed.
    pub fn of_image(image: &Path) -> Result<Self> {
        let mut file = File::open(image).with_context(|| format!("open {}", image.display()))?;
        let size = file.metadata().with_context(|| format!("stat {}", image.display()))?.len();
        let mut events = Vec::new();
        let mut buffer = vec![0; 1 << 20];
        let mut offset = 0;
        while offset < size {
            let wanted = usize::try_from(size - offset).unwrap_or(usize::MAX).min(buffer.len());
            let chunk = buffer.get_mut(..wanted).context("a chunk")?;
            file.read_exact(chunk).with_context(|| format!("read {}", image.display()))?;
            for block in chunk.chunks(BLOCK) {
                if block.iter().any(|byte| *byte != 0) {
                    events.push(Event::Write { offset, data: block.to_vec() });
                }
                offset += block.len() as u64;
            }
        }
        events.push(Event::Flush);
        Ok(Self { size, events })
    }

    /// Keeps it in a file.
    pub fn save(&self, path: &Path) -> Result<()> {
        let write = || -> std::io::Result<()> {
            let mut out = BufWriter::new(File::create(path)?);
            out.write_all(&self.size.to_le_bytes())?;
            for event in &self.events {
                let (kind, offset, data): (u8, u64, &[u8]) = match event {
                    Event::Write { offset, data } => (WRITE, *offset, data),
                    Event::Flush => (FLUSH, 0, &[]),
                    Event::Mark { offset, data } => (MARK, *offset, data),
                };
                out.write_all(&[kind])?;
                out.write_all(&offset.to_le_bytes())?;
                out.write_all(&(data.len() as u64).to_le_bytes())?;
                out.write_all(data)?;
            }
            out.flush()
        };
        write().with_context(|| format!("write {}", path.display()))
    }

    /// Reads what [`Record::save`] kept.
    pub fn load(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
        let mut file = BufReader::new(file);
        let mut word = [0; 8];
        file.read_exact(&mut word).with_context(|| format!("read {}", path.display()))?;
        let mut record = Self { size: u64::from_le_bytes(word), events: Vec::new() };
        loop {
            let mut kind = [0];
            match file.read_exact(&mut kind) {
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(record),
                done => done.with_context(|| format!("read {}", path.display()))?,
            }
            let mut number = || -> Result<u64> {
                file.read_exact(&mut word).context("read a number of the record")?;
                Ok(u64::from_le_bytes(word))
            };
            let (offset, length) = (number()?, number()?);
            let mut data = vec![0; usize::try_from(length).context("length of an event")?];
            file.read_exact(&mut data).context("read an event of the record")?;
            record.events.push(match kind {
                [WRITE] => Event::Write { offset, data },
                [FLUSH] => Event::Flush,
                [MARK] => Event::Mark { offset, data },
                [other] => bail!("{} has an event of kind {other}", path.display()),
            });
        }
    }
}

/// The content of a disk; what was never written is zero.
#[derive(Debug, Clone, Default)]
pub struct Disk {
    blocks: HashMap<u64, Box<[u8; BLOCK]>>,
}

impl Disk {
    /// Writes; the disk grows as it needs to.
    pub fn write(&mut self, mut offset: u64, mut data: &[u8]) {
        while !data.is_empty() {
            let (block, start) = split(offset);
            let length = data.len().min(BLOCK - start);
            let (now, rest) = data.split_at(length);
            let content = self.blocks.entry(block).or_insert_with(|| Box::new([0; BLOCK]));
            if let Some(place) = content.get_mut(start..start + length) {
                place.copy_from_slice(now);
            }
            offset += length as u64;
            data = rest;
        }
    }

    /// Reads.
    pub fn read(&self, mut offset: u64, buffer: &mut [u8]) {
        let mut rest = buffer;
        while !rest.is_empty() {
            let (block, start) = split(offset);
            let length = rest.len().min(BLOCK - start);
            let (now, after) = rest.split_at_mut(length);
            match self.blocks.get(&block).and_then(|content| content.get(start..start + length)) {
                Some(content) => now.copy_from_slice(content),
                None => now.fill(0),
            }
            offset += length as u64;
            rest = after;
        }
    }

    /// Makes a sparse file of it.
    pub fn save(&self, path: &Path, size: u64) -> Result<()> {
        let mut numbers: Vec<u64> = self.blocks.keys().copied().collect();
        numbers.sort_unstable();
        let write = || -> std::io::Result<()> {
            let mut file = File::create(path)?;
            file.set_len(size)?;
            for number in numbers {
                if let Some(content) = self.blocks.get(&number) {
                    file.seek(SeekFrom::Start(number * BLOCK as u64))?;
                    file.write_all(content.as_slice())?;
                }
            }
            Ok(())
        };
        write().with_context(|| format!("write {}", path.display()))
    }
}

fn split(offset: u64) -> (u64, usize) {
    let size = BLOCK as u64;
    (offset / size, usize::try_from(offset % size).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_reads_back_what_was_written_across_blocks() {
        let mut disk = Disk::default();
        disk.write(4000, &[7; 9000]);
        disk.write(5000, &[8; 10]);
        let mut read = vec![1; 14000];
        disk.read(0, &mut read);
        let mut expected = vec![0; 14000];
        expected[4000..13000].fill(7);
        expected[5000..5010].fill(8);
        assert_eq!(read, expected);
    }

    #[test]
    fn a_record_is_read_back_as_it_was() -> Result<()> {
        let record = Record {
            size: 1 << 20,
            events: vec![
                Event::Write { offset: 512, data: vec![1; 512] },
                Event::Flush,
                Event::Mark { offset: 4096, data: b"mark".to_vec() },
            ],
        };
        let path = std::env::temp_dir().join(format!("capsule-record-{}", std::process::id()));
        record.save(&path)?;
        let read = Record::load(&path);
        std::fs::remove_file(&path)?;
        assert_eq!(read?, record);
        Ok(())
    }
}
