//! Two ways to cut the bytes of a connection into requests, written apart from each other: the strictest there is, and one
//! that takes whatever servers have been seen to take. What a backend is sent must be the same to both.

use std::fmt;

/// A request as a reader sees it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Request {
    pub(super) method: String,
    pub(super) target: String,
    pub(super) body: Vec<u8>,
    /// Whether it has an end.
    pub(super) complete: bool,
}

/// What the lenient reader goes by where a request has both, or several.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Prefers {
    Coding,
    FirstLength,
    LastLength,
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Request { method, target, body, complete } = self;
        let end = if *complete { "" } else { " …" };
        write!(f, "{method} {target} {:?}{end}", String::from_utf8_lossy(body))
    }
}

/// The requests that were made of `bytes`, by all readers.
///
/// # Errors
/// When the strict reader takes offence, or the lenient one sees something else; says what.
pub(super) fn agreed(bytes: &[u8]) -> Result<Vec<Request>, String> {
    let shown = || bytes.escape_ascii();
    let strict = strict(bytes).map_err(|why| format!("{why}: {}", shown()))?;
    for preference in [Prefers::Coding, Prefers::FirstLength, Prefers::LastLength] {
        let lenient = lenient(bytes, preference);
        if lenient != strict {
            return Err(format!("{strict:?} or, by {preference:?}, {lenient:?}: {}", shown()));
        }
    }
    Ok(strict)
}

/// RFC 9112 to the letter, and nothing of what it lets a recipient forgive.
pub(super) fn strict(mut bytes: &[u8]) -> Result<Vec<Request>, &'static str> {
    let mut requests = Vec::new();
    while !bytes.is_empty() {
        let Some(end) = find(bytes, b"\r\n\r\n") else { return Err("a head without an end") };
        let (head, rest) = (&bytes[..end], &bytes[end + 4..]);
        let mut lines = head.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
        if head.iter().filter(|byte| **byte == b'\n').count() != head.windows(2).filter(|two| two == b"\r\n").count()
            || head.iter().filter(|byte| **byte == b'\r').count() != head.iter().filter(|byte| **byte == b'\n').count()
        {
            return Err("a line end that is none");
        }
        let words: Vec<&[u8]> = lines.next().unwrap_or_default().split(|byte| *byte == b' ').collect();
        let [method, target, b"HTTP/1.1" | b"HTTP/1.0"] = words[..] else { return Err("no request line") };
        if !is_token(method) || target.is_empty() || !target.iter().all(|byte| (0x21..0x7f).contains(byte)) {
            return Err("no request line");
        }
        let (mut length, mut chunked, mut hosts) = (None, false, 0);
        for line in lines {
            let Some(colon) = line.iter().position(|byte| *byte == b':') else { return Err("no header") };
            let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
            if !is_token(name) || value.iter().any(|byte| (*byte < 0x20 && *byte != b'\t') || *byte == 0x7f) {
                return Err("no header");
            }
            match name.to_ascii_lowercase().as_slice() {
                b"host" => hosts += 1,
                b"content-length" if length.is_some() => return Err("two lengths"),
                b"content-length" => length = Some(decimal(value).ok_or("no length")?),
                b"transfer-encoding" if chunked || value != b"chunked" => return Err("another coding"),
                b"transfer-encoding" => chunked = true,
                _ => {}
            }
        }
        if hosts > 1 || (chunked && length.is_some()) {
            return Err("two hosts, or a length beside a coding");
        }
        let (body, after) = if chunked {
            strict_chunks(rest)?
        } else {
            let length = length.unwrap_or(0);
            let body = rest[..length.min(rest.len())].to_vec();
            (body, rest.get(length..))
        };
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        requests.push(Request { method: text(method), target: text(target), body, complete: after.is_some() });
        bytes = after.unwrap_or_default();
    }
    Ok(requests)
}

