//! What a request's framing must look like: one length or one coding, lines that end as lines do, and nothing to be expected
//! but leave to continue.
//!
//! Pingora frames what goes upstream anew and forgives much of what comes. What it forgives another server before us may
//! have read differently: then what that one took for a body, with an identity of its client's choice in it, is a request here.
//! So whatever RFC 9112 lets a recipient repair is refused.

use http::HeaderValue;

/// Headers that say where a request ends.
pub(super) const NAMES: [&str; 2] = ["content-length", "transfer-encoding"];

/// What its headers say, seen one by one.
#[derive(Debug, Default)]
pub(super) struct Framing {
    lengths: u8,
    codings: u8,
    expectations: u8,
    /// One of them has a value that not every recipient reads alike.
    odd: bool,
    /// A length other than 0, or a coding.
    body: bool,
    /// It asks for a WebSocket, as which it is passed on.
    websocket: bool,
}

impl Framing {
    /// A header of one of [`NAMES`], `expect` or `upgrade`.
    pub(super) fn see(&mut self, name: &str, value: &HeaderValue) {
        let value = value.as_bytes();
        if name == "upgrade" {
            self.websocket |= value.to_ascii_lowercase().windows(9).any(|word| word == b"websocket");
            return;
        }
        self.body |= NAMES.contains(&name) && value != b"0";
        let (count, sound) = match name {
            "content-length" => (&mut self.lengths, is_length(value)),
            "transfer-encoding" => (&mut self.codings, value.eq_ignore_ascii_case(b"chunked")),
            _ => (&mut self.expectations, value.eq_ignore_ascii_case(b"100-continue")),
        };
        *count = count.saturating_add(1);
        self.odd |= !sound;
    }

    /// Whether there is one way to read it. `raw_head` is the head as it came over HTTP/1, empty over HTTP/2.
    ///
    /// Pingora takes `Content-Length` away where `Transfer-Encoding` is present, so only the raw head shows both.
    pub(super) fn is_sound(&self, raw_head: &[u8]) -> bool {
        let once = self.lengths <= 1 && self.codings <= 1 && self.expectations <= 1;
        // What follows the head of such a request is its body to some (h11), and no longer HTTP to others (llhttp).
        let two_things_behind = self.websocket && self.body;
        once && !self.odd
            && !two_things_behind
            && ends_lines_properly(raw_head)
            && !(self.codings > 0 && (self.lengths > 0 || names_content_length(raw_head)))
    }
}

/// Digits alone, as RFC 9110 section 8.6 has it, and no more zeros than it takes: some take `010` for eight.
fn is_length(value: &[u8]) -> bool {
    !value.is_empty() && value.iter().all(u8::is_ascii_digit) && (value.len() == 1 || value[0] != b'0')
}

/// Whether each line ends in CR LF. Servers that take LF alone for the end of a line (RFC 9112 section 2.2 lets them) see
/// headers where others see a part of one.
fn ends_lines_properly(head: &[u8]) -> bool {
    memchr::memchr_iter(b'\n', head).all(|at| at > 0 && head[at - 1] == b'\r')
}

fn names_content_length(raw_head: &[u8]) -> bool {
    const NAME: &[u8] = b"content-length";
    raw_head.split(|b| *b == b'\n').any(|line| {
        line.len() > NAME.len()
            && line[..NAME.len()].eq_ignore_ascii_case(NAME)
            && matches!(line[NAME.len()], b':' | b' ' | b'\t')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sound(headers: &[(&str, &str)], raw_head: &[u8]) -> bool {
        let mut framing = Framing::default();
        for (name, value) in headers {
            framing.see(name, &HeaderValue::from_str(value).expect("a value"));
        }
        framing.is_sound(raw_head)
    }

    #[test]
    fn one_way_to_read_it() {
        const LENGTH: &str = NAMES[0];
        const CODING: &str = NAMES[1];
        for headers in [
            &[][..],
            &[(LENGTH, "0")],
            &[(LENGTH, "18446744073709551615")],
            &[(CODING, "chunked")],
            &[(CODING, "Chunked"), ("expect", "100-Continue")],
            &[(LENGTH, "10"), ("expect", "100-continue")],
            &[(LENGTH, "0"), ("upgrade", "websocket")],
            &[(LENGTH, "10"), ("upgrade", "h2c")],
        ] {
            assert!(sound(headers, b"POST / HTTP/1.1\r\nHost: app\r\n\r\n"), "{headers:?}");
        }
        for headers in [
            &[(LENGTH, "")][..],
            &[(LENGTH, "+1")],
            &[(LENGTH, "01")],
            &[(LENGTH, "1,1")],
            &[(LENGTH, "1 ")],
            &[(LENGTH, "1"), (LENGTH, "1")],
            &[(LENGTH, "1"), (CODING, "chunked")],
            &[(CODING, "")],
            &[(CODING, "chunked, chunked")],
            &[(CODING, "chunked"), (CODING, "chunked")],
            &[("expect", "")],
            &[(CODING, "chunked"), ("upgrade", "websocket")],
            &[("upgrade", "h2c, WebSocket"), (LENGTH, "1")],
            &[("expect", "100-continue"), ("expect", "100-continue")],
        ] {
            assert!(!sound(headers, b""), "{headers:?}");
        }
    }

    #[test]
    fn what_the_raw_head_shows() {
        for head in [&b""[..], b"GET / HTTP/1.0\r\n\r\n", b"\r\nGET / HTTP/1.0\r\nA:\r\n\r\n"] {
            assert!(sound(&[], head), "{}", head.escape_ascii());
        }
        for head in
            [&b"\n"[..], b"GET / HTTP/1.0\n\n", b"GET / HTTP/1.0\r\nA: b\nC: d\r\n\r\n", b"GET / HTTP/1.0\r\n\n"]
        {
            assert!(!sound(&[], head), "{}", head.escape_ascii());
        }
        let both = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-length: 1\r\n\r\n";
        assert!(!sound(&[("transfer-encoding", "chunked")], both));
    }
}
