//! A disk with a volatile cache, as a server of the NBD protocol for qemu: it answers a write at once, and what it
//! answered is only sure to survive once it has answered a flush. It keeps the record from which any power cut is made.
//!
//! Two exports: `disk`, and `marks`, a second device whose writes become [`Event::Mark`]. Requests of both go into
//! one record. A mark is written synchronously, so everything that its writer had learned before stands before it. The
//! protocol: <https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>.

use std::io::{BufReader, Read, Write};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result, bail, ensure};

use super::record::{Disk, Event, Record};

/// The export that is the disk.
pub const DISK: &str = "disk";
/// The export that takes marks.
pub const MARKS: &str = "marks";
/// Room for marks. They are not kept on a disk: only addresses are used up.
const MARKS_SIZE: u64 = 1 << 32;

const OPTION_MAGIC: u64 = u64::from_be_bytes(*b"IHAVEOPT");
const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const ANSWER_MAGIC: u32 = 0x6744_6698;
/// Fixed newstyle negotiation, no zeroes after it.
const HANDSHAKE_FLAGS: u16 = 0b11;
/// Flags are given, flushes are understood; neither FUA, trim nor writing zeroes: the client makes those of others.
const EXPORT_FLAGS: u16 = 0b101;
const OPTION_ABORT: u32 = 2;
const OPTION_INFO: u32 = 6;
const OPTION_GO: u32 = 7;
const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;
const REPLY_UNSUPPORTED: u32 = (1 << 31) + 1;
const REPLY_UNKNOWN: u32 = (1 << 31) + 6;
/// More than qemu asks for at once.
const LONGEST: u32 = 64 << 20;

/// The disk, as its clients see it now, and its record so far.
#[derive(Debug, Default)]
pub struct Recorder {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    record: Record,
    disk: Disk,
}

impl Recorder {
    /// A disk with the content that `record` leaves.
    pub fn new(record: Record) -> Self {
        let mut disk = Disk::default();
        for event in &record.events {
            if let Event::Write { offset, data } = event {
                disk.write(*offset, data);
            }
        }
        Self { state: Mutex::new(State { record, disk }) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the events from number `from` on.
    pub fn look<T>(&self, from: usize, look: impl FnOnce(&[Event]) -> T) -> T {
        look(self.lock().record.events.get(from..).unwrap_or_default())
    }

    /// Takes the record; to be called when no client is left.
    pub fn take(&self) -> Record {
        std::mem::take(&mut self.lock().record)
    }

    fn add(&self, event: Event) {
        let mut state = self.lock();
        if let Event::Write { offset, data } = &event {
            state.disk.write(*offset, data);
        }
        state.record.events.push(event);
    }

    fn size(&self, export: &str) -> Option<u64> {
        match export {
            DISK => Some(self.lock().record.size),
            MARKS => Some(MARKS_SIZE),
            _ => None,
        }
    }
}

/// Serves on the abstract socket `name` until the process ends; each client in a thread.
pub fn serve(recorder: &Arc<Recorder>, name: &str) -> Result<()> {
    let address = SocketAddr::from_abstract_name(name).with_context(|| format!("name a socket {name}"))?;
    let listener = UnixListener::bind_addr(&address).with_context(|| format!("listen on {name}"))?;
    let recorder = recorder.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let recorder = recorder.clone();
            // A client that is killed ends in the middle of a request.
            std::thread::spawn(move || drop(serve_client(&recorder, stream)));
        }
    });
    Ok(())
}

fn serve_client(recorder: &Recorder, stream: UnixStream) -> Result<()> {
    let mut client = Client { input: BufReader::new(stream.try_clone().context("share a stream")?), stream };
    match client.negotiate(recorder)? {
        Some(export) => client.answer(recorder, &export),
        None => Ok(()),
    }
}

struct Client {
    input: BufReader<UnixStream>,
    stream: UnixStream,
}

