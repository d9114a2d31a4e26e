//! A TCP wire in front of a store that counts what is asked, and that can be cut, slowed and frozen.
//!
//! Counting is exact and needs nothing of the server: the wire reads the client's side of the protocol, records each call
//! before it passes it on, and so has counted whatever has been answered.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::watch;

use super::background;

/// A listener on 127.0.0.1 whose connections go to one server.
pub(crate) struct Wire {
    port: u16,
    state: watch::Sender<State>,
    seen: Arc<Mutex<Seen>>,
    open: Arc<watch::Sender<OpenConnections>>,
}

/// How many connections of each generation are open.
type OpenConnections = BTreeMap<u64, usize>;

/// One connection among the open ones.
struct Open {
    generation: u64,
    open: Arc<watch::Sender<OpenConnections>>,
}

/// What the wire does with bytes, both ways.
#[derive(Clone, Copy, PartialEq)]
enum Mode {
    Forward,
    Slow(Duration),
    Frozen,
    Cut,
}

#[derive(Clone, Copy, PartialEq)]
struct State {
    mode: Mode,
    /// Connections of an older generation are closed.
    generation: u64,
}

#[derive(Default)]
struct Seen {
    connections: u64,
    messages: u64,
    calls: Vec<String>,
    encrypted: bool,
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

    /// Forwards again.
    pub(crate) fn restore(&self) {
        self.set(Mode::Forward);
    }

    /// Closes the connections that are open now; new ones work.
    pub(crate) async fn drop_connections(&self) {
        self.state.send_modify(|state| state.generation += 1);
        let generation = self.state.borrow().generation;
        let mut open = self.open.subscribe();
        open.wait_for(|open| open.range(..generation).all(|(_, count)| *count == 0)).await.map(drop).ok();
    }

    fn start(server: u16, decoder: fn() -> Decoder) -> Wire {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        listener.set_nonblocking(true).expect("a socket option");
        let port = listener.local_addr().expect("a bound listener").port();
        let (state, states) = watch::channel(State { mode: Mode::Forward, generation: 0 });
        let seen = Arc::new(Mutex::new(Seen::default()));
        let shared = Arc::clone(&seen);
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
                    let through = connect_through(client, server, decoder(), open, states.clone(), Arc::clone(&shared));
                    tokio::spawn(through);
                }
            }
        });
        Wire { port, state, seen, open }
    }

    fn set(&self, mode: Mode) {
        self.state.send_modify(|state| state.mode = mode);
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        let seen = self.seen.lock().expect("nobody panics with this lock");
        assert!(!seen.encrypted, "the client speaks TLS through this wire: nothing can be counted");
        seen
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

/// Waits until a connection of `generation` has to be closed.
async fn until_cut(generation: u64, states: &mut watch::Receiver<State>) {
    states.wait_for(|state| state.mode == Mode::Cut || state.generation != generation).await.map(drop).ok();
}

/// Waits as long as the mode says before data may go on.
async fn held_back(states: &mut watch::Receiver<State>) {
    let now = match states.wait_for(|state| state.mode != Mode::Frozen).await {
        Ok(state) => *state,
        Err(_) => return,
    };
    if let Mode::Slow(delay) = now.mode {
        tokio::time::sleep(delay).await;
    }
}

async fn connect_through(
    client: TcpStream,
    server: u16,
    decoder: Decoder,
    open: Open,
    states: watch::Receiver<State>,
    seen: Arc<Mutex<Seen>>,
) {
    seen.lock().expect("nobody panics with this lock").connections += 1;
    let both_ways = async {
        held_back(&mut states.clone()).await;
        let server = TcpStream::connect((Ipv4Addr::LOCALHOST, server)).await?;
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        let count = Some((decoder, seen));
        tokio::try_join!(
            forward(from_client, to_server, states.clone(), count),
            forward(from_server, to_client, states.clone(), None),
        )
    };
    let mut cut = states.clone();
    tokio::select! {
        _ = both_ways => {}
        () = until_cut(open.generation, &mut cut) => {}
    }
}

async fn forward(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut states: watch::Receiver<State>,
    mut count: Option<(Decoder, Arc<Mutex<Seen>>)>,
) -> io::Result<()> {
    let mut unread = BytesMut::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let n = from.read(&mut buffer).await?;
        held_back(&mut states).await;
        if n == 0 {
            return to.shutdown().await;
        }
        if let Some((decoder, seen)) = &mut count {
            unread.extend_from_slice(&buffer[..n]);
            decoder.read(&mut unread, &mut seen.lock().expect("nobody panics with this lock"));
        }
        to.write_all(&buffer[..n]).await?;
    }
}

