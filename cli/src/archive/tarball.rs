//! A tar that somebody else made, passed on as it is. Touches the file, or standard input.
//!
//! Only what would make a bad version for ever is judged here: the first header (is this a tar at all?) and the end
//! (is it all there?). Unpackers take an archive that stops between two members for a whole one.

use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::path::Path;

use super::stream::CHUNK;
use super::{Error, Summary};

/// Size of a header, and of the unit that contents are padded to (POSIX `pax`, "ustar Interchange Format").
const BLOCK: usize = 512;
/// Where the checksum is in a header.
const CHECKSUM: std::ops::Range<usize> = 148..156;
/// First bytes of compressed files, and what decompresses them.
const COMPRESSED: [(&[u8], &str); 4] =
    [(b"\x1f\x8b", "gzip"), (b"\x28\xb5\x2f\xfd", "zstd"), (b"\xfd7zXZ\0", "xz"), (b"BZh", "bzip2")];

/// A tar whose beginning has been read and judged.
pub struct Tarball {
    /// For messages.
    name: String,
    head: Vec<u8>,
    rest: Box<dyn Read + Send>,
}

impl Tarball {
    /// Opens the file, or standard input for `-`.
    ///
    /// # Errors
    /// [`Error::ReadTar`], [`Error::Compressed`], [`Error::NotTar`].
    pub fn open(path: &Path) -> Result<Self, Error> {
        if path != Path::new("-") {
            let name = format!("`{}`", path.display());
            let file = File::open(path).map_err(failed("open", &name))?;
            return Self::read_from(name, Box::new(file));
        }
        if io::stdin().is_terminal() {
            let name = "standard input".to_owned();
            return Err(Error::NotTar {
                name,
                what: "it is a terminal; write `… | capsulectl build --tar -`",
            });
        }
        Self::read_from("standard input".to_owned(), Box::new(io::stdin()))
    }

    fn read_from(name: String, mut rest: Box<dyn Read + Send>) -> Result<Self, Error> {
        let mut head = Vec::with_capacity(BLOCK);
        rest.by_ref().take(BLOCK as u64).read_to_end(&mut head).map_err(failed("read", &name))?;
        if let Some((_, tool)) = COMPRESSED.iter().find(|(magic, _)| head.starts_with(magic)) {
            return Err(Error::Compressed { name, tool });
        }
        if let Err(what) = check_header(&head) {
            return Err(Error::NotTar { name, what });
        }
        Ok(Self { name, head, rest })
    }

    /// Passes the archive to `emit` in chunks of at most [`CHUNK`] bytes, until its end or until `emit` returns
    /// false.
    ///
    /// # Errors
    /// [`Error::ReadTar`], and [`Error::BrokenOff`] after the last chunk.
    pub fn stream(mut self, mut emit: impl FnMut(Vec<u8>) -> bool) -> Result<Summary, Error> {
        let (mut bytes, mut zeros) = (0, 0);
        let mut chunk = std::mem::take(&mut self.head);
        loop {
            let room = (CHUNK - chunk.len()) as u64;
            self.rest.by_ref().take(room).read_to_end(&mut chunk).map_err(failed("read", &self.name))?;
            let is_last = chunk.len() < CHUNK;
            bytes += chunk.len() as u64;
            zeros = trailing_zeros(zeros, &chunk);
            if !chunk.is_empty() && !emit(std::mem::take(&mut chunk)) {
                break;
            }
            if is_last {
                return self.judge_end(bytes, zeros);
            }
        }
        Ok(Summary { files: None, bytes })
    }

    fn judge_end(self, bytes: u64, zeros: usize) -> Result<Summary, Error> {
        if zeros < 2 * BLOCK || !bytes.is_multiple_of(BLOCK as u64) {
            return Err(Error::BrokenOff { name: self.name, bytes });
        }
        Ok(Summary { files: None, bytes })
    }
}

fn failed<'a>(step: &'static str, name: &'a str) -> impl FnOnce(io::Error) -> Error + use<'a> {
    move |source| Error::ReadTar { step, name: name.to_owned(), source }
}

/// How many zeros all that was read ends with, when it ended with `before` of them and the chunk follows.
fn trailing_zeros(before: usize, chunk: &[u8]) -> usize {
    let zeros = chunk.iter().rev().take_while(|b| **b == 0).count();
    if zeros == chunk.len() { before + zeros } else { zeros }
}

fn check_header(head: &[u8]) -> Result<(), &'static str> {
    if head.is_empty() {
        return Err("it is empty");
    }
    if head.len() < BLOCK {
        return Err("it is shorter than one header");
    }
    if head.iter().all(|b| *b == 0) {
        return Err("it has no members: there is nothing to publish");
    }
    let sum = head.iter().enumerate().map(|(i, b)| if CHECKSUM.contains(&i) { b' ' } else { *b });
    if octal(&head[CHECKSUM]) != Some(sum.map(u64::from).sum()) {
        return Err("its first 512 bytes are no header");
    }
    Ok(())
}

