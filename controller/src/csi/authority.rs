//! HTTP/2 of clients that send the path of the socket as `:authority`, as the kubelet does where it registers plugins (Kubernetes 1.37,
//! `pkg/kubelet/pluginmanager/operationexecutor`): no authority has a `/`, and h2 refuses the request (hyperium/h2#487).
//!
//! What a client sends is read frame by frame, and the value of each literal `:authority` becomes `localhost`; all else is handed on as it
//! is. A value that is referred to by its index later is the one that was put there, for both sides count entries from the newest; an entry
//! that is smaller than the client thinks is dropped later than the client thinks, and the client does not refer to it then (RFC 7541,
//! sections 2.3 and 4).

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::UnixStream,
};
use tonic::transport::server::Connected;

/// What a connection begins with (RFC 9113, section 3.4).
const PREFACE: usize = 24;
/// Length, type, flags and stream (section 4.1).
const HEAD: usize = 9;
/// The largest frame that is sent to one who has not allowed more (section 4.2).
const LARGEST: usize = 1 << 14;
const HEADERS: u8 = 1;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// The static table's entry `:authority` (RFC 7541, appendix A).
const AUTHORITY: usize = 1;
/// What takes the place of its values: a plain string, with its length.
const LOCALHOST: &[u8] = b"\x09localhost";

/// A connection whose requests have an authority.
#[derive(Debug)]
pub struct Corrected {
    stream: UnixStream,
    read: Vec<u8>,
    /// What can be handed on, from here.
    ready: Vec<u8>,
    taken: usize,
    has_preface: bool,
}

impl Corrected {
    /// Of this connection.
    pub fn new(stream: UnixStream) -> Self {
        Self { stream, read: Vec::new(), ready: Vec::new(), taken: 0, has_preface: false }
    }

    /// Moves what is whole to what can be handed on.
    fn sort(&mut self) -> io::Result<()> {
        self.ready.drain(..self.taken);
        self.taken = 0;
        let mut at = 0;
        if !self.has_preface && self.read.len() >= PREFACE {
            self.ready.extend_from_slice(&self.read[..PREFACE]);
            (at, self.has_preface) = (PREFACE, true);
        }
        while self.has_preface {
            let Some(head) = self.read.get(at..at + HEAD) else { break };
            let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
            if length > LARGEST {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame that is too large"));
            }
            let Some(frame) = self.read.get(at..at + HEAD + length) else { break };
            let (head, payload) = frame.split_at(HEAD);
            let corrected = (head[3] == HEADERS).then(|| correct(head[4], payload)).flatten();
            match corrected {
                Some(payload) => {
                    self.ready
                        .extend_from_slice(&u32::try_from(payload.len()).unwrap_or(0).to_be_bytes()[1..]);
                    self.ready.extend_from_slice(&head[3..]);
                    self.ready.extend_from_slice(&payload);
                }
                None => self.ready.extend_from_slice(frame),
            }
            at += HEAD + length;
        }
        self.read.drain(..at);
        Ok(())
    }
}

/// The payload of a frame of headers with other authorities; nothing where it is none that can be read.
fn correct(flags: u8, payload: &[u8]) -> Option<Vec<u8>> {
    let padding = if flags & PADDED == 0 { 0 } else { usize::from(*payload.first()?) };
    let before = usize::from(flags & PADDED != 0) + if flags & PRIORITY == 0 { 0 } else { 5 };
    let block = payload.get(before..payload.len().checked_sub(padding)?)?;
    let mut corrected = payload[..before].to_vec();
    let mut at = 0;
    while at < block.len() {
        let field = read_field(&block[at..])?;
        let bytes = &block[at..at + field.length];
        match field.authority {
            Some(value) => {
                corrected.extend_from_slice(&bytes[..value]);
                corrected.extend_from_slice(LOCALHOST);
            }
            None => corrected.extend_from_slice(bytes),
        }
        at += field.length;
    }
    corrected.extend_from_slice(&payload[payload.len() - padding..]);
    Some(corrected)
}

/// A field of a block of headers (RFC 7541, section 6).
struct Field {
    /// All of it, in bytes.
    length: usize,
    /// Where its value begins, if it is a literal `:authority`.
    authority: Option<usize>,
}

fn read_field(bytes: &[u8]) -> Option<Field> {
    let (prefix, is_literal) = match *bytes.first()? {
        first if first & 0x80 != 0 => (7, false),
        first if first & 0x40 != 0 => (6, true),
        first if first & 0x20 != 0 => (5, false),
        _ => (4, true),
    };
    let (index, mut at) = read_number(bytes, prefix)?;
    if !is_literal {
        return Some(Field { length: at, authority: None });
    }
    if index == 0 {
        at += read_text(&bytes[at..])?;
    }
    let value = at;
    at += read_text(bytes.get(at..)?)?;
    Some(Field { length: at, authority: (index == AUTHORITY).then_some(value) })
}

