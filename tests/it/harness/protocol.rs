//! What clients ask of Postgres and Redis, read off their side of the connection.

use std::collections::HashMap;

use bytes::{Buf, BytesMut};

/// What was heard in one piece of a client's bytes.
#[derive(Default)]
pub(super) struct Heard {
    /// Messages that ask for something.
    pub(super) messages: u64,
    pub(super) calls: Vec<String>,
    /// TLS: nothing more will be heard.
    pub(super) encrypted: bool,
    /// What may be held back: the text of a call, and how many of the bytes given come before it.
    ///
    /// A statement of Postgres begins with its Bind, which already decides what it will see.
    pub(super) beginnings: Vec<(usize, String)>,
}

pub(super) enum Decoder {
    Postgres(PostgresDecoder),
    Redis,
    /// TLS, of which nothing can be read.
    Encrypted,
}

impl Decoder {
    /// Takes whole messages off `bytes`.
    pub(super) fn read(&mut self, bytes: &mut BytesMut) -> Heard {
        const TLS_HANDSHAKE: u8 = 0x16;
        let mut heard = Heard::default();
        let fresh = match self {
            Decoder::Postgres(postgres) => !postgres.started,
            Decoder::Redis => true,
            Decoder::Encrypted => false,
        };
        if fresh && bytes.first() == Some(&TLS_HANDSHAKE) {
            heard.encrypted = true;
            *self = Decoder::Encrypted;
        }
        match self {
            Decoder::Postgres(postgres) => postgres.read(bytes, &mut heard),
            Decoder::Redis => {
                let mut before = 0;
                while let Some((command, length)) = redis_command(bytes) {
                    bytes.advance(length);
                    heard.messages += 1;
                    heard.beginnings.push((before, command.clone()));
                    heard.calls.push(command);
                    before += length;
                }
            }
            Decoder::Encrypted => bytes.clear(),
        }
        heard
    }
}

/// The frontend's side of the Postgres protocol, version 3.
#[derive(Default)]
pub(super) struct PostgresDecoder {
    started: bool,
    /// Text of each prepared statement, and of the statement each portal was bound to, by name.
    statements: HashMap<String, String>,
    portals: HashMap<String, String>,
}

impl PostgresDecoder {
    fn read(&mut self, bytes: &mut BytesMut, heard: &mut Heard) {
        let given = bytes.len();
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
            let before = given - bytes.len();
            let message = bytes.split_to(1 + length);
            self.message(message[0], &message[5..], before, heard);
        }
    }

    fn message(&mut self, kind: u8, body: &[u8], before: usize, heard: &mut Heard) {
        match kind {
            // Password, goodbye, Close (sent late, when a client drops a statement), Sync, Flush: nothing is asked.
            b'p' | b'X' | b'C' | b'S' | b'H' => return,
            b'Q' => {
                let (statement, _) = text(body);
                heard.beginnings.push((before, statement.clone()));
                heard.calls.push(statement);
            }
            b'P' => {
                let (name, rest) = text(body);
                self.statements.insert(name, text(rest).0);
            }
            b'B' => {
                let (portal, rest) = text(body);
                let statement = self.statements.get(&text(rest).0).cloned().unwrap_or_default();
                heard.beginnings.push((before, statement.clone()));
                self.portals.insert(portal, statement);
            }
            b'E' => heard.calls.push(self.portals.get(&text(body).0).cloned().unwrap_or_default()),
            _ => {}
        }
        heard.messages += 1;
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
