//! Bodies of requests that change something: JSON objects, all of whose texts can be stored.

use serde::de::DeserializeOwned;

/// Read a body.
///
/// # Errors
/// With a sentence, when it is none that can be taken.
pub(crate) fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    // Serde takes a list for an object whose members come in this order.
    if !body.trim_ascii_start().starts_with(b"{") {
        return Err("expected a JSON object".to_owned());
    }
    let read = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    if holds_nul(body) {
        return Err("a text holds the character U+0000, which can't be stored".to_owned());
    }
    Ok(read)
}

/// Whether a text in this JSON holds U+0000, which Postgres takes in no text. There is one spelling of it.
fn holds_nul(json: &[u8]) -> bool {
    let mut rest = json;
    while let Some(backslash) = memchr::memchr(b'\\', rest) {
        let escape = &rest[backslash + 1..];
        if escape.starts_with(b"u0000") {
            return true;
        }
        rest = escape.get(1..).unwrap_or_default();
    }
    false
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize)]
    struct Wish {
        plan: String,
    }

    #[test]
    fn objects_without_nul() {
        for (body, expected) in [
            (r#" {"plan":"x"}"#, Some("x")),
            (r#"{"plan":"\\u0000"}"#, Some("\\u0000")),
            (r#"{"plan":"\u00001"}"#, None),
            (r#"{"plan":"\\\u0000"}"#, None),
            (r#"{"plan":"x","other":"\u0000"}"#, None),
            (r#"{"plan":"\u0001"}"#, Some("\u{1}")),
            (r#"["x"]"#, None),
            (r#"{"plan":"x","plan":"y"}"#, None),
            (r#"{"plan":"x"}{"#, None),
            ("\u{feff}{\"plan\":\"x\"}", None),
            ("", None),
        ] {
            assert_eq!(read::<Wish>(body.as_bytes()).ok().map(|wish| wish.plan).as_deref(), expected, "{body}");
        }
    }
}
