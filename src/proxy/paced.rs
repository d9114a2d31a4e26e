//! A client's connection with an eye on the clock: heads that take too long or grow too large, clients that take nothing of
//! what is sent to them.
//!
//! Pingora waits up to a minute for each read of a head, so that one byte a minute keeps a connection for hours; after a first
//! request it waits for ever, as it does for a client that does not read. The bounds are kept here, below it, where they cost
//! a request nothing that can be measured: a clock is looked at only where there is nothing to read or no room to write, and
//! a timer, once set, is left alone until it goes off.
//!
//! Pingora also answers a head that it can't read without a word. What it writes before a request has been passed on is
//! replaced by an answer of ours.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_trait::async_trait;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::{
    GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, Stream, TimingDigest,
    UniqueID, UniqueIDType,
};
use smallvec::SmallVec;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until, timeout};

use super::doorman::{Doorman, Refusal};
use super::frames::Frames;
use crate::metrics::Limit;

/// How HTTP/2 begins, and no request of HTTP/1 does (RFC 9113 section 3.4).
pub(super) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// More lines than this and pingora reads no head.
const MOST_LINES: usize = 256;

/// How much a client that was refused may still send while it reads why, in bytes.
const LINGER_BYTES: usize = 256 << 10;

/// For how long: a connection that is closed with bytes unread is reset, and the answer lost.
const LINGER: Duration = Duration::from_secs(2);

/// What the time for that is called among the waits of a connection.
const FAREWELL: u64 = u64::MAX;

/// The bounds of a connection, from its beginning to its end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// How long it may be open without a request.
    pub(super) idle: Duration,
    /// How long a request's head may take, from its first byte to its last.
    pub(super) head: Duration,
    /// How long a client may take nothing of what is sent to it.
    pub(super) write: Duration,
    /// How large a head may grow before anybody looks at it, in bytes.
    pub(super) head_bytes: usize,
    /// How long its first line may be, in bytes.
    pub(super) first_line_bytes: usize,
}

/// A stream that keeps them.
pub(super) struct Paced {
    stream: Stream,
    pace: Pace,
    doorman: Arc<Doorman>,
    /// What was read to tell the protocol, and is read again.
    peeked: SmallVec<[u8; PREFACE.len()]>,
    /// What there is over HTTP/2.
    frames: Option<Frames>,
    /// What has come of the head that is awaited. Of no meaning once that has been passed on.
    head: Head,
    /// Whether the request that is under way has been passed on, so that what comes is no head.
    passed: AtomicBool,
    reads: Alarm,
    writes: Alarm,
    /// Why the client is turned away, until it is being told.
    refusal: Option<Refusal>,
    farewell: Option<Farewell>,
}

/// The last that a client hears: what it is told, and how far that is.
struct Farewell {
    answer: Vec<u8>,
    written: usize,
    shut: bool,
    /// How much of what it still sends is read, in bytes.
    left: usize,
}

#[derive(Debug, Default)]
struct Head {
    bytes: usize,
    /// Line ends.
    lines: usize,
    /// The length of the first line, as far as it has come, in bytes.
    first_line: usize,
    end: End,
}

/// What has been seen of the empty line that ends a head.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum End {
    /// Nothing, or not in one piece.
    #[default]
    Unseen,
    /// It was the last that came.
    Seen,
    /// More has come behind it: a body, or the next request.
    Passed,
}

