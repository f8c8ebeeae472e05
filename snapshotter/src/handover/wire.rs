//! Lines, and descriptors beside them (unix(7), `SCM_RIGHTS`).

use std::{
    io::{self, IoSlice, IoSliceMut, Write},
    mem::MaybeUninit,
    os::{
        fd::{BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
};

use rustix::{
    cmsg_space,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
        SendFlags, recvmsg, sendmsg,
    },
};

use super::HandoverError;

/// Longest line, in bytes.
const LINE: usize = 256;
/// Most descriptors with a line.
const DESCRIPTORS: usize = 2;

/// Sends a line.
pub(super) fn send(mut stream: &UnixStream, line: &str) -> Result<(), HandoverError> {
    let sent = stream.write_all(format!("{line}\n").as_bytes());
    sent.map_err(|source| HandoverError::Send { line: line.to_owned(), source })
}

/// Sends a line with descriptors. The line is short: the socket takes it whole or not at all.
pub(super) fn send_with(
    stream: &UnixStream,
    line: &str,
    descriptors: [BorrowedFd<'_>; DESCRIPTORS],
) -> Result<(), HandoverError> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&descriptors));
    let text = format!("{line}\n");
    // NOSIGNAL: a successor that has gone is an error and not a signal.
    let sent = sendmsg(stream, &[IoSlice::new(text.as_bytes())], &mut control, SendFlags::NOSIGNAL);
    sent.map(drop).map_err(|errno| HandoverError::Send { line: line.to_owned(), source: errno.into() })
}

/// Receives a line, without its end, and what descriptors came with it. An end of the stream is an error of kind
/// `UnexpectedEof`.
pub(super) fn receive(
    stream: &UnixStream,
    expected: &'static str,
) -> Result<(String, Vec<OwnedFd>), HandoverError> {
    let failed = |source| HandoverError::Receive { expected, source };
    let (mut line, mut descriptors) = (Vec::new(), Vec::new());
    while line.len() < LINE {
        let mut byte = [0];
        if receive_some(stream, &mut byte, &mut descriptors).map_err(failed)? == 0 {
            return Err(failed(io::ErrorKind::UnexpectedEof.into()));
        }
        if byte == *b"\n" {
            return Ok((String::from_utf8_lossy(&line).into_owned(), descriptors));
        }
        line.extend(byte);
    }
    Err(failed(io::Error::other(format!("a line of more than {LINE} bytes"))))
}

/// Receives a line that must be the expected one.
pub(super) fn expect(stream: &UnixStream, expected: &'static str) -> Result<(), HandoverError> {
    let (said, _) = receive(stream, expected)?;
    if said == expected { Ok(()) } else { Err(HandoverError::Unexpected { expected, said }) }
}

fn receive_some(stream: &UnixStream, bytes: &mut [u8], descriptors: &mut Vec<OwnedFd>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let buffer = &mut [IoSliceMut::new(bytes)];
        match recvmsg(stream, buffer, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            done => break done?,
        }
    };
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            descriptors.extend(received);
        }
    }
    Ok(received.bytes)
}

#[cfg(test)]
mod tests {
    use std::{io::Read, os::fd::AsFd};

    use super::*;

    #[test]
    fn a_line_and_its_descriptors_arrive_together() {
        let (here, there) = UnixStream::pair().unwrap();
        let (mut kept, given) = UnixStream::pair().unwrap();
        send_with(&here, "sockets 1", [given.as_fd(), given.as_fd()]).unwrap();
        send(&here, "next").unwrap();
        drop(given);
        let (line, descriptors) = receive(&there, "sockets").unwrap();
        assert_eq!((line.as_str(), descriptors.len()), ("sockets 1", 2));
        UnixStream::from(descriptors.into_iter().next().unwrap()).write_all(b"x").unwrap();
        let mut byte = [0];
        kept.read_exact(&mut byte).unwrap();
        expect(&there, "next").unwrap();
    }

    #[test]
    fn what_is_not_a_line_is_refused() {
        let (mut here, there) = UnixStream::pair().unwrap();
        here.write_all(&[b'x'; 300]).unwrap();
        assert!(matches!(receive(&there, "ready"), Err(HandoverError::Receive { expected: "ready", .. })));
        let (here, there) = UnixStream::pair().unwrap();
        send(&here, "reddy").unwrap();
        assert!(matches!(expect(&there, "ready"), Err(HandoverError::Unexpected { .. })));
        drop(here);
        let Err(HandoverError::Receive { source, .. }) = expect(&there, "ready") else { panic!() };
        assert_eq!(source.kind(), io::ErrorKind::UnexpectedEof);
    }
}
