//! What a request target says: every reading of its path that some backend could make.
//!
//! A proxy that decides by path and a backend that routes by path never read a path alike: one decodes `%2F`, another
//! drops `;parameters`, a third resolves `..` before it decodes and a fourth after. So nothing is normalised here.
//! The path is kept as it came, and all that it could become is listed beside it: the closure of the raw bytes under
//! the rewrites that servers, frameworks and proxies apply, in every order. What follows from a reading is for
//! [`routes`](crate::routes) to say.
//!
//! Nearly every target holds no byte that opens a choice and has one reading, itself; that costs one scan and no
//! allocation.

use std::hash::Hasher;

use rustc_hash::FxHasher;

/// How many distinct readings a target may have. Real ones have 1 to 13; one with doubled slashes, encoded slashes,
/// parameters and a trailing dot at once has 29. Only layers upon layers of tricks reach this.
const MAX_READINGS: usize = 128;

/// How many bytes the readings of a target may have together: it bounds both memory and work, since a reading costs a
/// constant number of passes. An 8 KiB path may still have 16 readings; a 64 KiB path may hold plain escapes.
const MAX_BYTES: usize = 128 * 1024 + 2;

/// How often a reading may be percent-decoded: a server that decodes and a framework or second proxy that does it
/// again.
const MAX_DECODES: usize = 2;

/// A request target in origin form (RFC 9112, section 3.2.1), well formed, with the readings of its path.
#[derive(Clone, Debug)]
pub struct Target<'t> {
    path: &'t [u8],
    traits: Traits,
    /// All readings, the raw path first; empty where the raw path is the only one.
    readings: Readings,
}

impl<'t> Target<'t> {
    /// Reads a raw request target: the bytes between the method and the HTTP version, or HTTP/2's `:path`. The query,
    /// from the first `?`, is left out of account.
    pub fn parse(raw: &'t [u8]) -> Result<Self, Malformed> {
        let path = memchr::memchr(b'?', raw).map_or(raw, |query| &raw[..query]);
        if path.first() != Some(&b'/') {
            return Err(Malformed::Form);
        }
        let traits = Traits::of(path);
        if traits.any(UNSENDABLE) {
            return Err(unsendable(path));
        }
        let readings = if traits.any(CHOICE) { Readings::of(path, traits)? } else { Readings::default() };
        Ok(Self { path, traits, readings })
    }

    /// The path as it came, without the query.
    pub fn path(&self) -> &'t [u8] {
        self.path
    }

    /// The distinct readings of the path, first of all the path as it came. Each begins with a slash; each is bytes,
    /// since percent-encoded names need not be UTF-8.
    pub fn readings(&self) -> impl ExactSizeIterator<Item = Reading<'_>> {
        (0..self.readings.spans.len().max(1)).map(|index| match self.readings.spans.get(index) {
            Some(span) => Reading { bytes: self.readings.bytes_of(span), traits: span.traits },
            None => Reading { bytes: self.path, traits: self.traits },
        })
    }

    /// Whether two backends could read this target differently.
    pub fn is_ambiguous(&self) -> bool {
        self.readings.spans.len() > 1
    }
}

/// One way to read a path.
#[derive(Clone, Copy, Debug)]
pub struct Reading<'t> {
    bytes: &'t [u8],
    traits: Traits,
}

impl<'t> Reading<'t> {
    /// The path in this reading.
    pub fn bytes(self) -> &'t [u8] {
        self.bytes
    }

    /// Whether there is a letter to fold before the path can be compared without case.
    pub(crate) fn has_upper_case(self) -> bool {
        self.traits.any(UPPER)
    }

    /// Whether some segment holds a byte at which a router may take the segment to end.
    pub(crate) fn has_terminators(self) -> bool {
        self.traits.any(DOT | BLANK | PARAMETER | URL)
    }
}

