//! A TCP wire in front of a store that counts what is asked, and that can be cut, slowed, frozen, darkened and held.
//!
//! Counting is exact and needs nothing of the server: the wire reads the client's side of the protocol, records each call
//! before it passes it on, and so has counted whatever has been answered.

use std::collections::BTreeMap;
use std::future::pending;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::background;
use super::protocol::{Decoder, Heard, PostgresDecoder};

/// How long [`Held::reached`] waits.
const REACH_LIMIT: Duration = Duration::from_secs(30);

/// A listener on 127.0.0.1 whose connections go to one server.
pub(crate) struct Wire {
    port: u16,
    state: watch::Sender<State>,
    shared: Arc<Shared>,
    open: Arc<watch::Sender<OpenConnections>>,
}

/// How many connections of each generation are open.
type OpenConnections = BTreeMap<u64, usize>;

/// One connection among the open ones.
struct Open {
    generation: u64,
    open: Arc<watch::Sender<OpenConnections>>,
}

/// What the wire does with bytes.
#[derive(Clone, Copy, PartialEq)]
enum Mode {
    Forward,
    Slow(Duration),
    Frozen,
    Dark,
    RepliesLost,
    Cut,
}

#[derive(Clone, Copy, PartialEq)]
enum Way {
    ToServer,
    ToClient,
}

#[derive(Clone, Copy)]
struct State {
    mode: Mode,
    /// The port that new connections go to.
    server: u16,
    /// Connections of an older generation are closed.
    generation: u64,
    /// Those older than this with a reset.
    reset_before: u64,
}

/// What the wire and its connections share.
#[derive(Default)]
struct Shared {
    seen: Mutex<Seen>,
    holds: Mutex<Vec<Arc<Hold>>>,
}

#[derive(Default)]
struct Seen {
    connections: u64,
    messages: u64,
    calls: Vec<String>,
    encrypted: bool,
}

/// What is to be held back, or is.
struct Hold {
    text: String,
    /// Whether the call itself waits, or what the server answers.
    way: Way,
    stage: watch::Sender<Stage>,
}

#[derive(Clone, Copy, PartialEq, PartialOrd)]
enum Stage {
    /// No such call yet.
    Expected,
    /// Under way: the answer that is to be held has not come yet.
    Caught,
    Held,
    Released,
}

/// A call, or an answer, that waits until the test lets it go on, or drops this.
pub(crate) struct Held {
    hold: Arc<Hold>,
    shared: Arc<Shared>,
}

impl Wire {
    /// To a Postgres server on 127.0.0.1.
    pub(crate) fn postgres(port: u16) -> Wire {
        Wire::start(port, || Decoder::Postgres(PostgresDecoder::default()))
    }

    /// To a Redis server on 127.0.0.1.
    pub(crate) fn redis(port: u16) -> Wire {
        Wire::start(port, || Decoder::Redis)
    }

    /// Where clients connect, on 127.0.0.1.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// What clients asked, oldest first: the SQL text of each statement executed (a prepared one each time it is), or each
    /// Redis command with its arguments, separated by spaces.
    pub(crate) fn calls(&self) -> Vec<String> {
        self.seen().calls.clone()
    }

    /// How many calls contain `text`, for example `tenant_licenses` or `GET license:`.
    pub(crate) fn count(&self, text: &str) -> usize {
        self.seen().calls.iter().filter(|call| call.contains(text)).count()
    }

    /// How many protocol messages that ask for something clients sent: unchanged means "not asked".
    pub(crate) fn messages(&self) -> u64 {
        self.seen().messages
    }

    /// How many connections clients opened.
    pub(crate) fn connections(&self) -> u64 {
        self.seen().connections
    }

    /// How many connections are open now.
    pub(crate) fn open_connections(&self) -> usize {
        self.open.borrow().values().sum()
    }

    /// Forgets what was counted.
    pub(crate) fn reset(&self) {
        let mut seen = self.seen();
        *seen = Seen { encrypted: seen.encrypted, ..Seen::default() };
    }

