//! A bounded buffer between a process that writes and a log that may be slower: Docker's `mode=non-blocking`.
//!
//! What does not fit is dropped, by whole lines where lines fit the buffer at all, and counted. What is kept keeps its
//! order.

use std::{collections::VecDeque, sync::Mutex};

use tokio::sync::Notify;

use super::lock;

/// The buffer, used by one writer and one reader.
pub struct Buffer {
    lines: Mutex<Lines>,
    changed: Notify,
}

#[derive(Debug)]
struct Lines {
    bytes: VecDeque<u8>,
    /// Bytes that were taken last and may be on their way still.
    taken: usize,
    limit: usize,
    dropped: u64,
    /// The line that comes in has been dropped from some byte on: the rest of it goes the same way.
    skipping: bool,
    ended: bool,
}

impl Buffer {
    /// An empty buffer for `limit` bytes.
    pub fn new(limit: usize) -> Self {
        let bytes = VecDeque::new();
        let lines = Lines { bytes, taken: 0, limit, dropped: 0, skipping: false, ended: false };
        Self { lines: Mutex::new(lines), changed: Notify::new() }
    }

    /// Adds what fits. Returns whether anything was dropped for the first time.
    pub fn push(&self, data: &[u8]) -> bool {
        let mut lines = lock(&self.lines);
        let before = lines.dropped;
        lines.push(data);
        let first = before == 0 && lines.dropped > 0;
        drop(lines);
        self.changed.notify_one();
        first
    }

    /// No more will come.
    pub fn end(&self) {
        lock(&self.lines).ended = true;
        self.changed.notify_one();
    }

    /// Waits for bytes and takes at most as many as fit `into`; none when it has ended. Whoever asks has delivered what was
    /// taken before.
    pub async fn take(&self, into: &mut [u8]) -> usize {
        lock(&self.lines).taken = 0;
        loop {
            let changed = self.changed.notified();
            {
                let mut lines = lock(&self.lines);
                let length = lines.take(into);
                if length > 0 || lines.ended {
                    return length;
                }
            }
            changed.await;
        }
    }

    /// Bytes that wait to be taken, and those that have been and may not be delivered yet.
    pub fn held(&self) -> u64 {
        let lines = lock(&self.lines);
        (lines.bytes.len() + lines.taken) as u64
    }

    /// Bytes dropped so far.
    pub fn dropped(&self) -> u64 {
        lock(&self.lines).dropped
    }
}

impl Lines {
    fn push(&mut self, mut data: &[u8]) {
        if self.skipping {
            let rest = data.iter().position(|byte| *byte == b'\n').map_or(data.len(), |end| end + 1);
            self.dropped += rest as u64;
            self.skipping = !data[..rest].ends_with(b"\n");
            data = &data[rest..];
        }
        let room = self.limit.saturating_sub(self.bytes.len());
        if data.len() <= room {
            self.bytes.extend(data);
            return;
        }
        let whole = data[..room].iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        // A line that would never fit is cut where the room ends.
        let keep = if whole == 0 && self.bytes.is_empty() { room } else { whole };
        self.bytes.extend(&data[..keep]);
        let rest = &data[keep..];
        self.dropped += rest.len() as u64;
        self.skipping = !rest.ends_with(b"\n");
        self.drop_begun_line();
    }

    /// The next line must not be joined to one that was begun and cannot go on: that goes too, or, where a part of it
    /// may have been taken, ends here.
    fn drop_begun_line(&mut self) {
        if self.bytes.back().is_none_or(|byte| *byte == b'\n') {
            return;
        }
        match self.bytes.iter().rposition(|byte| *byte == b'\n') {
            Some(end) => {
                self.dropped += (self.bytes.len() - end - 1) as u64;
                self.bytes.truncate(end + 1);
            }
            None => self.bytes.push_back(b'\n'),
        }
    }

    fn take(&mut self, into: &mut [u8]) -> usize {
        let (front, _) = self.bytes.as_slices();
        let length = front.len().min(into.len());
        into[..length].copy_from_slice(&front[..length]);
        self.bytes.drain(..length);
        self.taken = length;
        if self.bytes.is_empty() {
            // A burst should not keep its memory for the life of the container.
            self.bytes.shrink_to(0);
        }
        length
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes out of a buffer of `limit` bytes that nobody reads meanwhile, and how much was dropped.
    async fn through(limit: usize, chunks: &[&str]) -> (String, u64) {
        let buffer = Buffer::new(limit);
        for chunk in chunks {
            buffer.push(chunk.as_bytes());
        }
        buffer.end();
        let (mut out, mut piece) = (Vec::new(), [0; 3]);
        loop {
            match buffer.take(&mut piece).await {
                0 => return (String::from_utf8(out).unwrap(), buffer.dropped()),
                length => out.extend(&piece[..length]),
            }
        }
    }

    #[tokio::test]
    async fn what_fits_comes_out_as_it_went_in() {
        assert_eq!(through(8, &["ab\n", "cd\n", "ef"]).await, ("ab\ncd\nef".to_owned(), 0));
        assert_eq!(through(8, &[]).await, (String::new(), 0));
    }

    #[tokio::test]
    async fn what_does_not_fit_goes_by_whole_lines() {
        assert_eq!(through(6, &["ab\ncd\nef\n"]).await, ("ab\ncd\n".to_owned(), 3));
        assert_eq!(through(7, &["ab\ncd\nef\n"]).await, ("ab\ncd\n".to_owned(), 3));
        assert_eq!(through(6, &["a\nbc", "defgh\n", "i\n"]).await, ("a\ni\n".to_owned(), 8));
        assert_eq!(through(6, &["ab\n", "cdef", "gh\n", "i\n"]).await, ("ab\ni\n".to_owned(), 7));
    }

    #[tokio::test]
    async fn a_line_that_was_begun_is_ended_where_it_is_cut() {
        assert_eq!(through(5, &["abc", "defg", "h\n", "x\n"]).await, ("abc\n".to_owned(), 8));
        assert_eq!(through(4, &["abcdef", "gh\n"]).await, ("abcd\n".to_owned(), 5));
    }

    #[test]
    fn the_first_loss_is_told_once() {
        let buffer = Buffer::new(2);
        assert!(!buffer.push(b"a\n"));
        assert!(buffer.push(b"b\n"));
        assert!(!buffer.push(b"c\n"));
        assert_eq!(buffer.dropped(), 4);
        assert!(buffer.held() > 0);
    }

    #[tokio::test]
    async fn what_was_taken_is_held_until_more_is_asked_for() {
        let buffer = Buffer::new(8);
        buffer.push(b"abc");
        buffer.end();
        assert_eq!(buffer.take(&mut [0; 2]).await, 2);
        assert_eq!(buffer.held(), 3);
        assert_eq!(buffer.take(&mut [0; 2]).await, 1);
        assert_eq!(buffer.held(), 1);
        assert_eq!(buffer.take(&mut [0; 2]).await, 0);
        assert_eq!(buffer.held(), 0);
    }

    #[tokio::test]
    async fn a_reader_that_waits_is_woken() {
        let buffer = std::sync::Arc::new(Buffer::new(8));
        let reader = tokio::spawn({
            let buffer = buffer.clone();
            async move {
                let mut piece = [0; 8];
                buffer.take(&mut piece).await
            }
        });
        tokio::task::yield_now().await;
        buffer.push(b"abc");
        assert_eq!(reader.await.unwrap(), 3);
    }
}