/// Why a target, or the request line it came in, is refused: no sane client sends it, and backends differ on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Absolute form, authority form, `*`, or nothing at all.
    #[error("the request target must be a path that begins with a slash")]
    Form,
    /// A `#`: fragments are never sent.
    #[error("the request path holds a `#`, which must be sent as %23")]
    Fragment,
    /// A byte from 0x80 as it is.
    #[error("the request path holds a byte outside of ASCII, which must be percent-encoded")]
    NotAscii,
    /// A control byte or a space as it is.
    #[error("the request path holds a control character or a space, which must be percent-encoded")]
    Control,
    /// A `%` without two hexadecimal digits.
    #[error("a `%` in the request path is not followed by two hexadecimal digits")]
    Escape,
    /// A control byte in percent-encoding: routers that end a pattern in `$` let a trailing newline through.
    #[error("the request path holds a percent-encoded control character")]
    EncodedControl,
    /// More readings, or more bytes of them, than are worth comparing.
    #[error("the request path can be read in too many ways")]
    Readings,
    /// A method with lower-case letters, which some frameworks take for the upper-case one and others do not.
    #[error("the request method must be in upper case")]
    Method,
}

/// Which refused byte comes first, for the message.
#[cold]
fn unsendable(path: &[u8]) -> Malformed {
    match path.iter().find(|byte| CLASSES[usize::from(**byte)] & UNSENDABLE != 0) {
        Some(b'#') => Malformed::Fragment,
        Some(0x80..) => Malformed::NotAscii,
        _ => Malformed::Control,
    }
}

/// What kinds of bytes, and of pairs of bytes, a path holds: a bit each, bytes in the lower half, pairs in the upper.
#[derive(Clone, Copy, Debug)]
struct Traits(u32);

const SLASH: u32 = 1;
const DOT: u32 = 1 << 1;
/// A space or a control byte.
const BLANK: u32 = 1 << 2;
const PERCENT: u32 = 1 << 3;
const BACKSLASH: u32 = 1 << 4;
const PARAMETER: u32 = 1 << 5;
/// A `#` or a `?`, which a path holds only when decoded.
const URL: u32 = 1 << 6;
const UPPER: u32 = 1 << 7;
const NOT_ASCII: u32 = 1 << 8;
/// The slash once more, for the byte after it.
const START: u32 = 1 << 9;

/// How far a class is shifted to say that a byte of it stands before one with which it makes a pair.
const PAIR: u32 = 16;
/// A slash after a slash.
const DOUBLE: u32 = SLASH << PAIR;
/// A segment that ends in a dot: `.` and `..` among them.
const DOT_AT_EDGE: u32 = DOT << PAIR;
/// A segment that ends in a blank, or begins with one.
const BLANK_AT_EDGE: u32 = (BLANK | START) << PAIR;

/// What no client may send as it is.
const UNSENDABLE: u32 = BLANK | URL | NOT_ASCII;
/// What opens a choice of readings.
const CHOICE: u32 = PERCENT | BACKSLASH | PARAMETER | NOT_ASCII | DOUBLE | DOT_AT_EDGE | BLANK_AT_EDGE;

/// For each byte its class, and in the upper half the classes with which it makes a pair.
const CLASSES: [u32; 256] = {
    let mut classes = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        classes[byte] = match byte as u8 {
            b'/' => SLASH | START | (SLASH | DOT | BLANK) << PAIR,
            b'.' => DOT,
            b'%' => PERCENT,
            b'\\' => BACKSLASH,
            b';' => PARAMETER,
            b'?' | b'#' => URL,
            b'A'..=b'Z' => UPPER,
            0..=b' ' | 0x7f => BLANK | START << PAIR,
            0x80.. => NOT_ASCII,
            _ => 0,
        };
        byte += 1;
    }
    classes
};

impl Traits {
    fn of(path: &[u8]) -> Self {
        let every_class = (1 << PAIR) - 1;
        let (mut seen, mut last) = (0, 0);
        for &byte in path {
            let class = CLASSES[usize::from(byte)];
            seen |= class & (last << PAIR | every_class);
            last = class;
        }
        // The end of the path ends a segment as a slash does.
        Self(seen | (last & (DOT | BLANK)) << PAIR)
    }