    /// Closes every connection, and from then on each new one as soon as it is accepted.
    pub(crate) async fn cut(&self) {
        self.set(Mode::Cut);
        self.drop_connections().await;
    }

    /// Keeps connections open and passes nothing on, either way; what arrives meanwhile goes on after `restore`.
    pub(crate) fn freeze(&self) {
        self.set(Mode::Frozen);
    }

    /// Holds back each piece of data, either way, by `delay`.
    pub(crate) fn slow(&self, delay: Duration) {
        self.set(Mode::Slow(delay));
    }

    /// Swallows every byte and every end, either way; new connections are accepted and never answered.
    ///
    /// What is swallowed is lost, so `restore` resets all these connections. What clients ask meanwhile is counted.
    pub(crate) fn black_hole(&self) {
        self.set(Mode::Dark);
    }

    /// Swallows what the server sends, while what clients send goes on; `restore` resets, as after [`Wire::black_hole`].
    pub(crate) fn swallow_replies(&self) {
        self.set(Mode::RepliesLost);
    }

    /// Forwards again. Connections of which something was swallowed are reset, within moments.
    pub(crate) fn restore(&self) {
        self.set(Mode::Forward);
    }

    /// Closes the connections that are open now; new ones work.
    pub(crate) async fn drop_connections(&self) {
        self.state.send_modify(|state| state.generation += 1);
        self.old_ones_closed().await;
    }

    /// Closes the connections that are open now with a TCP reset, at both ends; new ones work.
    pub(crate) async fn reset_connections(&self) {
        self.state.send_modify(State::reset_all);
        self.old_ones_closed().await;
    }

    /// From now on leads to another server, as a virtual address does after a failover; the connections that are open now
    /// are closed.
    pub(crate) async fn point_to(&self, server: u16) {
        self.state.send_modify(|state| state.server = server);
        self.drop_connections().await;
    }

    /// Holds back the next call that contains `text` (see [`Wire::calls`]), and what its connection sends after it, until
    /// it is released. It counts among the calls while it is held. Of Postgres's, a statement waits with its parameters,
    /// so it will see what is committed until its release.
    pub(crate) fn hold(&self, text: &str) -> Held {
        self.expect(text, Way::ToServer)
    }

    /// Lets the next call that contains `text` go to the server, and holds back the answer, and whatever else the server
    /// sends on that connection from then on, until it is released.
    pub(crate) fn hold_reply(&self, text: &str) -> Held {
        self.expect(text, Way::ToClient)
    }

    fn expect(&self, text: &str, way: Way) -> Held {
        let hold = Arc::new(Hold { text: text.to_owned(), way, stage: watch::Sender::new(Stage::Expected) });
        self.shared.holds().push(Arc::clone(&hold));
        Held { hold, shared: Arc::clone(&self.shared) }
    }

    fn start(server: u16, decoder: fn() -> Decoder) -> Wire {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        listener.set_nonblocking(true).expect("a socket option");
        let port = listener.local_addr().expect("a bound listener").port();
        let (state, states) = watch::channel(State { mode: Mode::Forward, server, generation: 0, reset_before: 0 });
        let shared = Arc::new(Shared::default());
        let of_connections = Arc::clone(&shared);
        let open = Arc::new(watch::Sender::new(OpenConnections::new()));
        let all_open = Arc::clone(&open);
        background().spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a non-blocking listener");
            let mut ends = states.clone();
            loop {
                let client = tokio::select! {
                    accepted = listener.accept() => accepted,
                    () = closed(&mut ends) => return,
                };
                let Ok((client, _)) = client else { continue };
                let now = *states.borrow();
                if now.mode != Mode::Cut {
                    let open = Open::new(now.generation, &all_open);
                    let connection = Connection {
                        generation: now.generation,
                        states: states.clone(),
                        shared: Arc::clone(&of_connections),
                        held_replies: Arc::default(),
                    };
                    tokio::spawn(connection.serve(client, decoder(), open));
                }
            }
        });
        Wire { port, state, shared, open }
    }

    fn set(&self, mode: Mode) {
        self.state.send_modify(|state| {
            let heals = |way| state.mode.swallows(way) && !mode.swallows(way);
            if heals(Way::ToServer) || heals(Way::ToClient) {
                state.reset_all();
            }
            state.mode = mode;
        });
    }

    async fn old_ones_closed(&self) {
        let generation = self.state.borrow().generation;
        let mut open = self.open.subscribe();
        open.wait_for(|open| open.range(..generation).all(|(_, count)| *count == 0)).await.map(drop).ok();
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        let seen = self.shared.seen();
        assert!(!seen.encrypted, "the client speaks TLS through this wire: nothing can be counted");
        seen
    }
}

