//! HTTP/2 in bare frames (RFC 9113): header fields that no library would let through, and frames that none would send.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const LIMIT: Duration = Duration::from_secs(30);

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const ACK: u8 = 1;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

/// The largest frame that every peer takes.
const MAX_FRAME: usize = 16_384;

/// A header field, byte for byte.
pub(crate) type Field = (Vec<u8>, Vec<u8>);

/// One request on a connection of its own: these fields in this order, pseudo-headers among them. The status of the answer;
/// none where the stream or the connection was ended instead.
pub(crate) async fn request(address: SocketAddr, fields: &[Field]) -> Option<u16> {
    exchange(address, headers(fields, END_STREAM)).await
}

/// The same with a body and trailer fields.
pub(crate) async fn request_with_trailers(
    address: SocketAddr,
    fields: &[Field],
    body: &[u8],
    trailers: &[Field],
) -> Option<u16> {
    let mut bytes = headers(fields, 0);
    bytes.extend(frame(DATA, 0, 1, body));
    bytes.extend(headers(trailers, END_STREAM));
    exchange(address, bytes).await
}

async fn exchange(address: SocketAddr, request: Vec<u8>) -> Option<u16> {
    let mut stream = connect(address).await;
    stream.write_all(&request).await.ok()?;
    tokio::time::timeout(LIMIT, status_of_the_first(&mut stream)).await.expect("an answer, or an end, in time")
}

/// The status of the answer on stream 1.
async fn status_of_the_first(stream: &mut TcpStream) -> Option<u16> {
    loop {
        let frame = next(stream).await?;
        match (frame.kind, frame.stream) {
            (HEADERS, 1) => return Some(status(&frame.payload)),
            (RST_STREAM, 1) | (GOAWAY, _) => return None,
            _ => {}
        }
    }
}

/// A connection by prior knowledge: the preface and an empty frame of settings are sent.
pub(crate) async fn connect(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap_or_else(|error| panic!("{address}: {error}"));
    stream.set_nodelay(true).expect("a socket option");
    let opening = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(SETTINGS, 0, 0, b"")].concat();
    stream.write_all(&opening).await.expect("sent");
    stream
}

/// A frame that came.
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

/// The next frame; none at the end of the connection.
pub(crate) async fn next(stream: &mut TcpStream) -> Option<Frame> {
    let mut head = [0; 9];
    stream.read_exact(&mut head).await.ok()?;
    let [a, b, c, kind, flags, id @ ..] = head;
    let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
    stream.read_exact(&mut payload).await.ok()?;
    Some(Frame { kind, flags, stream: u32::from_be_bytes(id), payload })
}

/// A header block in as many frames as it takes.
fn headers(fields: &[Field], flags: u8) -> Vec<u8> {
    let block = block(fields);
    let mut bytes = Vec::new();
    let pieces = block.chunks(MAX_FRAME).count();
    for (i, piece) in block.chunks(MAX_FRAME).enumerate() {
        let (kind, flags) = if i == 0 { (HEADERS, flags) } else { (CONTINUATION, 0) };
        let ends = if i + 1 == pieces { END_HEADERS } else { 0 };
        bytes.extend(frame(kind, flags | ends, 1, piece));
    }
    bytes
}

/// A header block of literals, neither indexed nor compressed (RFC 7541 section 6.2.2), so that nothing stands in their way.
pub(crate) fn block<N: AsRef<[u8]>, V: AsRef<[u8]>>(fields: &[(N, V)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name.as_ref(), value.as_ref()] {
            length(&mut block, text.len());
            block.extend_from_slice(text);
        }
    }
    block
}

/// A frame as bytes.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a small frame").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// An integer with a prefix of seven bits (RFC 7541 section 5.1).
fn length(block: &mut Vec<u8>, mut number: usize) {
    const PREFIX: usize = 0x7F;
    if number < PREFIX {
        return block.push(u8::try_from(number).expect("seven bits"));
    }
    block.push(0x7F);
    number -= PREFIX;
    while number >= 0x80 {
        block.push(u8::try_from(number & 0x7F).expect("seven bits") | 0x80);
        number >>= 7;
    }
    block.push(u8::try_from(number).expect("seven bits"));
}

/// The status that a response's block begins with (RFC 9113 section 8.3.2).
pub(crate) fn status(block: &[u8]) -> u16 {
    let mut block = block;
    // An update of the dynamic table's size (RFC 7541 section 6.3).
    while let [first, rest @ ..] = block
        && first & 0xE0 == 0x20
    {
        block = rest;
    }
    match block {
        [indexed @ 0x88..=0x8E, ..] => [200, 204, 206, 304, 400, 404, 500][usize::from(indexed - 0x88)],
        // A literal whose name is entry 8 of the static table.
        [0x08 | 0x18 | 0x48, length, value @ ..] => {
            let (huffman, length) = (length & 0x80 != 0, usize::from(length & 0x7F));
            if huffman { digits(&value[..length]) } else { number(&value[..length]) }
        }
        other => panic!("no status: {other:02x?}"),
    }
}

fn number(text: &[u8]) -> u16 {
    std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()).expect("three digits")
}

/// Three digits in the code of RFC 7541 appendix B: of five bits up to 2, and of six from 3.
fn digits(code: &[u8]) -> u16 {
    let bits = code.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (32 - 8 * code.len());
    let (mut status, mut at) = (0, 0);
    for _ in 0..3 {
        let six = (bits << at) >> 26;
        let (digit, length) = if six < 0x06 { (six >> 1, 5) } else { (six - 0x19 + 3, 6) };
        status = status * 10 + digit;
        at += length;
    }
    u16::try_from(status).expect("three digits")
}