    fn any(self, of: u32) -> bool {
        self.0 & of != 0
    }
}

/// A set of readings, in the order in which they were found.
#[derive(Clone, Debug, Default)]
struct Readings {
    /// The readings, one after the other.
    bytes: Vec<u8>,
    spans: Vec<Span>,
}

#[derive(Clone, Debug)]
struct Span {
    start: usize,
    end: usize,
    hash: u64,
    traits: Traits,
}

impl Readings {
    /// The closure of `path` under the rewrites. Decoding comes in rounds, so that each reading is first found with the
    /// fewest decodings and keeps the most before it.
    fn of(path: &[u8], traits: Traits) -> Result<Self, Malformed> {
        if traits.any(PERCENT) {
            check_escapes(path)?;
        }
        let mut readings = Self::default();
        let mut scratch = Vec::with_capacity(path.len());
        readings.add(path)?;
        let mut round = 0;
        for decodes in 0..=MAX_DECODES {
            readings.close(round, REWRITES, &mut scratch)?;
            if decodes < MAX_DECODES {
                let end = readings.spans.len();
                for index in round..end {
                    readings.rewrite(index, DECODINGS, &mut scratch)?;
                }
                round = end;
            }
        }
        Ok(readings)
    }

    /// Applies the rewrites to each reading from `index` on, those that are found on the way included.
    fn close(&mut self, mut index: usize, rewrites: &[Rewrite], scratch: &mut Vec<u8>) -> Result<(), Malformed> {
        while index < self.spans.len() {
            self.rewrite(index, rewrites, scratch)?;
            index += 1;
        }
        Ok(())
    }

    fn rewrite(&mut self, index: usize, rewrites: &[Rewrite], scratch: &mut Vec<u8>) -> Result<(), Malformed> {
        let traits = self.spans[index].traits;
        for rewrite in rewrites.iter().filter(|rewrite| traits.any(rewrite.touches)) {
            scratch.clear();
            (rewrite.apply)(self.bytes_of(&self.spans[index]), scratch);
            self.add(scratch)?;
        }
        Ok(())
    }

    /// Adds a reading unless it is there.
    fn add(&mut self, reading: &[u8]) -> Result<(), Malformed> {
        let mut hasher = FxHasher::default();
        hasher.write(reading);
        let hash = hasher.finish();
        if self.spans.iter().any(|span| span.hash == hash && self.bytes_of(span) == reading) {
            return Ok(());
        }
        let (start, end) = (self.bytes.len(), self.bytes.len() + reading.len());
        // One reading is always within the bound: a long path without a choice costs no more than its scan.
        if self.spans.len() == MAX_READINGS || (end > MAX_BYTES && start > 0) {
            return Err(Malformed::Readings);
        }
        self.bytes.extend_from_slice(reading);
        self.spans.push(Span { start, end, hash, traits: Traits::of(reading) });
        Ok(())
    }

    fn bytes_of(&self, span: &Span) -> &[u8] {
        &self.bytes[span.start..span.end]
    }
}

/// Refuses what a first decoding would stumble over or turn into a control byte.
fn check_escapes(path: &[u8]) -> Result<(), Malformed> {
    memchr::memchr_iter(b'%', path).try_for_each(|at| match escaped(&path[at..]) {
        None => Err(Malformed::Escape),
        Some(0..=0x1f | 0x7f) => Err(Malformed::EncodedControl),
        Some(_) => Ok(()),
    })
}

/// The byte that an escape at the head of `bytes` stands for.
fn escaped(bytes: &[u8]) -> Option<u8> {
    let digit = |at: usize| bytes.get(at).and_then(|byte| char::from(*byte).to_digit(16));
    u8::try_from(digit(1)? << 4 | digit(2)?).ok()
}

