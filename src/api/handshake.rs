//! The opening handshake of a WebSocket (RFC 6455 section 4.2), as far as the request's headers decide it.

use http::header::{CONNECTION, CONTENT_LENGTH, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderName, Method, Version};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::headers::only;

/// Why there will be no WebSocket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mistake {
    /// It is no handshake, or a broken one.
    Malformed,
    /// It is one of another version, or an ordinary request to a path that has nothing but a WebSocket.
    UpgradeRequired,
}

/// Whether a request asks for a WebSocket, well or badly.
pub(crate) fn asks_for_websocket(headers: &HeaderMap) -> bool {
    has_token(headers, &UPGRADE, "websocket")
}

/// What a handshake is answered with under `Sec-WebSocket-Accept`.
///
/// # Errors
/// When the request is none that may be answered so.
pub(crate) fn accept(method: &Method, version: Version, headers: &HeaderMap) -> Result<String, Mistake> {
    if !asks_for_websocket(headers) {
        return Err(Mistake::UpgradeRequired);
    }
    let has_body = headers.contains_key(TRANSFER_ENCODING)
        || headers.get(CONTENT_LENGTH).is_some_and(|length| length.as_bytes() != b"0");
    if *method != Method::GET || version != Version::HTTP_11 || has_body || !has_token(headers, &CONNECTION, "upgrade")
    {
        return Err(Mistake::Malformed);
    }
    match only(headers, &SEC_WEBSOCKET_VERSION) {
        Ok(Some(b"13")) => {}
        Ok(_) => return Err(Mistake::UpgradeRequired),
        Err(()) => return Err(Mistake::Malformed),
    }
    match only(headers, &SEC_WEBSOCKET_KEY) {
        Ok(Some(key)) if is_key(key) => Ok(derive_accept_key(key)),
        _ => Err(Mistake::Malformed),
    }
}

/// Whether a list header has this token, in any letter case.
fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    let values = headers.get_all(name).iter().flat_map(|value| value.as_bytes().split(|b| *b == b','));
    values.into_iter().any(|listed| listed.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
}

/// Sixteen bytes in base64 (RFC 4648 section 4): 22 digits, the last of which stands for two bits, and the padding.
fn is_key(key: &[u8]) -> bool {
    let digit = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/');
    key.len() == 24
        && key[..22].iter().all(digit)
        && matches!(key[21], b'A' | b'Q' | b'g' | b'w')
        && key.ends_with(b"==")
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    const GOOD: [(&str, &str); 4] = [
        ("upgrade", "websocket"),
        ("connection", "Upgrade"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];

    fn headers(of: impl IntoIterator<Item = (&'static str, &'static str)>) -> HeaderMap {
        let header = |(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value));
        let mut headers = HeaderMap::new();
        for (name, value) in of.into_iter().map(header) {
            headers.append(name, value);
        }
        headers
    }

    /// The good handshake with a header in another form, or without it.
    fn with(name: &'static str, value: Option<&'static str>) -> Result<String, Mistake> {
        let others = GOOD.into_iter().filter(|(other, _)| *other != name);
        accept(&Method::GET, Version::HTTP_11, &headers(others.chain(value.map(|value| (name, value)))))
    }

    #[test]
    fn the_handshake_of_rfc_6455() {
        let answer = Ok("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=".to_owned());
        assert_eq!(accept(&Method::GET, Version::HTTP_11, &headers(GOOD)), answer);
        assert_eq!(with("upgrade", Some("h2c, WebSocket")), answer);
        assert_eq!(with("connection", Some("keep-alive, upgrade")), answer);
        assert_eq!(with("content-length", Some("0")), answer);
    }

    #[test]
    fn what_is_none() {
        use Mistake::{Malformed, UpgradeRequired};
        for (name, value, mistake) in [
            ("upgrade", None, UpgradeRequired),
            ("upgrade", Some("h2c"), UpgradeRequired),
            ("sec-websocket-version", None, UpgradeRequired),
            ("sec-websocket-version", Some("8"), UpgradeRequired),
            ("connection", None, Malformed),
            ("connection", Some("close"), Malformed),
            ("sec-websocket-key", None, Malformed),
            ("sec-websocket-key", Some("dGhlIHNhbXBsZSBub25jZQ"), Malformed),
            ("sec-websocket-key", Some("dGhlIHNhbXBsZSBub25jZR=="), Malformed),
            ("sec-websocket-key", Some("dGhlIHNhbXBsZSBub25j ZQ="), Malformed),
            ("content-length", Some("1"), Malformed),
            ("transfer-encoding", Some("chunked"), Malformed),
        ] {
            assert_eq!(with(name, value), Err(mistake), "{name}: {value:?}");
        }
        for twice in ["sec-websocket-version", "sec-websocket-key"] {
            let again = GOOD.into_iter().filter(|(name, _)| *name == twice);
            let headers = headers(GOOD.into_iter().chain(again));
            assert_eq!(accept(&Method::GET, Version::HTTP_11, &headers), Err(Malformed), "{twice}");
        }
        assert_eq!(accept(&Method::POST, Version::HTTP_11, &headers(GOOD)), Err(Malformed));
        assert_eq!(accept(&Method::GET, Version::HTTP_10, &headers(GOOD)), Err(Malformed));
    }
}
