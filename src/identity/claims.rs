//! What a token claims (RFC 7519 section 4), and whether it holds at a given time and here.

use std::time::Duration;

use licensing::tenant::TokenFault;
use licensing::time::Timestamp;
use serde::Deserialize;
use serde_json::{Map, Value};

/// A token's payload, a JSON object.
#[derive(Deserialize)]
pub(super) struct Claims(Map<String, Value>);

impl Claims {
    /// Who issued the token.
    pub(super) fn issuer(&self) -> Option<&String> {
        match self.0.get("iss") {
            Some(Value::String(issuer)) => Some(issuer),
            _ => None,
        }
    }

    /// Whether the token is good at `now`, by a clock that differs from the issuer's by at most `leeway`; until when it is.
    ///
    /// # Errors
    /// When it is not, or when it does not say.
    pub(super) fn check_times(&self, leeway: Duration, now: Timestamp) -> Result<Timestamp, TokenFault> {
        let expires = time(self.0.get("exp").ok_or(TokenFault::Malformed)?)?.plus(leeway);
        if now >= expires {
            return Err(TokenFault::Expired);
        }
        match self.0.get("nbf") {
            Some(begins) if now.plus(leeway) < time(begins)? => Err(TokenFault::NotYetValid),
            _ => Ok(expires),
        }
    }

    /// The claim of this name, or, where none has it, the one that is reached by the parts between its dots, as in
    /// `realm_access.roles`.
    pub(super) fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name).or_else(|| {
            let (first, rest) = name.split_once('.')?;
            rest.split('.').try_fold(self.0.get(first)?, |value, part| value.get(part))
        })
    }

    /// Whether the claim is one of these values, or a list that has one.
    pub(super) fn has_one_of(&self, name: &str, values: &[String]) -> bool {
        self.get(name).is_some_and(|claim| holds(claim, |value| values.iter().any(|one| one == value)))
    }
}

/// Whether `wanted` holds for a text, or for one of a list.
fn holds(claim: &Value, wanted: impl Fn(&str) -> bool) -> bool {
    match claim {
        Value::String(text) => wanted(text),
        Value::Array(items) => items.iter().filter_map(Value::as_str).any(wanted),
        _ => false,
    }
}

/// A time as tokens have it: seconds since the epoch, perhaps with a fraction.
fn time(claim: &Value) -> Result<Timestamp, TokenFault> {
    #[expect(clippy::cast_possible_truncation, reason = "the cast saturates: the end of time is as far as it gets")]
    let micros = |seconds: f64| Timestamp::from_micros((seconds * 1e6) as i64);
    claim.as_f64().map(micros).ok_or(TokenFault::Malformed)
}
