//! Follows the frames of an HTTP/2 client (RFC 9113 section 4) as far as limits go: whether a header block is under way, and
//! how many streams were cancelled.
//!
//! The library beneath pingora waits for ever for the rest of a header block, and has no bound on streams that are opened and
//! cancelled at once (CVE-2023-44487) where they are taken up as fast as they come, as they are here.

use std::time::{Duration, Instant};

/// Over how long cancelled streams are counted.
const WINDOW: Duration = Duration::from_secs(10);

/// How many streams a client may cancel in that time whatever it does: twice as many as it may have open at once.
const MOST_CANCELLED: u32 = 200;

/// The length of a frame's header, in bytes.
const HEADER: usize = 9;

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

/// What has been seen of one connection, from behind the preface on.
#[derive(Debug, Default)]
pub(super) struct Frames {
    /// The header of the next frame, as far as it has come.
    header: [u8; HEADER],
    have: usize,
    /// What is still to come of the frame before it.
    payload: usize,
    /// Whether that frame is part of a header block.
    carries_block: bool,
    /// Whether the block goes on in the next frame.
    block_goes_on: bool,
    /// How many frames have begun: a header block that takes long is told from many quick ones by it.
    begun: u64,
    block_began: u64,
    newest_stream: u32,
    opened: u32,
    cancelled: u32,
    counted_since: Option<Instant>,
}

/// Most streams of a client are cancelled as soon as they are open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Flood;

impl Frames {
    /// See what the client has sent.
    ///
    /// # Errors
    /// When it cancels most of what it asks for.
    pub(super) fn see(&mut self, mut bytes: &[u8]) -> Result<(), Flood> {
        while !bytes.is_empty() {
            if self.payload > 0 {
                let passed = self.payload.min(bytes.len());
                self.payload -= passed;
                bytes = &bytes[passed..];
                continue;
            }
            let taken = bytes.len().min(HEADER - self.have);
            self.header[self.have..self.have + taken].copy_from_slice(&bytes[..taken]);
            self.have += taken;
            bytes = &bytes[taken..];
            if self.have == HEADER {
                self.have = 0;
                self.frame()?;
            }
        }
        Ok(())
    }

    /// The header block that is under way, by a number of its own; none if none is. A frame whose header has not come whole
    /// counts as one: nine bytes take no time.
    pub(super) fn block(&self) -> Option<u64> {
        if self.have > 0 && !self.block_goes_on {
            return Some(self.begun + 1);
        }
        (self.block_goes_on || (self.carries_block && self.payload > 0)).then_some(self.block_began)
    }

    fn frame(&mut self) -> Result<(), Flood> {
        let [l0, l1, l2, kind, flags, s0, s1, s2, s3] = self.header;
        self.begun += 1;
        self.payload = usize::from(l0) << 16 | usize::from(l1) << 8 | usize::from(l2);
        self.carries_block = matches!(kind, HEADERS | CONTINUATION);
        if kind == HEADERS {
            self.block_began = self.begun;
            let stream = u32::from_be_bytes([s0 & 0x7f, s1, s2, s3]);
            // Trailers open none.
            if stream > self.newest_stream {
                self.newest_stream = stream;
                self.opened = self.opened.saturating_add(1);
            }
        }
        if self.carries_block {
            self.block_goes_on = flags & END_HEADERS == 0;
        }
        if kind == RST_STREAM { self.cancel(Instant::now()) } else { Ok(()) }
    }

    fn cancel(&mut self, now: Instant) -> Result<(), Flood> {
        let since = *self.counted_since.get_or_insert(now);
        if now.duration_since(since) > WINDOW {
            (self.opened, self.cancelled, self.counted_since) = (0, 0, Some(now));
        }
        self.cancelled += 1;
        if self.cancelled > MOST_CANCELLED && self.cancelled > self.opened / 2 { Err(Flood) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = u32::try_from(payload.len()).expect("short").to_be_bytes()[1..].to_vec();
        bytes.extend([kind, flags]);
        bytes.extend(stream.to_be_bytes());
        bytes.extend(payload);
        bytes
    }

    /// Whether a block is under way after each byte.
    fn after_each_byte(bytes: &[u8]) -> Vec<bool> {
        let mut frames = Frames::default();
        let see = |byte: &u8| {
            frames.see(&[*byte]).expect("no flood");
            frames.block().is_some()
        };
        bytes.iter().map(see).collect()
    }

    #[test]
    fn a_block_is_under_way_from_its_first_byte_to_its_last() {
        let block =
            [frame(HEADERS, 0, 1, b"abc"), frame(CONTINUATION, 0, 1, b""), frame(CONTINUATION, END_HEADERS, 1, b"d")];
        let mut under_way = after_each_byte(&block.concat());
        assert_eq!(under_way.pop(), Some(false));
        assert!(under_way.iter().all(|amid| *amid), "{under_way:?}");

        // Of a frame of data only its header is waited for.
        let under_way = after_each_byte(&frame(0, 0, 1, b"abcdef"));
        assert_eq!(under_way.iter().filter(|amid| **amid).count(), HEADER - 1);
        // And whole frames leave nothing behind, however they are cut.
        let mut frames = Frames::default();
        let many = [frame(4, 0, 0, &[0; 30]), frame(HEADERS, END_HEADERS, 1, b"x"), frame(8, 0, 0, &[0; 4])].concat();
        for cut in 0..many.len() {
            frames.see(&many[..cut]).and_then(|()| frames.see(&many[cut..])).expect("no flood");
            assert_eq!(frames.block(), None);
        }
    }

    #[test]
    fn each_block_has_a_number_of_its_own() {
        let mut frames = Frames::default();
        let mut numbers = Vec::new();
        for stream in [1, 3] {
            let block = frame(HEADERS, END_HEADERS, stream, b"abc");
            for byte in &block[..block.len() - 1] {
                frames.see(&[*byte]).expect("no flood");
                numbers.extend(frames.block());
            }
            frames.see(&block[block.len() - 1..]).expect("no flood");
        }
        numbers.dedup();
        assert_eq!(numbers.len(), 2);
    }

    #[test]
    fn cancelling_is_a_flood_only_where_most_streams_are_cancelled() {
        let open = |n: u32| frame(HEADERS, END_HEADERS, 2 * n + 1, b"");
        let cancel = |n: u32| frame(RST_STREAM, 0, 2 * n + 1, &[0; 4]);
        let mut rapid = Frames::default();
        let ended = (0..10_000).find(|n| rapid.see(&[open(*n), cancel(*n)].concat()).is_err());
        assert_eq!(ended, Some(MOST_CANCELLED));
        // A third is what impatient users do. Trailers are no streams of their own.
        let mut usual = Frames::default();
        for n in 0..10_000 {
            let frames = if n % 3 == 0 { [open(n), cancel(n)].concat() } else { open(n) };
            usual.see(&frames).expect("no flood");
        }
        let mut padded = Frames::default();
        assert!((0..10_000).any(|n| padded.see(&[open(n), open(n), open(n), cancel(n)].concat()).is_err()));
        // Long ago does not count.
        let mut slow = Frames::default();
        let begun = Instant::now();
        for n in 0..1_000 {
            slow.cancel(begun + WINDOW.mul_f64(f64::from(n) / 100.0)).expect("a hundred in a window");
        }
    }
}
