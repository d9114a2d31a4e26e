//! The request's id: the client's if it is a plain token, else a new one.

use http::HeaderValue;
use pingora::http::RequestHeader;
use uuid::Uuid;

/// The longest id that is taken over, in bytes.
const MAX_LENGTH: usize = 128;

/// The id of a request, of which the client said this.
pub(crate) fn of(said: Option<&HeaderValue>) -> HeaderValue {
    match said {
        Some(value) if is_plain(value.as_bytes()) => value.clone(),
        _ => new(),
    }
}

/// The id of a request whose headers have not been read to their end.
pub(crate) fn said_in(request: &RequestHeader) -> HeaderValue {
    only_of(&request.headers)
}

/// The id of a request that some listener beside the proxy got.
pub(crate) fn only_of(headers: &http::HeaderMap) -> HeaderValue {
    let mut values = headers.get_all("x-request-id").iter();
    match (values.next(), values.next()) {
        (Some(value), None) => of(Some(value)),
        _ => new(),
    }
}

/// A new id.
fn new() -> HeaderValue {
    let mut text = [0; uuid::fmt::Hyphenated::LENGTH];
    let id = Uuid::new_v4().hyphenated().encode_lower(&mut text);
    HeaderValue::from_str(id).unwrap_or_else(|_| HeaderValue::from_static("-"))
}

/// Ids end up in logs, shells and dashboards: nothing in them may mean anything there.
fn is_plain(id: &[u8]) -> bool {
    !id.is_empty()
        && id.len() <= MAX_LENGTH
        && id
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b':' | b'=' | b'/' | b'+' | b'@'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id_for(said: &[u8]) -> String {
        let said = HeaderValue::from_bytes(said).expect("a value");
        of(Some(&said)).to_str().expect("ASCII").to_owned()
    }

    #[test]
    fn a_plain_token_is_kept_and_all_else_replaced() {
        for kept in ["abc", "6f1c1c5e-8f3e-4a58-9a3c-0a4e1f0f7b11", "Root=1-67891233-abcdef", "a.b:c/d+e@f_g"] {
            assert_eq!(id_for(kept.as_bytes()), kept);
        }
        let long = "x".repeat(MAX_LENGTH + 1);
        for replaced in [&b""[..], b"a b", b"a\"b", b"a,b", b"\xff", long.as_bytes()] {
            assert_eq!(id_for(replaced).len(), 36, "{replaced:?}");
        }
        assert_ne!(of(None), of(None));
    }
}
