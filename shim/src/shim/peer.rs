//! Which version of the Task API containerd speaks: asked once by `start`, of containerd itself.
//!
//! Nothing that containerd 1.7 and 2.0 to 2.2 give to `start` tells them apart: same flags, same environment (where
//! `MAX_SHIM_VERSION` is 2 in all of them), same files. But 1.7 refuses an answer of version 3, and to 2.x an answer of
//! version 2 means an old shim, for which it starts one process more per container of a pod. So the answer depends on what
//! containerd's Version service says. It is asked over gRPC by hand: one request whose every byte is known, for which an
//! HTTP/2 library would be the largest part of the program.

use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use thiserror::Error;

use super::socket;

/// Longer than containerd takes; version 2, which all understand, is the answer without one.
const PATIENCE: Duration = Duration::from_secs(2);
/// RFC 9113, 3.4: how a client begins, with no settings.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
const PATH: &str = "/containerd.services.version.v1.Version/Version";
/// No frame of the answer is longer (RFC 9113, 4.2: the default maximum).
const FRAME: usize = 16 << 10;
/// More frames than an answer has.
const FRAMES: usize = 64;

/// A version of the Task API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskApi {
    /// `containerd.task.v2.Task`.
    V2,
    /// `containerd.task.v3.Task`: the same messages under another name.
    V3,
}

impl TaskApi {
    /// As answers to `start` have it.
    pub fn number(self) -> i32 {
        match self {
            Self::V2 => 2,
            Self::V3 => 3,
        }
    }
}