impl Client {
    fn read<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.input.read_exact(&mut bytes).context("read from the client")?;
        Ok(bytes)
    }

    fn read_data(&mut self, length: u32) -> Result<Vec<u8>> {
        ensure!(length <= LONGEST, "a client sent {length} bytes at once");
        let mut data = vec![0; usize::try_from(length)?];
        self.input.read_exact(&mut data).context("read from the client")?;
        Ok(data)
    }

    fn send(&mut self, parts: &[&[u8]]) -> Result<()> {
        self.stream.write_all(&parts.concat()).context("answer the client")
    }

    fn reply(&mut self, option: u32, kind: u32, data: &[u8]) -> Result<()> {
        let length = u32::try_from(data.len())?.to_be_bytes();
        self.send(&[&REPLY_MAGIC.to_be_bytes(), &option.to_be_bytes(), &kind.to_be_bytes(), &length, data])
    }

    /// The export that the client wants, or none when it leaves.
    fn negotiate(&mut self, recorder: &Recorder) -> Result<Option<String>> {
        self.send(&[b"NBDMAGIC", b"IHAVEOPT", &HANDSHAKE_FLAGS.to_be_bytes()])?;
        let _client_flags: [u8; 4] = self.read()?;
        loop {
            ensure!(u64::from_be_bytes(self.read()?) == OPTION_MAGIC, "this client does not speak NBD");
            let (option, length) = (u32::from_be_bytes(self.read()?), u32::from_be_bytes(self.read()?));
            let data = self.read_data(length)?;
            match option {
                OPTION_GO | OPTION_INFO => {
                    let name = export_name(&data)?;
                    let Some(size) = recorder.size(&name) else {
                        self.reply(option, REPLY_UNKNOWN, &[])?;
                        continue;
                    };
                    let info = [&[0, 0], size.to_be_bytes().as_slice(), &EXPORT_FLAGS.to_be_bytes()].concat();
                    self.reply(option, REPLY_INFO, &info)?;
                    self.reply(option, REPLY_ACK, &[])?;
                    if option == OPTION_GO {
                        return Ok(Some(name));
                    }
                }
                OPTION_ABORT => return Ok(None),
                _ => self.reply(option, REPLY_UNSUPPORTED, &[])?,
            }
        }
    }

    fn answer(&mut self, recorder: &Recorder, export: &str) -> Result<()> {
        loop {
            ensure!(u32::from_be_bytes(self.read()?) == REQUEST_MAGIC, "this client does not speak NBD");
            let flags = u16::from_be_bytes(self.read()?);
            let kind = u16::from_be_bytes(self.read()?);
            let cookie: [u8; 8] = self.read()?;
            let offset = u64::from_be_bytes(self.read()?);
            let length = u32::from_be_bytes(self.read()?);
            ensure!(flags == 0, "a client uses flags ({flags:#x}) that it was not offered");
            let mut data = Vec::new();
            match (kind, export) {
                (0, _) => {
                    ensure!(length <= LONGEST, "a client wants {length} bytes at once");
                    data = vec![0; usize::try_from(length)?];
                    if export == DISK {
                        recorder.lock().disk.read(offset, &mut data);
                    }
                }
                (1, DISK) => recorder.add(Event::Write { offset, data: self.read_data(length)? }),
                (1, _) => recorder.add(Event::Mark { offset, data: self.read_data(length)? }),
                (2, _) => return Ok(()),
                (3, DISK) => recorder.add(Event::Flush),
                (3, _) => {}
                _ => bail!("a client sends a request ({kind}) that it was not offered"),
            }
            self.send(&[&ANSWER_MAGIC.to_be_bytes(), &[0; 4], &cookie, &data])?;
        }
    }
}

/// From the data of `NBD_OPT_GO`: length, name, what else the client wants to know.
fn export_name(data: &[u8]) -> Result<String> {
    let (length, rest) = data.split_first_chunk::<4>().context("an option without a name")?;
    let length = usize::try_from(u32::from_be_bytes(*length))?;
    let name = rest.get(..length).context("a name longer than its option")?;
    Ok(String::from_utf8_lossy(name).into_owned())
}
