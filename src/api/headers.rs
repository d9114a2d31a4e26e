//! What requests that change something say beside their body.

use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName};

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// The longest `Idempotency-Key` that is taken, in bytes.
pub(crate) const MAX_KEY_BYTES: usize = 255;

/// Whether the body is said to be `application/json`, by one header, whatever its parameters. A page of another origin can
/// send other types without asking first by a preflight (Fetch standard, section 2.2.2).
pub(crate) fn is_json(headers: &HeaderMap) -> bool {
    let essence =
        only(headers, &CONTENT_TYPE).ok().flatten().and_then(|value| value.split(|byte| *byte == b';').next());
    essence.is_some_and(|essence| essence.trim_ascii().eq_ignore_ascii_case(b"application/json"))
}

/// The `Idempotency-Key`, if there is one.
///
/// # Errors
/// When there are several, or it is no text of 1 to [`MAX_KEY_BYTES`] characters of ASCII.
pub(crate) fn idempotency_key(headers: &HeaderMap) -> Result<Option<&str>, ()> {
    let Some(key) = only(headers, &IDEMPOTENCY_KEY)? else { return Ok(None) };
    let key = std::str::from_utf8(key).ok().filter(|key| key.is_ascii() && (1..=MAX_KEY_BYTES).contains(&key.len()));
    key.map(Some).ok_or(())
}

/// The value of a header that may come once, without blanks around it.
///
/// # Errors
/// When it came more than once.
pub(super) fn only<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Result<Option<&'h [u8]>, ()> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (value, None) => Ok(value.map(|value| value.as_bytes().trim_ascii())),
        _ => Err(()),
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn headers(name: &'static str, values: &[&str]) -> HeaderMap {
        let value = |value: &&str| HeaderValue::from_str(value).expect("a value");
        values.iter().map(|text| (HeaderName::from_static(name), value(text))).collect()
    }

    #[test]
    fn json_by_one_header() {
        for (values, expected) in [
            (&["application/json"][..], true),
            (&["Application/JSON ; charset=utf-8"], true),
            (&["text/plain"], false),
            (&["text/plain;application/json"], false),
            (&["application/jsonp"], false),
            (&["application/json", "text/plain"], false),
            (&[], false),
        ] {
            assert_eq!(is_json(&headers("content-type", values)), expected, "{values:?}");
        }
    }

    #[test]
    fn one_key_of_a_length() {
        let longest = "x".repeat(MAX_KEY_BYTES);
        for (values, expected) in [
            (&[][..], Ok(None)),
            (&["a b"], Ok(Some("a b"))),
            (&[&longest], Ok(Some(longest.as_str()))),
            (&[&format!("{longest}x")], Err(())),
            (&[""], Err(())),
            (&["ü"], Err(())),
            (&["a", "a"], Err(())),
        ] {
            let headers = headers("idempotency-key", values);
            assert_eq!(idempotency_key(&headers), expected, "{values:?}");
        }
    }
}