/// Why containerd's version is not known.
#[derive(Debug, Error)]
pub enum PeerError {
    /// Its socket.
    #[error("cannot ask containerd for its version")]
    Io(#[from] io::Error),
    /// What it says.
    #[error("containerd's answer about its version cannot be understood")]
    Answer,
}

/// The newest Task API that the containerd at `address` (its gRPC socket) takes from a shim that it starts with flags.
///
/// # Errors
/// [`PeerError`]; version 2 suits every containerd then.
pub fn task_api(address: &str) -> Result<TaskApi, PeerError> {
    let version = ask(UnixStream::connect(socket::parse_address(address))?)?;
    log::debug!("containerd is {version}");
    Ok(task_api_of(&version))
}

/// Of `2.1.9`, `v2.1.9`, `1.7.24~ds1` and what else builders make of it. What has no number is newer than any that has.
fn task_api_of(version: &str) -> TaskApi {
    let major = version.trim_start_matches('v').split('.').next().and_then(|major| major.parse::<u32>().ok());
    if major.is_some_and(|major| major < 2) { TaskApi::V2 } else { TaskApi::V3 }
}

fn ask(mut stream: UnixStream) -> Result<String, PeerError> {
    let deadline = Instant::now() + PATIENCE;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(&request())?;
    let mut message = Vec::new();
    for _ in 0..FRAMES {
        let left = deadline.saturating_duration_since(Instant::now());
        stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        let mut head = [0; 9];
        stream.read_exact(&mut head)?;
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        if length > FRAME {
            return Err(PeerError::Answer);
        }
        let mut payload = vec![0; length];
        stream.read_exact(&mut payload)?;
        let (kind, flags) = (head[3], head[4]);
        // Settings and the like need no reply before the answer is there; headers say nothing that is needed.
        if kind == DATA && flags & PADDED == 0 {
            message.extend(payload);
            if let Some(version) = parse_message(&message) {
                return Ok(version);
            }
        }
        if kind == GOAWAY || (kind == DATA || kind == HEADERS) && flags & END_STREAM != 0 {
            break;
        }
    }
    Err(PeerError::Answer)
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;

/// The preface, the headers and an empty message, on stream 1.
fn request() -> Vec<u8> {
    // RFC 7541, appendix A: `:method: POST` and `:scheme: http` are entries 3 and 6.
    let mut headers = vec![0x83, 0x86];
    // Literals without indexing, named by entries 4 (`:path`), 1 (`:authority`) and 31 (`content-type`), and by text.
    literal(&mut headers, &[0x04], PATH);
    literal(&mut headers, &[0x01], "localhost");
    literal(&mut headers, &[0x0f, 0x10], "application/grpc");
    literal(&mut headers, b"\0\x02te", "trailers");
    let mut request = PREFACE.to_vec();
    frame(&mut request, HEADERS, END_HEADERS, &headers);
    // Not compressed, no bytes: the message is `google.protobuf.Empty`.
    frame(&mut request, DATA, END_STREAM, &[0; 5]);
    request
}

/// A header field; all are shorter than the 127 bytes from which on lengths take more than one.
fn literal(headers: &mut Vec<u8>, name: &[u8], value: &str) {
    headers.extend(name);
    headers.push(u8::try_from(value.len()).unwrap_or_default());
    headers.extend(value.as_bytes());
}

fn frame(request: &mut Vec<u8>, kind: u8, flags: u8, payload: &[u8]) {
    request.extend([0, 0, u8::try_from(payload.len()).unwrap_or_default(), kind, flags, 0, 0, 0, 1]);
    request.extend(payload);
}

/// `VersionResponse.version`, field 1 and so first, of a whole gRPC message.
fn parse_message(bytes: &[u8]) -> Option<String> {
    let (&[compressed, a, b, c, d], rest) = bytes.split_first_chunk()?;
    let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).ok()?;
    let message = rest.get(..length).filter(|_| compressed == 0)?;
    let [0x0a, length, ..] = *message else { return None };
    let version = message.get(2..2 + usize::from(length & 0x7f))?;
    String::from_utf8(version.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_choose_the_api() {
        for (version, api) in [
            ("1.7.24~ds1", TaskApi::V2),
            ("v1.7.33", TaskApi::V2),
            ("1.6.0", TaskApi::V2),
            ("v2.1.9", TaskApi::V3),
            ("2.1.9+unknown", TaskApi::V3),
            ("3.0.0-rc.1", TaskApi::V3),
            ("main", TaskApi::V3),
        ] {
            assert_eq!(task_api_of(version), api, "{version}");
        }
    }

    #[test]
    fn a_message_is_taken_when_it_is_whole() {
        let message = b"\0\0\0\0\x0c\x0a\x05v2.1.\x12\x03abc";
        assert_eq!(parse_message(message).as_deref(), Some("v2.1."));
        assert_eq!(parse_message(&message[..10]), None);
        assert_eq!(parse_message(b"\x01\0\0\0\x02\x0a\0"), None);
        assert_eq!(parse_message(b""), None);
    }

    /// What containerd sends, frame by frame: settings, their acknowledgement, headers, the message, trailers.
    #[test]
    fn the_answer_is_found_among_the_frames() {
        let (client, mut server) = UnixStream::pair().unwrap();
        let mut answer = Vec::new();
        for (kind, flags, payload) in [
            (4, 0, &b"\0\x05\0\0\x40\0"[..]),
            (4, 1, b""),
            (HEADERS, END_HEADERS, b"\x88"),
            (DATA, 0, b"\0\0\0\0\x08\x0a\x06v1."),
            (DATA, 0, b"7.2"),
        ] {
            frame(&mut answer, kind, flags, payload);
        }
        server.write_all(&answer).unwrap();
        assert_eq!(ask(client).unwrap(), "v1.7.2");
        let mut asked = vec![0; request().len()];
        server.read_exact(&mut asked).unwrap();
        assert!(asked.starts_with(PREFACE) && asked.ends_with(&[0; 5]));
    }

    #[test]
    fn a_refusal_and_an_early_end_are_errors() {
        for (kind, flags) in [(HEADERS, END_STREAM), (GOAWAY, 0)] {
            let (client, mut server) = UnixStream::pair().unwrap();
            let mut answer = Vec::new();
            frame(&mut answer, kind, flags, b"");
            server.write_all(&answer).unwrap();
            assert!(matches!(ask(client), Err(PeerError::Answer)));
        }
        let (client, server) = UnixStream::pair().unwrap();
        drop(server);
        assert!(matches!(ask(client), Err(PeerError::Io(_))));
        assert!(task_api("/nonexistent.sock").is_err());
    }
}