/// Something that a server, a framework or a proxy may do to a path, and the traits without which it changes nothing.
struct Rewrite {
    touches: u32,
    apply: fn(&[u8], &mut Vec<u8>),
}

/// What may be done to a path any number of times.
const REWRITES: &[Rewrite] = &[
    Rewrite { touches: BACKSLASH, apply: turn_backslashes },
    Rewrite { touches: DOUBLE, apply: merge_slashes },
    Rewrite { touches: DOUBLE, apply: drop_authority },
    Rewrite { touches: DOT_AT_EDGE, apply: remove_dot_segments },
    Rewrite { touches: PARAMETER, apply: cut_parameters },
    Rewrite { touches: PARAMETER, apply: end_at_semicolon },
    Rewrite { touches: URL, apply: end_at_query },
    Rewrite { touches: DOT_AT_EDGE | BLANK_AT_EDGE, apply: trim_segments },
    Rewrite { touches: NOT_ASCII, apply: fold_into_ascii },
];

/// What may be done to it [twice](MAX_DECODES).
const DECODINGS: &[Rewrite] =
    &[Rewrite { touches: PERCENT, apply: decode }, Rewrite { touches: PERCENT, apply: decode_but_slashes }];

/// Percent-decoding as WSGI and ASGI servers do it: whole, before routing. Broken escapes, which only a second decoding
/// can meet, stay as they are.
fn decode(path: &[u8], out: &mut Vec<u8>) {
    out.extend(percent_encoding::percent_decode(path));
}

/// Percent-decoding segment by segment, as Go from 1.22, Apache (`AllowEncodedSlashes NoDecode`) and URL normalisers do
/// it: an encoded slash separates nothing.
fn decode_but_slashes(path: &[u8], out: &mut Vec<u8>) {
    let mut rest = path;
    while let Some(at) = memchr::memchr(b'%', rest) {
        out.extend_from_slice(&rest[..at]);
        rest = &rest[at..];
        let taken = match escaped(rest) {
            Some(byte) if byte != b'/' => {
                out.push(byte);
                3
            }
            _ => {
                out.push(b'%');
                1
            }
        };
        rest = &rest[taken..];
    }
    out.extend_from_slice(rest);
}

/// `\` as `/`: the WHATWG URL parser, Windows servers.
fn turn_backslashes(path: &[u8], out: &mut Vec<u8>) {
    out.extend(path.iter().map(|&byte| if byte == b'\\' { b'/' } else { byte }));
}

/// Runs of slashes as one: nginx, Go, Rails, Flask.
fn merge_slashes(path: &[u8], out: &mut Vec<u8>) {
    for &byte in path {
        if byte != b'/' || out.last() != Some(&b'/') {
            out.push(byte);
        }
    }
}

/// `//host/path` as a reference to another host (RFC 3986, section 4.2): whoever resolves the target against a base
/// address, as Node's `new URL(request.url, base)` does, routes by what follows the host.
fn drop_authority(path: &[u8], out: &mut Vec<u8>) {
    if !path.starts_with(b"//") {
        return out.extend_from_slice(path);
    }
    let host = &path[path.iter().take_while(|byte| **byte == b'/').count()..];
    match memchr::memchr(b'/', host) {
        Some(at) => out.extend_from_slice(&host[at..]),
        None => out.push(b'/'),
    }
}

/// `.` and `..` resolved (RFC 3986, section 5.2.4); there is nothing above the root.
fn remove_dot_segments(path: &[u8], out: &mut Vec<u8>) {
    let mut segments = segments(path).peekable();
    while let Some(segment) = segments.next() {
        match segment {
            b"." => {}
            b".." => out.truncate(memchr::memrchr(b'/', out).unwrap_or(0)),
            _ => {
                out.push(b'/');
                out.extend_from_slice(segment);
                continue;
            }
        }
        if segments.peek().is_none() {
            out.push(b'/');
        }
    }
}