impl Held {
    /// Waits until such a call is held back; of [`Wire::hold_reply`], until the server has sent something after the call.
    pub(crate) async fn reached(&self) {
        let mut stages = self.hold.stage.subscribe();
        let reached = tokio::time::timeout(REACH_LIMIT, stages.wait_for(|stage| *stage >= Stage::Held)).await.is_ok();
        let text = &self.hold.text;
        assert!(reached, "no {text:?} to hold back in {REACH_LIMIT:?}; calls: {:#?}", self.shared.seen().calls);
    }

    /// Whether something is being held back now.
    pub(crate) fn is_held(&self) -> bool {
        *self.hold.stage.borrow() == Stage::Held
    }

    /// Lets it go on; if nothing has been held back yet, nothing will be.
    pub(crate) fn release(&self) {
        self.hold.stage.send_replace(Stage::Released);
        self.shared.holds().retain(|hold| !Arc::ptr_eq(hold, &self.hold));
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.release();
    }
}

impl Hold {
    fn advance(&self, to: Stage) {
        self.stage.send_if_modified(|stage| {
            let forward = *stage < to;
            if forward {
                *stage = to;
            }
            forward
        });
    }

    async fn released(&self) {
        self.stage.subscribe().wait_for(|stage| *stage == Stage::Released).await.map(drop).ok();
    }
}

impl Shared {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().expect("nobody panics with this lock")
    }

    fn holds(&self) -> MutexGuard<'_, Vec<Arc<Hold>>> {
        self.holds.lock().expect("nobody panics with this lock")
    }

    /// The oldest hold that waits for such a call, which is then the one.
    fn catch(&self, call: &str) -> Option<Arc<Hold>> {
        let mut holds = self.holds();
        let at = holds.iter().position(|hold| call.contains(&hold.text))?;
        let hold = holds.remove(at);
        hold.advance(Stage::Caught);
        Some(hold)
    }
}

impl Seen {
    fn add(&mut self, heard: &mut Heard) {
        self.messages += heard.messages;
        self.calls.append(&mut heard.calls);
        self.encrypted |= heard.encrypted;
    }
}

impl Mode {
    fn swallows(self, way: Way) -> bool {
        self == Mode::Dark || (self == Mode::RepliesLost && way == Way::ToClient)
    }
}

impl State {
    /// Every connection there is now is closed with a reset.
    fn reset_all(&mut self) {
        self.generation += 1;
        self.reset_before = self.generation;
    }
}

impl Open {
    fn new(generation: u64, open: &Arc<watch::Sender<OpenConnections>>) -> Open {
        open.send_modify(|open| *open.entry(generation).or_default() += 1);
        Open { generation, open: Arc::clone(open) }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.open.send_modify(|open| *open.entry(self.generation).or_default() -= 1);
    }
}

/// Waits until the `Wire` is dropped.
async fn closed(states: &mut watch::Receiver<State>) {
    while states.changed().await.is_ok() {}
}

/// A client's connection, and the one to the server that belongs to it.
#[derive(Clone)]
struct Connection {
    generation: u64,
    states: watch::Receiver<State>,
    shared: Arc<Shared>,
    /// What holds back the server's answers.
    held_replies: Arc<Mutex<Vec<Arc<Hold>>>>,
}