enum Decoder {
    Postgres(PostgresDecoder),
    Redis,
    /// TLS, of which nothing can be read.
    Encrypted,
}

impl Decoder {
    /// Takes whole messages off `bytes` and records them.
    fn read(&mut self, bytes: &mut BytesMut, seen: &mut Seen) {
        const TLS_HANDSHAKE: u8 = 0x16;
        let fresh = match self {
            Decoder::Postgres(postgres) => !postgres.started,
            Decoder::Redis => true,
            Decoder::Encrypted => false,
        };
        if fresh && bytes.first() == Some(&TLS_HANDSHAKE) {
            seen.encrypted = true;
            *self = Decoder::Encrypted;
        }
        match self {
            Decoder::Postgres(postgres) => postgres.read(bytes, seen),
            Decoder::Redis => {
                while let Some((command, length)) = redis_command(bytes) {
                    bytes.advance(length);
                    seen.messages += 1;
                    seen.calls.push(command);
                }
            }
            Decoder::Encrypted => bytes.clear(),
        }
    }
}

/// The frontend's side of the Postgres protocol, version 3.
#[derive(Default)]
struct PostgresDecoder {
    started: bool,
    /// Text of each prepared statement, and of the statement each portal was bound to, by name.
    statements: HashMap<String, String>,
    portals: HashMap<String, String>,
}

impl PostgresDecoder {
    fn read(&mut self, bytes: &mut BytesMut, seen: &mut Seen) {
        while !self.started {
            const PROTOCOL_3: u32 = 3;
            let (Some(length), Some(code)) = (number(bytes, 0), number(bytes, 4)) else {
                return;
            };
            if bytes.len() < length {
                return;
            }
            bytes.advance(length);
            // Other codes ask for encryption or cancel a query.
            self.started = u32::try_from(code).is_ok_and(|code| code >> 16 == PROTOCOL_3);
        }
        while let Some(length) = number(bytes, 1) {
            if bytes.len() < 1 + length {
                return;
            }
            let message = bytes.split_to(1 + length);
            self.message(message[0], &message[5..], seen);
        }
    }

    fn message(&mut self, kind: u8, body: &[u8], seen: &mut Seen) {
        match kind {
            // Password, goodbye, Close (sent late, when a client drops a statement), Sync, Flush: nothing is asked.
            b'p' | b'X' | b'C' | b'S' | b'H' => return,
            b'Q' => seen.calls.push(text(body).0),
            b'P' => {
                let (name, rest) = text(body);
                self.statements.insert(name, text(rest).0);
            }
            b'B' => {
                let (portal, rest) = text(body);
                let statement = self.statements.get(&text(rest).0).cloned().unwrap_or_default();
                self.portals.insert(portal, statement);
            }
            b'E' => seen.calls.push(self.portals.get(&text(body).0).cloned().unwrap_or_default()),
            _ => {}
        }
        seen.messages += 1;
    }
}

/// A big-endian number of four bytes at `at`, if it is there.
fn number(bytes: &[u8], at: usize) -> Option<usize> {
    let four = bytes.get(at..at + 4)?.try_into().expect("four bytes");
    usize::try_from(u32::from_be_bytes(four)).ok()
}

/// A string up to its NUL, and what follows.
fn text(bytes: &[u8]) -> (String, &[u8]) {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    (String::from_utf8_lossy(&bytes[..end]).into_owned(), bytes.get(end + 1..).unwrap_or_default())
}

/// The first command (an array of bulk strings) and its length, once it is there as a whole.
fn redis_command(bytes: &[u8]) -> Option<(String, usize)> {
    let (items, mut at) = redis_number(bytes, 0, b'*')?;
    let mut words = Vec::with_capacity(items);
    for _ in 0..items {
        let (length, start) = redis_number(bytes, at, b'$')?;
        words.push(String::from_utf8_lossy(bytes.get(start..start + length)?));
        at = start + length + 2;
    }
    (at <= bytes.len()).then(|| (words.join(" "), at))
}

/// A line of `mark` and a number at `at`, and where the next begins.
fn redis_number(bytes: &[u8], at: usize, mark: u8) -> Option<(usize, usize)> {
    let line = bytes.get(at..)?;
    let end = line.iter().position(|byte| *byte == b'\n')?;
    assert_eq!(line[0], mark, "Redis clients send arrays of bulk strings");
    let digits = std::str::from_utf8(&line[1..end]).ok()?.trim_end();
    Some((digits.parse().expect("a number in RESP"), at + end + 1))
}
