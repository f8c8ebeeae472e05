//! The first message of a call, looked at on its way.

use std::{
    collections::VecDeque,
    pin::Pin,
    task::{Context, Poll},
};

use hyper::body::{Body, Bytes, Frame, SizeHint};

/// Longest message that is looked at. Longer ones go through unseen.
const MAX: usize = 64 << 10;

/// Before each message: whether it is compressed, and its length (gRPC over HTTP/2, "Length-Prefixed-Message").
const PREFIX: usize = 5;

/// A body whose beginning was looked at: it comes out whole.
#[derive(Debug)]
pub struct Peeked<B> {
    first: VecDeque<Frame<Bytes>>,
    rest: B,
}

impl<B: Body<Data = Bytes> + Unpin> Peeked<B> {
    /// A body that was not looked at.
    pub fn unseen(body: B) -> Self {
        Self { first: VecDeque::new(), rest: body }
    }

    /// Waits for the first message. It is `None` when it is too long to be looked at, compressed, or there is none.
    ///
    /// # Errors
    /// The body's.
    pub async fn first_of(body: B) -> Result<(Option<Vec<u8>>, Self), B::Error> {
        let mut peeked = Self::unseen(body);
        let mut seen = Vec::new();
        loop {
            match complete(&seen) {
                Seen::More => {}
                Seen::Message(length) => {
                    let message = seen.get(PREFIX..PREFIX + length).map(<[u8]>::to_vec);
                    return Ok((message, peeked));
                }
                Seen::Nothing => return Ok((None, peeked)),
            }
            let frame = std::future::poll_fn(|context| Pin::new(&mut peeked.rest).poll_frame(context)).await;
            let Some(frame) = frame.transpose()? else { return Ok((None, peeked)) };
            if let Some(data) = frame.data_ref() {
                seen.extend_from_slice(data);
            }
            peeked.first.push_back(frame);
        }
    }
}

enum Seen {
    More,
    Message(usize),
    Nothing,
}

fn complete(seen: &[u8]) -> Seen {
    let Some((prefix, message)) = seen.split_first_chunk::<PREFIX>() else { return Seen::More };
    let [compressed, length @ ..] = *prefix;
    match usize::try_from(u32::from_be_bytes(length)) {
        Ok(length) if compressed == 0 && length <= MAX && message.len() >= length => Seen::Message(length),
        Ok(length) if compressed == 0 && length <= MAX => Seen::More,
        _ => Seen::Nothing,
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Peeked<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        match self.first.pop_front() {
            Some(frame) => Poll::Ready(Some(Ok(frame))),
            None => Pin::new(&mut self.rest).poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_empty() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        if self.first.is_empty() { self.rest.size_hint() } else { SizeHint::default() }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    /// Gives its pieces one by one.
    #[derive(Debug)]
    struct Pieces(VecDeque<Bytes>);

    impl Body for Pieces {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            Poll::Ready(self.0.pop_front().map(|piece| Ok(Frame::data(piece))))
        }
    }

    async fn peek(bytes: &[u8], piece: usize) -> (Option<Vec<u8>>, Vec<u8>, usize) {
        let pieces = bytes.chunks(piece).map(Bytes::copy_from_slice).collect();
        let (message, mut peeked) = Peeked::first_of(Pieces(pieces)).await.unwrap();
        let looked_at = peeked.first.len();
        let mut whole = Vec::new();
        while let Some(frame) = std::future::poll_fn(|c| Pin::new(&mut peeked).poll_frame(c)).await {
            whole.extend_from_slice(&frame.unwrap().into_data().unwrap());
        }
        (message, whole, looked_at)
    }

    #[tokio::test]
    async fn a_message_is_seen_in_whatever_pieces_and_passed_on_whole() {
        let bytes = [0, 0, 0, 0, 3, b'a', b'b', b'c', 0, 0, 0, 0, 1, b'd'];
        for piece in 1..=bytes.len() {
            let (message, whole, _) = peek(&bytes, piece).await;
            assert_eq!((message.as_deref(), whole.as_slice()), (Some(&b"abc"[..]), &bytes[..]), "{piece}");
        }
        assert_eq!(peek(&[0; 5], 2).await.0, Some(Vec::new()));
    }

    #[tokio::test]
    async fn what_cannot_be_looked_at_is_passed_on_all_the_same() {
        let compressed = [1, 0, 0, 0, 1, b'a'];
        let cut = [0, 0, 0, 0, 9, b'a'];
        let mut long = vec![0, 0, 2, 0, 0];
        long.extend_from_slice(&vec![7; 0x20000]);
        for bytes in [&compressed[..], &cut, &long, &[0, 0], &[]] {
            let (message, whole, _) = peek(bytes, 1000).await;
            assert_eq!((message, whole.as_slice()), (None, bytes));
        }
        // It is not even waited for.
        assert_eq!(peek(&long, 1000).await.2, 1);
    }
}