/// A number with a prefix of so many bits, and how many bytes it takes (section 5.1).
fn read_number(bytes: &[u8], prefix: u32) -> Option<(usize, usize)> {
    let most = (1_usize << prefix) - 1;
    let first = usize::from(*bytes.first()?) & most;
    if first < most {
        return Some((first, 1));
    }
    let mut number = most;
    for (n, byte) in bytes.iter().enumerate().skip(1).take(3) {
        number += usize::from(byte & 0x7f) << (7 * (n - 1));
        if byte & 0x80 == 0 {
            return Some((number, n + 1));
        }
    }
    None
}

/// How many bytes a string takes, with its length (section 5.2).
fn read_text(bytes: &[u8]) -> Option<usize> {
    let (length, at) = read_number(bytes, 7)?;
    let end = at.checked_add(length)?;
    (end <= bytes.len()).then_some(end)
}

impl AsyncRead for Corrected {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.taken == this.ready.len() {
            let mut bytes = [0; LARGEST];
            let mut buffer = ReadBuf::new(&mut bytes);
            ready!(Pin::new(&mut this.stream).poll_read(context, &mut buffer))?;
            if buffer.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            this.read.extend_from_slice(buffer.filled());
            this.sort()?;
        }
        let rest = &this.ready[this.taken..];
        let now = rest.len().min(into.remaining());
        into.put_slice(&rest[..now]);
        this.taken += now;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Corrected {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

impl Connected for Corrected {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// `:method: POST` (indexed), a literal `:authority`, a literal of a new name, and a change of the table's size.
    fn block(value: &[u8]) -> Vec<u8> {
        let mut block = vec![0x83, 0x41, u8::try_from(value.len()).unwrap()];
        block.extend_from_slice(value);
        block.extend_from_slice(b"\x40\x02te\x08trailers\x20");
        block
    }

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    #[test]
    fn an_authority_is_corrected_wherever_it_is_and_nothing_else_is() {
        let (bad, good) = (block(b"/var/lib/kubelet/plugins_registry/csi.sock"), block(b"localhost"));
        assert_eq!(correct(0x4, &bad).unwrap(), good);
        assert_eq!(correct(0x4, &good).unwrap(), good);
        // With a priority, and with padding.
        let prioritised = [&[0, 0, 0, 0, 7], &bad[..]].concat();
        assert_eq!(correct(0x24, &prioritised).unwrap(), [&[0, 0, 0, 0, 7], &good[..]].concat());
        let padded = [&[2], &bad[..], &[0, 0]].concat();
        assert_eq!(correct(0xc, &padded).unwrap(), [&[2], &good[..], &[0, 0]].concat());
        // Huffman's coding is a string of another length.
        assert_eq!(correct(0x4, b"\x41\x82\xff\xff").unwrap(), b"\x41\x09localhost");
        // One that is not kept by either side, and a long length.
        let long = [&[0x01, 0x7f, 0x01][..], &[b'a'; 128]].concat();
        assert_eq!(correct(0x4, &long).unwrap(), b"\x01\x09localhost");
        assert_eq!(correct(0x4, b"\x41\x05abc"), None);
    }

    #[tokio::test]
    async fn a_connection_is_read_whole_however_it_comes() {
        let bad = block(b"/run/csi.sock");
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        let rest = [frame(4, 0, &[]), frame(1, 4, &bad), frame(0, 1, b"data"), frame(1, 4, &bad)].concat();
        let sent = [preface.clone(), rest].concat();
        let good = block(b"localhost");
        let rest = [frame(4, 0, &[]), frame(1, 4, &good), frame(0, 1, b"data"), frame(1, 4, &good)].concat();
        let expected = [preface, rest].concat();
        for size in [1, 7, 24, 25, 4096] {
            let (mut client, server) = UnixStream::pair().unwrap();
            let sent = sent.clone();
            let sending = tokio::spawn(async move {
                for piece in sent.chunks(size) {
                    client.write_all(piece).await.unwrap();
                }
            });
            let mut seen = Vec::new();
            Corrected::new(server).read_to_end(&mut seen).await.unwrap();
            assert_eq!(seen, expected, "in pieces of {size}");
            sending.await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_frame_that_nobody_may_send_ends_the_connection() {
        let (mut client, server) = UnixStream::pair().unwrap();
        client.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\x01\x04\0\0\0\x01").await.unwrap();
        let error = Corrected::new(server).read_to_end(&mut Vec::new()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(flags: u8, payload in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = correct(flags, &payload);
        }
    }
}
