//! One open WebSocket (RFC 6455): its client is told of the licence, and neither end keeps the other waiting for ever.
//!
//! There may be thousands, nearly all of them idle. So each has small buffers, one task, and nothing that runs while there
//! is nothing to tell.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::ProtocolError;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message, Utf8Bytes};

/// How often a client is asked whether it is still there. Nothing heard of it until it would be asked again: it is not.
const PING_EVERY: Duration = Duration::from_secs(30);

/// How much a client may send in that time, in messages of any kind: it has nothing to say.
const MOST_MESSAGES: u32 = 256;

/// How long something may wait to be sent.
const STALLED_AFTER: Duration = Duration::from_secs(10);

/// How long a closed client has to say that it has seen it.
const GOODBYE: Duration = Duration::from_secs(2);

/// The largest message that a client may send, in bytes. What it says is passed over all the same.
const MAX_RECEIVED: usize = 4 << 10;

/// The most that may wait to be sent, in bytes: the largest licence and a few pongs.
const MAX_WAITING: usize = 1 << 20;

/// How much is still read of a client that was closed for what it sent, in bytes: if it were cut off while it sends, it would
/// not read why.
const MAX_DRAINED: usize = 256 << 10;

/// What a client is told.
pub(crate) trait Updates: Send {
    /// The next message, the first at once. Whoever stops waiting misses nothing.
    fn next(&mut self) -> impl Future<Output = Utf8Bytes> + Send;
}

/// Why a socket was closed, as the label `cause` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Cause {
    /// The client closed it.
    Client,
    /// The connection broke.
    Lost,
    /// Nothing was heard of the client, not even an answer to a ping.
    Silent,
    /// What was to be sent could not be.
    Stalled,
    /// The client sent a message that is too large.
    TooLarge,
    /// The client sent too many messages.
    Flood,
    /// The client does not keep to the protocol.
    Protocol,
    /// The client's token has expired.
    Expired,
    /// The program ends.
    Shutdown,
}

impl Cause {
    /// Every cause.
    pub(crate) const ALL: [Self; 9] = [
        Self::Client,
        Self::Lost,
        Self::Silent,
        Self::Stalled,
        Self::TooLarge,
        Self::Flood,
        Self::Protocol,
        Self::Expired,
        Self::Shutdown,
    ];

    /// As metrics and log write it.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Lost => "lost",
            Self::Silent => "silent",
            Self::Stalled => "stalled",
            Self::TooLarge => "too_large",
            Self::Flood => "flood",
            Self::Protocol => "protocol",
            Self::Expired => "expired",
            Self::Shutdown => "shutdown",
        }
    }

    /// What the client is told (RFC 6455 section 7.4.1); nothing where it closed itself, or is gone.
    const fn code(self) -> Option<(CloseCode, &'static str)> {
        match self {
            Self::Client | Self::Lost => None,
            Self::Silent => Some((CloseCode::Policy, "no answer to a ping")),
            Self::Stalled => Some((CloseCode::Again, "messages are not read")),
            Self::TooLarge => Some((CloseCode::Size, "the message is too large")),
            Self::Flood => Some((CloseCode::Policy, "too many messages")),
            Self::Protocol => Some((CloseCode::Protocol, "not according to RFC 6455")),
            Self::Expired => Some((CloseCode::Policy, "token expired")),
            Self::Shutdown => Some((CloseCode::Away, "the server ends: connect again")),
        }
    }
}

/// Serve a socket whose handshake is done, until its client leaves, or does what it must not, or `end` says why it ends.
pub(crate) async fn serve<S>(stream: S, updates: impl Updates, end: impl Future<Output = Cause> + Send) -> Cause
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let mut config = WebSocketConfig::default().read_buffer_size(512).write_buffer_size(0);
    config = config.max_write_buffer_size(MAX_WAITING);
    config = config.max_message_size(Some(MAX_RECEIVED)).max_frame_size(Some(MAX_RECEIVED));
    let mut socket = WebSocketStream::from_raw_socket(stream, Role::Server, Some(config)).await;
    let cause = tokio::select! {
        biased;
        cause = end => cause,
        cause = talk(&mut socket, updates) => cause,
    };
    // Boxed, since every socket that is open would hold the place for it.
    Box::pin(close(socket, cause)).await;
    cause
}