/// Segments without their `;parameters`: servlet containers, Spring.
fn cut_parameters(path: &[u8], out: &mut Vec<u8>) {
    each_segment(path, out, |segment| {
        memchr::memchr(b';', segment).map_or(segment, |parameters| &segment[..parameters])
    });
}

/// The path up to the first `;`, where some take the query to begin: Fastify up to version 4 always, and later by option.
fn end_at_semicolon(path: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(memchr::memchr(b';', path).map_or(path, |end| &path[..end]));
}

/// The path up to a decoded `?` or `#`: whoever takes a decoded path for a URL once more.
fn end_at_query(path: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(memchr::memchr2(b'?', b'#', path).map_or(path, |end| &path[..end]));
}

/// Segments without the dots at their end and the blanks around them: Windows file names, frameworks that trim. What is
/// then `.` or `..` stays.
fn trim_segments(path: &[u8], out: &mut Vec<u8>) {
    each_segment(path, out, |segment| {
        let segment = trim(segment, is_blank);
        match segment {
            b"." | b".." => segment,
            _ => trim_end(segment, |byte| byte == b'.' || is_blank(byte)),
        }
    });
}

/// What is not ASCII and may become it: the letters that case mappings take into it, `K` (Kelvin), `ſ`, `İ` and `ı`, which
/// routers that ignore case by Unicode's tables take for `k`, `s` and `i`; full-width forms and two slashes, by compatibility
/// mappings (NFKC, Windows's best fit); and overlong UTF-8 (RFC 3629, section 10), by decoders that do not check.
fn fold_into_ascii(path: &[u8], out: &mut Vec<u8>) {
    let mut rest = path;
    while let [first, others @ ..] = rest {
        let (byte, taken) = match *rest {
            [0xe2, 0x84, 0xaa, ..] => (b'k', 3),
            [0xc5, 0xbf, ..] => (b's', 2),
            [0xc4, 0xb0 | 0xb1, ..] => (b'i', 2),
            // U+FF01 to U+FF5E stand for `!` to `~`.
            [0xef, 0xbc, low @ 0x81..=0xbf, ..] => (low - 0x60, 3),
            [0xef, 0xbd, low @ 0x80..=0x9e, ..] => (low - 0x20, 3),
            // U+2044, fraction slash; U+2215, division slash.
            [0xe2, 0x81, 0x84, ..] | [0xe2, 0x88, 0x95, ..] => (b'/', 3),
            [high @ (0xc0 | 0xc1), low @ 0x80..=0xbf, ..] => ((high & 1) << 6 | low & 0x3f, 2),
            [0xe0, high @ (0x80 | 0x81), low @ 0x80..=0xbf, ..] => ((high & 1) << 6 | low & 0x3f, 3),
            [0xf0, 0x80, high @ (0x80 | 0x81), low @ 0x80..=0xbf, ..] => ((high & 1) << 6 | low & 0x3f, 4),
            _ => (*first, 1),
        };
        out.push(byte);
        rest = &others[taken - 1..];
    }
}

/// The segments of a path that begins with a slash.
fn segments(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/').skip(1)
}

fn each_segment(path: &[u8], out: &mut Vec<u8>, keep: impl Fn(&[u8]) -> &[u8]) {
    for segment in segments(path) {
        out.push(b'/');
        out.extend_from_slice(keep(segment));
    }
}

fn is_blank(byte: u8) -> bool {
    CLASSES[usize::from(byte)] & BLANK != 0
}

fn trim(segment: &[u8], cut: fn(u8) -> bool) -> &[u8] {
    let start = segment.iter().take_while(|byte| cut(**byte)).count();
    trim_end(&segment[start..], cut)
}

fn trim_end(segment: &[u8], cut: fn(u8) -> bool) -> &[u8] {
    let end = segment.iter().rposition(|byte| !cut(*byte)).map_or(0, |last| last + 1);
    &segment[..end]
}

#[cfg(test)]
mod tests;