/// Octal digits, with blanks before them and blanks or a zero byte after them.
fn octal(field: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(field).ok()?;
    let digits = text.trim_matches([' ', '\0']);
    u64::from_str_radix(digits, 8).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One file of the given content, ended as it should be.
    fn tar_of(content: &[u8]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        builder.append_data(&mut header, "f", content).expect("a member");
        builder.into_inner().expect("an archive")
    }

    /// Gives a few bytes at a time, as a pipe does.
    struct Pipe(io::Cursor<Vec<u8>>);

    impl Read for Pipe {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let length = buffer.len().min(60_000);
            self.0.read(&mut buffer[..length])
        }
    }

    fn open(bytes: &[u8]) -> Result<Tarball, Error> {
        Tarball::read_from("`x.tar`".to_owned(), Box::new(Pipe(io::Cursor::new(bytes.to_vec()))))
    }

    fn passed_on(bytes: &[u8]) -> (Vec<u8>, Result<Summary, Error>) {
        let mut got = Vec::new();
        let outcome = open(bytes).expect("a tar").stream(|chunk| {
            assert!(!chunk.is_empty() && chunk.len() <= CHUNK);
            got.extend(chunk);
            true
        });
        (got, outcome)
    }

    #[test]
    fn it_is_passed_on_byte_by_byte() {
        for size in [0, 1, 512, CHUNK - 2048, CHUNK - 1536, CHUNK - 1535, CHUNK, 2 * CHUNK + 13] {
            let tar = tar_of(&vec![b'x'; size]);
            let (got, outcome) = passed_on(&tar);
            assert!(got == tar, "{size}: {} of {} bytes", got.len(), tar.len());
            let want = Summary { files: None, bytes: tar.len() as u64 };
            assert_eq!(outcome.expect("a whole archive"), want, "{size}");
        }
    }

    #[test]
    fn one_that_is_broken_off_is_an_error() {
        let tar = tar_of(&vec![b'x'; CHUNK]);
        for length in [512, 600, CHUNK, 512 + CHUNK, tar.len() - 512, tar.len() - 1] {
            let (_, outcome) = passed_on(&tar[..length]);
            let Err(Error::BrokenOff { bytes, .. }) = outcome else { panic!("{length}: {outcome:?}") };
            assert_eq!(bytes, length as u64);
        }
    }

    #[test]
    fn the_two_blocks_at_the_end_may_lie_in_two_chunks() {
        let tar = tar_of(&vec![b'x'; CHUNK - 2 * BLOCK]);
        assert_eq!(tar.len(), CHUNK + BLOCK);
        assert!(passed_on(&tar).1.is_ok());
    }

    #[test]
    fn what_is_no_tar() {
        let mut wrong_sum = tar_of(b"x");
        wrong_sum[0] ^= 1;
        let padded = |magic: &[u8]| [magic, &[1; 600]].concat();
        for (bytes, want) in [
            (Vec::new(), "`x.tar` is not a tar: it is empty"),
            (vec![b'x'; 511], "shorter than one header"),
            (vec![0; 10_240], "nothing to publish"),
            (wrong_sum, "no header"),
            (padded(b"PK\x03\x04"), "no header"),
            (padded(b"\x1f\x8b\x08"), "`x.tar` is compressed: decompress it on the way, with `gzip -dc"),
            (b"\x1f\x8b".to_vec(), "`gzip -dc"),
            (padded(b"\x28\xb5\x2f\xfd"), "`zstd -dc FILE | capsulectl build --tar -"),
            (padded(b"\xfd7zXZ\0"), "`xz -dc"),
            (padded(b"BZh9"), "`bzip2 -dc"),
        ] {
            let error = open(&bytes).err().map(|e| e.to_string()).unwrap_or_default();
            assert!(error.contains(want), "{want}: {error}");
        }
    }

    #[test]
    fn reading_stops_when_nobody_listens() {
        let mut calls = 0;
        let outcome = open(&tar_of(&vec![1; 3 * CHUNK])).expect("a tar").stream(|_| {
            calls += 1;
            false
        });
        assert!(outcome.is_ok());
        assert_eq!(calls, 1);
    }

    #[test]
    fn files_that_cannot_be_read() {
        let dir = tempfile::tempdir().expect("a directory");
        for (path, want) in [(dir.path().join("none"), "cannot open"), (dir.path().to_owned(), "cannot read")]
        {
            let error = Tarball::open(&path).err().map(|e| e.to_string()).unwrap_or_default();
            assert!(error.starts_with(want) && error.contains(path.to_str().expect("UTF-8")), "{error}");
        }
    }
}