/// A time by which something must have happened. The timer is set when it is first needed and moved only when it goes off too
/// early, which is hardly ever.
#[derive(Debug, Default)]
struct Alarm {
    due: Option<Instant>,
    /// What it was set for, so that another wait is another one.
    what: u64,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Paced {
    pub(super) fn new(stream: Stream, pace: Pace, doorman: Arc<Doorman>) -> Self {
        Self {
            stream,
            pace,
            doorman,
            peeked: SmallVec::new(),
            frames: None,
            head: Head::default(),
            passed: AtomicBool::new(false),
            reads: Alarm::default(),
            writes: Alarm::default(),
            refusal: None,
            farewell: None,
        }
    }

    /// The stream that pingora has given back, or is using.
    pub(super) fn of(stream: &Stream) -> Option<&Self> {
        (**stream).as_any().downcast_ref()
    }

    /// The request that has come is passed on: what is read from now on is no head, until [`Paced::awaits_head`].
    pub(super) fn pass(&self) {
        self.passed.store(true, Ordering::Relaxed);
    }

    /// A connection that pingora has given back: another request may come.
    pub(super) fn given_back(stream: Stream) -> Option<Box<Self>> {
        // None: no connection of ours, which can't be.
        let mut paced = stream.into_any().downcast::<Self>().ok()?;
        *paced.passed.get_mut() = false;
        paced.reads.due = None;
        // What pingora has read too much of is the beginning of the next head, of which nothing was seen yet.
        let end = std::mem::take(&mut paced.head).end;
        paced.head.end = end;
        Some(paced)
    }

    /// Whether the last request was read exactly to its end, as far as can be told. Pingora may have read too much otherwise,
    /// and holds the next request already.
    pub(super) fn nothing_is_left(&self) -> bool {
        self.head.end == End::Seen
    }

    /// Wait for the first byte of the next request.
    ///
    /// # Errors
    /// When the connection ends, or has been idle for too long.
    pub(super) async fn begins(&mut self) -> io::Result<()> {
        self.peek(1).await.map(|_| ())
    }

    /// Whether the client speaks HTTP/2.
    ///
    /// # Errors
    /// When the connection ends, or too little comes in time.
    pub(super) async fn speaks_http2(&mut self) -> io::Result<bool> {
        // The shortest request of HTTP/1, `GET / HTTP/1.0` and an empty line, is shorter than the preface.
        if self.peek(4).await? != &PREFACE[..4] || self.peek(PREFACE.len()).await? != PREFACE {
            return Ok(false);
        }
        self.frames = Some(Frames::default());
        Ok(true)
    }

    /// Turn the client away: it is told why when the stream is shut.
    pub(super) fn refuse(&mut self, refusal: Refusal) {
        self.refusal = Some(refusal);
    }

    /// Write `bytes` as far as there is room at once, which there is where nothing has been written before.
    pub(super) async fn write_at_once(&mut self, bytes: &[u8]) {
        let stream = &mut self.stream;
        let write = async { stream.write_all(bytes).await.and(stream.flush().await) };
        let _ = timeout(Duration::ZERO, write).await;
    }

    /// The first bytes; they are read again.
    async fn peek(&mut self, wanted: usize) -> io::Result<&[u8]> {
        while self.peeked.len() < wanted {
            let mut bytes = [0; PREFACE.len()];
            let mut buffer = ReadBuf::new(&mut bytes[..wanted - self.peeked.len()]);
            std::future::poll_fn(|cx| self.poll_read_head(cx, &mut buffer)).await?;
            if buffer.filled().is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.peeked.extend_from_slice(buffer.filled());
        }
        Ok(&self.peeked[..wanted])
    }

    /// Read what may be a head, or a part of one.
    fn poll_read_head(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.head.bytes >= self.pace.head_bytes {
            let target_too_long = self.head.first_line > self.pace.first_line_bytes;
            self.refuse(if target_too_long { Refusal::TargetTooLong } else { Refusal::HeadersTooLarge });
            return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
        }
        let before = buffer.filled().len();
        match Pin::new(&mut self.stream).poll_read(cx, buffer) {
            Poll::Ready(read) => {
                self.head.see(&buffer.filled()[before..]);
                Poll::Ready(read)
            }
            Poll::Pending => {
                let begun = self.head.bytes > 0;
                let span = if begun { self.pace.head } else { self.pace.idle };
                ready!(self.reads.poll(u64::from(begun), span, cx));
                if begun {
                    self.refuse(Refusal::TooSlow);
                }
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            }
        }
    }

    /// Read frames of HTTP/2. How long such a connection may be idle is pingora's business, which knows its streams.
    fn poll_read_frames(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Some(frames) = &mut self.frames else { return Pin::new(&mut self.stream).poll_read(cx, buffer) };
        let before = buffer.filled().len();
        match Pin::new(&mut self.stream).poll_read(cx, buffer) {
            Poll::Ready(Ok(())) => match frames.see(&buffer.filled()[before..]) {
                Ok(()) => Poll::Ready(Ok(())),
                Err(super::frames::Flood) => {
                    self.doorman.count(Limit::Resets);
                    Poll::Ready(Err(io::ErrorKind::InvalidData.into()))
                }
            },
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => {
                let Some(block) = frames.block() else { return Poll::Pending };
                ready!(self.reads.poll(block, self.pace.head, cx));
                self.doorman.count(Limit::HeaderTimeout);
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            }
        }
    }

    /// Let a client go that takes nothing.
    fn watch<T>(&mut self, written: Poll<io::Result<T>>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.writes.due = None;
            return written;
        }
        ready!(self.writes.poll(0, self.pace.write, cx));
        self.doorman.count(Limit::WriteTimeout);
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    /// Whether pingora is writing its own answer to a head that it could not read. To CONNECT, which it could, it may say no.
    fn replaces(&mut self, bytes: &[u8]) -> bool {
        let unread = self.frames.is_none() && !*self.passed.get_mut();
        if unread && self.refusal.is_none() && bytes.starts_with(b"HTTP/1.1 400 ") {
            // Some it can't read for their size alone.
            self.refuse(match &self.head {
                head if head.first_line > self.pace.first_line_bytes => Refusal::TargetTooLong,
                head if head.lines > MOST_LINES => Refusal::HeadersTooLarge,
                _ => Refusal::Malformed,
            });
        }
        unread && self.refusal.is_some()
    }

    /// Tell a client that is turned away why, and read on for a moment. Pingora has no word for it but to shut the stream.
    fn poll_farewell(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(farewell) = &mut self.farewell else { return Poll::Ready(Ok(())) };
        if farewell.poll(Pin::new(&mut self.stream), cx).is_pending() {
            ready!(self.reads.poll(FAREWELL, LINGER, cx));
        }
        self.farewell = None;
        Poll::Ready(Ok(()))
    }
}

impl Farewell {
    fn new(answer: Vec<u8>) -> Self {
        Self { answer, written: 0, shut: false, left: LINGER_BYTES }
    }