impl Connection {
    async fn serve(mut self, mut client: TcpStream, decoder: Decoder, open: Open) {
        self.shared.seen().connections += 1;
        let mut server = None;
        let mut cut = self.states.clone();
        let generation = self.generation;
        let mut this = self.clone();
        let both_ways = async {
            client.set_nodelay(true)?;
            if this.swallows(Way::ToServer).await? {
                return this.calls(&mut client, tokio::io::sink(), decoder).await;
            }
            let port = this.states.borrow().server;
            let server = server.insert(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?);
            server.set_nodelay(true)?;
            let (from_client, to_client) = client.split();
            let (from_server, to_server) = server.split();
            let mut replies = this.clone();
            tokio::try_join!(this.calls(from_client, to_server, decoder), replies.replies(from_server, to_client))?;
            io::Result::Ok(())
        };
        tokio::select! {
            _ = both_ways => {}
            _ = cut.wait_for(|state| state.mode == Mode::Cut || state.generation != generation) => {}
        }
        if generation < self.states.borrow_and_update().reset_before {
            for stream in server.iter().chain([&client]) {
                stream.set_zero_linger().ok(); // closing is then resetting
            }
        }
        drop((server, client));
        drop(open);
    }

    /// Forwards what the client asks.
    async fn calls(
        &mut self,
        mut from: impl AsyncRead + Unpin,
        mut to: impl AsyncWrite + Unpin,
        mut decoder: Decoder,
    ) -> io::Result<()> {
        let mut unread = BytesMut::new();
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let read = from.read(&mut buffer).await;
            let mut swallowed = self.swallows(Way::ToServer).await?;
            let n = match read {
                Ok(n @ 1..) => n,
                _ if swallowed => pending().await,
                Ok(_) => return to.shutdown().await,
                Err(error) => return Err(error),
            };
            let earlier = unread.len();
            unread.extend_from_slice(&buffer[..n]);
            let mut heard = decoder.read(&mut unread);
            self.shared.seen().add(&mut heard);
            let mut sent = 0;
            for (before, call) in heard.beginnings {
                let Some(hold) = (if swallowed { None } else { self.shared.catch(&call) }) else { continue };
                let start = before.saturating_sub(earlier);
                to.write_all(&buffer[sent..start]).await?;
                sent = start;
                if hold.way == Way::ToClient {
                    self.held_replies().push(hold);
                } else {
                    hold.advance(Stage::Held);
                    hold.released().await;
                    swallowed = self.swallows(Way::ToServer).await?;
                }
            }
            if !swallowed {
                to.write_all(&buffer[sent..n]).await?;
            }
        }
    }

    /// Forwards what the server answers.
    async fn replies(&mut self, mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) -> io::Result<()> {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let read = from.read(&mut buffer).await;
            let holds = std::mem::take(&mut *self.held_replies());
            for hold in &holds {
                hold.advance(Stage::Held);
            }
            for hold in &holds {
                hold.released().await;
            }
            let swallowed = self.swallows(Way::ToClient).await?;
            match read {
                Ok(1..) if swallowed => {}
                _ if swallowed => pending().await,
                Ok(0) => return to.shutdown().await,
                read => to.write_all(&buffer[..read?]).await?,
            }
        }
    }

    /// Waits as long as the mode says before data may go on; whether it is swallowed then. Fails when the connection is to
    /// be closed.
    async fn swallows(&mut self, way: Way) -> io::Result<bool> {
        let generation = self.generation;
        let mut slowed = false;
        loop {
            let now = self.states.wait_for(|state| state.mode != Mode::Frozen || state.generation != generation).await;
            let now = *now.map_err(|_| io::ErrorKind::ConnectionAborted)?;
            match now.mode {
                _ if now.generation != generation => return Err(io::ErrorKind::ConnectionAborted.into()),
                Mode::Slow(delay) if !slowed => tokio::time::sleep(delay).await,
                mode => return Ok(mode.swallows(way)),
            }
            slowed = true;
        }
    }

    fn held_replies(&self) -> MutexGuard<'_, Vec<Arc<Hold>>> {
        self.held_replies.lock().expect("nobody panics with this lock")
    }
}