/// Tell the client what there is to tell, and listen to what it says, until one of both is over.
async fn talk<S>(socket: &mut WebSocketStream<S>, mut updates: impl Updates) -> Cause
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut pings = interval_at(Instant::now() + PING_EVERY, PING_EVERY);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Since the last ping.
    let (mut heard, mut pinged) = (0, false);
    loop {
        let message = tokio::select! {
            biased;
            received = socket.next() => match received {
                Some(Ok(Message::Close(_))) | None => return Cause::Client,
                Some(Ok(_)) if heard == MOST_MESSAGES => return Cause::Flood,
                Some(Ok(_)) => {
                    heard += 1;
                    continue;
                }
                Some(Err(error)) => return cause_of(&error),
            },
            update = updates.next() => Message::Text(update),
            _ = pings.tick() => {
                if pinged && heard == 0 {
                    return Cause::Silent;
                }
                (heard, pinged) = (0, true);
                Message::Ping(bytes::Bytes::new())
            }
        };
        match timeout(STALLED_AFTER, socket.send(message)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return cause_of(&error),
            Err(_) => return Cause::Stalled,
        }
    }
}

/// Say why, wait for the client to have seen it, and close the connection.
async fn close<S>(mut socket: WebSocketStream<S>, cause: Cause)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let goodbye = async {
        match cause.code() {
            Some((code, reason)) => socket.close(Some(CloseFrame { code, reason: reason.into() })).await?,
            // The answer to the client's word is waiting to be sent.
            None if cause == Cause::Client => socket.flush().await?,
            None => return Ok(()),
        }
        while let Some(message) = socket.next().await {
            message?;
        }
        let mut stream = socket.into_inner();
        stream.shutdown().await?;
        let mut rest = stream.take(MAX_DRAINED as u64);
        let mut passed_over = [0; 1024];
        while rest.read(&mut passed_over).await? > 0 {}
        Ok::<_, Error>(())
    };
    // Who does not answer is left alone.
    let _ = timeout(GOODBYE, goodbye).await;
}