    fn poll(&mut self, mut stream: Pin<&mut Stream>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.answer.len() {
            match ready!(stream.as_mut().poll_write(cx, &self.answer[self.written..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.written += written,
            }
        }
        if !self.shut {
            ready!(stream.as_mut().poll_shutdown(cx))?;
            self.shut = true;
        }
        let mut waste = [0; 4096];
        while self.left > 0 {
            let mut waste = ReadBuf::new(&mut waste);
            ready!(stream.as_mut().poll_read(cx, &mut waste))?;
            match waste.filled().len() {
                0 => break,
                read => self.left = self.left.saturating_sub(read),
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl Head {
    fn see(&mut self, bytes: &[u8]) {
        const EMPTY_LINE: &[u8] = b"\r\n\r\n";
        if self.bytes == 0 {
            self.end = End::Unseen;
        }
        self.bytes += bytes.len();
        if self.lines == 0 {
            self.first_line += memchr::memchr(b'\n', bytes).unwrap_or(bytes.len());
        }
        self.lines += memchr::memchr_iter(b'\n', bytes).count();
        self.end = match self.end {
            End::Unseen => match memchr::memmem::find(bytes, EMPTY_LINE) {
                None => End::Unseen,
                Some(at) if at + EMPTY_LINE.len() == bytes.len() => End::Seen,
                Some(_) => End::Passed,
            },
            seen if bytes.is_empty() => seen,
            End::Seen | End::Passed => End::Passed,
        };
    }
}

impl Alarm {
    /// Wait until `span` after `what` was first waited for.
    fn poll(&mut self, what: u64, span: Duration, cx: &mut Context<'_>) -> Poll<()> {
        let due = match self.due {
            Some(due) if self.what == what => due,
            _ => {
                self.what = what;
                *self.due.insert(Instant::now() + span)
            }
        };
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(due)));
        if timer.deadline() > due {
            timer.as_mut().reset(due);
        }
        loop {
            ready!(timer.as_mut().poll(cx));
            if timer.deadline() >= due {
                return Poll::Ready(());
            }
            timer.as_mut().reset(due);
        }
    }
}

impl AsyncRead for Paced {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.peeked.is_empty() {
            let again = this.peeked.len().min(buffer.remaining());
            buffer.put_slice(&this.peeked[..again]);
            this.peeked.drain(..again);
            if this.frames.is_none() && buffer.remaining() > 0 {
                // What has come behind it, so that a head is not parsed twice. An error comes again.
                let _ = this.poll_read_head(cx, buffer);
            }
            return Poll::Ready(Ok(()));
        }
        if this.frames.is_some() {
            this.poll_read_frames(cx, buffer)
        } else if *this.passed.get_mut() {
            let before = buffer.filled().len();
            let read = Pin::new(&mut this.stream).poll_read(cx, buffer);
            if buffer.filled().len() > before {
                this.head.end = End::Passed;
            }
            read
        } else {
            this.poll_read_head(cx, buffer)
        }
    }
}

impl AsyncWrite for Paced {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.replaces(bytes) {
            return Poll::Ready(Ok(bytes.len()));
        }
        let written = Pin::new(&mut this.stream).poll_write(cx, bytes);
        this.watch(written, cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write_vectored(cx, pieces);
        this.watch(written, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = Pin::new(&mut this.stream).poll_flush(cx);
        this.watch(flushed, cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Some(refusal) = this.refusal.take() {
            let took = if refusal == Refusal::TooSlow { this.pace.head } else { Duration::ZERO };
            this.farewell = Some(Farewell::new(this.doorman.answer(refusal, took)));
        }
        if this.farewell.is_some() {
            return this.poll_farewell(cx);
        }
        let shut = Pin::new(&mut this.stream).poll_shutdown(cx);
        this.watch(shut, cx)
    }
}

#[async_trait]
impl Shutdown for Paced {
    async fn shutdown(&mut self) {
        // Whoever is gone can't be told that this is the end.
        let _ = AsyncWriteExt::shutdown(self).await;
    }
}

#[async_trait]
impl Peek for Paced {
    async fn try_peek(&mut self, bytes: &mut [u8]) -> io::Result<bool> {
        let wanted = bytes.len();
        bytes.copy_from_slice(self.peek(wanted).await?);
        Ok(true)
    }
}

impl UniqueID for Paced {
    fn id(&self) -> UniqueIDType {
        self.stream.id()
    }
}

impl Ssl for Paced {}

impl GetTimingDigest for Paced {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        self.stream.get_timing_digest()
    }

    fn get_read_pending_time(&self) -> Duration {
        self.stream.get_read_pending_time()
    }

    fn get_write_pending_time(&self) -> Duration {
        self.stream.get_write_pending_time()
    }
}

impl GetProxyDigest for Paced {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        self.stream.get_proxy_digest()
    }
}

impl GetSocketDigest for Paced {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.stream.get_socket_digest()
    }
}

impl fmt::Debug for Paced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Paced").field("stream", &self.stream).finish_non_exhaustive()
    }
}