/// The body, and what comes behind it if it has an end.
fn strict_chunks(mut bytes: &[u8]) -> Result<(Vec<u8>, Option<&[u8]>), &'static str> {
    let mut body = Vec::new();
    loop {
        let Some(end) = find(bytes, b"\r\n") else { return Ok((body, None)) };
        let digits = &bytes[..end];
        let plain = !digits.is_empty() && digits.len() <= 8 && digits.iter().all(u8::is_ascii_hexdigit);
        if !plain || (digits.len() > 1 && digits[0] == b'0') {
            return Err("no size of a chunk");
        }
        let size = usize::from_str_radix(&String::from_utf8_lossy(digits), 16).map_err(|_| "no size of a chunk")?;
        bytes = &bytes[end + 2..];
        body.extend_from_slice(&bytes[..size.min(bytes.len())]);
        let Some(rest) = bytes.get(size..).filter(|rest| rest.len() >= 2) else { return Ok((body, None)) };
        // Behind the last one these are the empty line: trailers are not passed on.
        let Some(rest) = rest.strip_prefix(b"\r\n") else { return Err("no end of a chunk") };
        if size == 0 {
            return Ok((body, Some(rest)));
        }
        bytes = rest;
    }
}

/// A server that means well: any line end, folded lines, names with spaces or underscores, `chunked` in any disguise, lengths
/// with signs or in hexadecimal, extensions that end where a line does, empty lines wherever they come.
pub(super) fn lenient(bytes: &[u8], preference: Prefers) -> Vec<Request> {
    let mut reader = Lenient { bytes, at: 0 };
    let mut requests = Vec::new();
    while let Some(request) = reader.request(preference) {
        requests.push(request);
    }
    requests
}

struct Lenient<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Lenient<'a> {
    fn request(&mut self, preference: Prefers) -> Option<Request> {
        let mut first = self.line()?;
        while first.trim_ascii().is_empty() {
            first = self.line()?;
        }
        let mut words = first.split(|byte| matches!(byte, 0..=b' ')).filter(|word| !word.is_empty());
        let mut word = || String::from_utf8_lossy(words.next().unwrap_or_default()).into_owned();
        let (method, target) = (word(), word());
        let mut headers: Vec<Vec<u8>> = Vec::new();
        while let Some(line) = self.line().filter(|line| !line.is_empty()) {
            match headers.last_mut() {
                Some(last) if line.starts_with(b" ") || line.starts_with(b"\t") => last.extend_from_slice(line),
                _ => headers.push(line.to_vec()),
            }
        }
        let (mut lengths, mut chunked) = (Vec::new(), false);
        for header in &headers {
            let (name, value) = header.split_at(header.iter().position(|byte| *byte == b':').unwrap_or(header.len()));
            let name: String = name
                .iter()
                .filter(|byte| byte.is_ascii_alphanumeric())
                .map(|byte| char::from(byte.to_ascii_lowercase()))
                .collect();
            let value = String::from_utf8_lossy(value).to_ascii_lowercase();
            if name == "transferencoding" {
                chunked |= value.contains("chunked");
            } else if name == "contentlength" {
                lengths.extend(value.split([':', ',']).filter_map(any_number));
            }
        }
        let length = match preference {
            Prefers::FirstLength => lengths.first().copied(),
            Prefers::Coding if chunked => None,
            Prefers::LastLength | Prefers::Coding => lengths.last().copied(),
        };
        let (body, complete) = match length {
            Some(length) => self.take(length),
            None if chunked => self.chunks(),
            None => (Vec::new(), true),
        };
        Some(Request { method, target, body, complete })
    }

    /// The next line without its end, which may be CR LF, LF or CR; `None` if nothing is left.
    fn line(&mut self) -> Option<&'a [u8]> {
        let rest = self.bytes.get(self.at..).filter(|rest| !rest.is_empty())?;
        let end = rest.iter().position(|byte| matches!(byte, b'\r' | b'\n')).unwrap_or(rest.len());
        let ends = if rest[end..].starts_with(b"\r\n") { 2 } else { 1 };
        self.at += end + ends;
        Some(&rest[..end])
    }

    fn take(&mut self, length: usize) -> (Vec<u8>, bool) {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let taken = rest[..length.min(rest.len())].to_vec();
        self.at = self.at.saturating_add(length);
        let complete = taken.len() == length;
        (taken, complete)
    }

    fn chunks(&mut self) -> (Vec<u8>, bool) {
        let mut body = Vec::new();
        while let Some(line) = self.line() {
            let text = String::from_utf8_lossy(line).to_ascii_lowercase();
            let digits = text.trim().trim_start_matches(['+', '-']).trim_start_matches("0x").replace('_', "");
            let digits: String = digits.chars().take_while(char::is_ascii_hexdigit).collect();
            let size = usize::from_str_radix(&digits, 16).unwrap_or(0);
            if size == 0 {
                // Trailers up to an empty line.
                while let Some(line) = self.line() {
                    if line.is_empty() {
                        return (body, true);
                    }
                }
                return (body, false);
            }
            let (chunk, whole) = self.take(size);
            body.extend_from_slice(&chunk);
            if !whole {
                return (body, false);
            }
            let rest = &self.bytes[self.at..];
            self.at += if rest.starts_with(b"\r\n") { 2 } else { usize::from(rest.starts_with(b"\n")) };
        }
        (body, false)
    }
}