fn cause_of(error: &Error) -> Cause {
    match error {
        Error::Capacity(_) => Cause::TooLarge,
        Error::WriteBufferFull(_) => Cause::Flood,
        Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => Cause::Lost,
        Error::Protocol(_) | Error::Utf8(_) | Error::AttackAttempt => Cause::Protocol,
        Error::ConnectionClosed | Error::AlreadyClosed => Cause::Client,
        _ => Cause::Lost,
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::io::DuplexStream;
    use tokio::sync::mpsc;
    use tokio::task::JoinHandle;
    use tokio::time::sleep;

    use super::*;

    /// Says what the test puts in.
    struct Script(mpsc::Receiver<&'static str>);

    impl Updates for Script {
        async fn next(&mut self) -> Utf8Bytes {
            match self.0.recv().await {
                Some(text) => text.into(),
                None => pending().await,
            }
        }
    }

    struct Case {
        client: WebSocketStream<DuplexStream>,
        say: mpsc::Sender<&'static str>,
        served: JoinHandle<Cause>,
    }

    /// A socket with so many bytes between client and server.
    async fn case(bytes: usize, end: impl Future<Output = Cause> + Send + 'static) -> Case {
        let (ours, theirs) = tokio::io::duplex(bytes);
        let (say, script) = mpsc::channel(16);
        let served = tokio::spawn(serve(ours, Script(script), end));
        let client = WebSocketStream::from_raw_socket(theirs, Role::Client, None).await;
        Case { client, say, served }
    }

    impl Case {
        async fn send(&mut self, message: Message) {
            self.client.send(message).await.expect("open");
        }

        async fn receive(&mut self) -> Message {
            self.client.next().await.expect("open").expect("a message")
        }

        /// Reads to the end; the code that came, and what the server counted.
        async fn ended(mut self) -> (Option<u16>, Cause) {
            let mut code = None;
            while let Some(Ok(message)) = self.client.next().await {
                if let Message::Close(frame) = message {
                    code = frame.map(|frame| frame.code.into());
                }
            }
            // As any client does once the server has closed the connection.
            drop(self.client);
            (code, self.served.await.expect("no panic"))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_is_told_answered_and_seen_off() {
        let mut case = case(1 << 16, pending()).await;
        case.say.send("one").await.expect("listening");
        case.say.send("two").await.expect("listening");
        assert_eq!((case.receive().await, case.receive().await), (Message::text("one"), Message::text("two")));
        case.send(Message::text("what a client says is passed over")).await;
        case.send(Message::Ping("?".into())).await;
        assert_eq!(case.receive().await, Message::Pong("?".into()));
        case.client.close(None).await.expect("open");
        assert_eq!(case.ended().await.1, Cause::Client);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_answers_pings_may_be_idle_for_ever() {
        let begun = Instant::now();
        let mut case = case(1 << 16, pending()).await;
        for _ in 0..100 {
            assert_eq!(case.receive().await, Message::Ping("".into()));
        }
        assert_eq!(begun.elapsed().as_secs(), 100 * PING_EVERY.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_is_gone_is_noticed() {
        let begun = Instant::now();
        let silent = case(1 << 16, pending()).await;
        assert_eq!(silent.served.await.expect("no panic"), Cause::Silent);
        assert_eq!(begun.elapsed(), 2 * PING_EVERY + GOODBYE);

        let Case { client, served, .. } = case(1 << 16, pending()).await;
        drop(client);
        assert_eq!(served.await.expect("no panic"), Cause::Lost);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_read_is_closed_after_ten_seconds() {
        let begun = Instant::now();
        let case = case(64, pending()).await;
        case.say.send("a message that is longer than what may be on the way between the two of them").await.expect("");
        assert_eq!(case.served.await.expect("no panic"), Cause::Stalled);
        assert_eq!(begun.elapsed(), STALLED_AFTER + GOODBYE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_again_learns_why() {
        let case = case(64, pending()).await;
        case.say.send("a message that is longer than what may be on the way between the two of them").await.expect("");
        sleep(STALLED_AFTER + GOODBYE / 2).await;
        assert_eq!(case.ended().await, (Some(1013), Cause::Stalled));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_says_too_much_is_closed() {
        let mut large = case(1 << 16, pending()).await;
        large.send(Message::binary(vec![0; MAX_RECEIVED])).await;
        large.send(Message::binary(vec![0; MAX_RECEIVED + 1])).await;
        assert_eq!(large.ended().await, (Some(1009), Cause::TooLarge));

        let mut flood = case(1 << 20, pending()).await;
        for _ in 0..=MOST_MESSAGES {
            flood.send(Message::Ping("".into())).await;
        }
        assert_eq!(flood.ended().await, (Some(1008), Cause::Flood));

        let mut not_masked = case(1 << 16, pending()).await;
        not_masked.client.get_mut().write_all(&[0x81, 0x01, b'x']).await.expect("open");
        assert_eq!(not_masked.ended().await, (Some(1002), Cause::Protocol));
    }

    #[tokio::test(start_paused = true)]
    async fn an_end_from_outside_is_told() {
        for (cause, code) in [(Cause::Expired, 1008), (Cause::Shutdown, 1001)] {
            let begun = Instant::now();
            let end = async move {
                sleep(Duration::from_secs(5)).await;
                cause
            };
            assert_eq!(case(1 << 16, end).await.ended().await, (Some(code), cause));
            assert_eq!(begun.elapsed().as_secs(), 5, "who answers is not waited for");
        }
    }
}
