//! A storage backend that dies at a chosen point, and the file as a power cut leaves it.

use std::{
    io,
    sync::{Arc, Mutex},
};

use redb::StorageBackend;

/// A change that was not synced yet.
#[derive(Clone, Debug)]
enum Pending {
    Write { offset: usize, data: Vec<u8> },
    SetLen(usize),
}

#[derive(Debug, Default)]
struct File {
    /// What reads see.
    current: Vec<u8>,
    /// What the disk certainly has: the state of the last sync.
    durable: Vec<u8>,
    pending: Vec<Pending>,
    /// Changes and syncs that still succeed.
    budget: u64,
    /// Changes and syncs so far.
    done: u64,
}

/// The backend. Clones are the same file.
#[derive(Clone, Debug)]
pub struct Faulty(Arc<Mutex<File>>);

fn dead() -> io::Error {
    io::Error::other("the disk is gone")
}

fn apply(image: &mut Vec<u8>, change: &Pending) {
    match change {
        Pending::SetLen(length) => image.resize(*length, 0),
        Pending::Write { offset, data } => {
            let end = offset + data.len();
            if image.len() < end {
                image.resize(end, 0);
            }
            image[*offset..end].copy_from_slice(data);
        }
    }
}

impl Faulty {
    /// A file with the content `image` whose disk dies after `budget` changes and syncs.
    pub fn new(image: Vec<u8>, budget: u64) -> Self {
        let file = File { current: image.clone(), durable: image, budget, ..File::default() };
        Self(Arc::new(Mutex::new(file)))
    }

    /// How many changes and syncs there were.
    pub fn done(&self) -> u64 {
        self.0.lock().unwrap().done
    }

    /// The file after the power cut: all that was synced; of what was not, each change is there, torn or missing as
    /// the bits of `choice` say. Order among unsynced changes is the disk's to choose too.
    pub fn after_power_cut(&self, mut choice: u64) -> Vec<u8> {
        let file = self.0.lock().unwrap();
        let mut image = file.durable.clone();
        for change in &file.pending {
            choice = choice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            match (choice >> 33) % 3 {
                0 => {}
                1 => apply(&mut image, change),
                _ => apply(&mut image, &torn(change, (choice >> 40) as usize)),
            }
        }
        image
    }

    fn spend(&self) -> io::Result<std::sync::MutexGuard<'_, File>> {
        let mut file = self.0.lock().unwrap();
        file.budget = file.budget.checked_sub(1).ok_or_else(dead)?;
        file.done += 1;
        Ok(file)
    }
}

/// The beginning of a write, in the disk's sectors.
fn torn(change: &Pending, at: usize) -> Pending {
    match change {
        Pending::SetLen(_) => change.clone(),
        Pending::Write { offset, data } => {
            let kept = (at % (data.len() / 512 + 1)) * 512;
            Pending::Write { offset: *offset, data: data[..kept].to_vec() }
        }
    }
}

impl StorageBackend for Faulty {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().current.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let file = self.0.lock().unwrap();
        let offset = usize::try_from(offset).unwrap();
        let data = file.current.get(offset..offset + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(data);
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.change(Pending::SetLen(usize::try_from(length).unwrap()))
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut file = self.spend()?;
        file.durable = file.current.clone();
        file.pending.clear();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.change(Pending::Write { offset: usize::try_from(offset).unwrap(), data: data.to_vec() })
    }
}

impl Faulty {
    fn change(&self, change: Pending) -> io::Result<()> {
        let mut file = self.spend()?;
        apply(&mut file.current, &change);
        file.pending.push(change);
        Ok(())
    }
}