/// `12`, `+12`, `0x0c`, ` 12 ;`.
fn any_number(text: &str) -> Option<usize> {
    let text = text.trim().trim_start_matches('+');
    let (digits, radix) = text.strip_prefix("0x").map_or((text, 10), |digits| (digits, 16));
    let digits: String = digits.chars().take_while(|digit| digit.is_digit(radix)).collect();
    usize::from_str_radix(&digits, radix).ok()
}

fn decimal(digits: &[u8]) -> Option<usize> {
    let plain = digits.iter().all(u8::is_ascii_digit) && (digits.len() == 1 || digits.first() != Some(&b'0'));
    std::str::from_utf8(digits).ok().filter(|_| plain)?.parse().ok()
}

fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte))
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

/// What is known to be read in two ways is told apart, and what is not is not.
#[test]
fn the_readers_tell_smuggling_from_requests() {
    let plain =
        b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhiPOST /b HTTP/1.1\r\ntransfer-encoding: chunked\r\n\
                  \r\n3\r\nabc\r\na\r\n0123456789\r\n0\r\n\r\nGET /c HTTP/1.0\r\n\r\n";
    let requests = agreed(plain).expect("one reading");
    assert_eq!(format!("{requests:?}"), r#"[POST /a "hi", POST /b "abc0123456789", GET /c ""]"#);
    let cut = agreed(b"POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nab").expect("one reading");
    assert_eq!(format!("{cut:?}"), r#"[POST /a "ab" …]"#);
    for ambiguous in [
        &b"POST /a HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"[..],
        b"POST /a HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nhi",
        b"POST /a HTTP/1.1\r\nContent-Length: +2\r\n\r\nhi",
        b"POST /a HTTP/1.1\r\nContent-Length: 02\r\n\r\nhi",
        b"POST /a HTTP/1.1\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"POST /a HTTP/1.1\r\nTransfer_Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /a HTTP/1.1\r\nX: 1\nContent-Length: 2\r\n\r\nhi",
        b"GET /a HTTP/1.1\r\nX: 1\rContent-Length: 2\r\n\r\nhi",
        b"GET /a HTTP/1.1\r\nX: 1\r\n Content-Length: 2\r\n\r\nhi",
        b"GET  /a HTTP/1.1\r\n\r\n",
        b"\r\nGET /a HTTP/1.1\r\n\r\n",
        b"POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2;x\r\nhi\r\n0\r\n\r\n",
        b"POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\nhi\r\n0\r\n\r\n",
        b"POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n02\r\nhi\r\n0\r\n\r\n",
        b"POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi0\r\n\r\n",
        b"POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-Trailer: 1\r\n\r\n",
    ] {
        assert!(agreed(ambiguous).is_err(), "{}", ambiguous.escape_ascii());
    }
    // And the lenient reader by itself sees what a lenient server would run.
    let smuggled = b"POST /a HTTP/1.1\r\nContent-Length: 41\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
    let seen = |preference| lenient(smuggled, preference).into_iter().map(|request| request.target).collect::<Vec<_>>();
    assert_eq!(seen(Prefers::Coding), ["/a", "/smuggled"]);
    assert_eq!(seen(Prefers::FirstLength), ["/a"]);
}
