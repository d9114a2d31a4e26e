//! What a token claims (RFC 7519 section 4), and whether it holds at a given time and here.

use std::fmt;
use std::time::Duration;

use licensing::tenant::TokenFault;
use licensing::time::Timestamp;
use serde::de::{Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

/// A token's payload, a JSON object. No object in it has two members of one name: RFC 7519 section 4 lets a reader refuse
/// those or take the last, and some backend takes the first.
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

impl<'de> Deserialize<'de> for Claims {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Unambiguous::deserialize(deserializer)?.0 {
            Value::Object(members) => Ok(Self(members)),
            _ => Err(D::Error::custom("expected an object")),
        }
    }
}

/// A value that everybody reads alike.
struct Unambiguous(Value);

impl<'de> Deserialize<'de> for Unambiguous {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(UnambiguousVisitor).map(Self)
    }
}

struct UnambiguousVisitor;

impl<'de> Visitor<'de> for UnambiguousVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, number: i64) -> Result<Value, E> {
        Ok(number.into())
    }

    fn visit_u64<E>(self, number: u64) -> Result<Value, E> {
        Ok(number.into())
    }

    fn visit_f64<E>(self, number: f64) -> Result<Value, E> {
        Ok(number.into())
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(text.into())
    }

    fn visit_string<E>(self, text: String) -> Result<Value, E> {
        Ok(text.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(Unambiguous(item)) = items.next_element()? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some((name, Unambiguous(value))) = members.next_entry::<String, _>()? {
            if object.insert(name, value).is_some() {
                return Err(A::Error::custom("two members have one name"));
            }
        }
        Ok(Value::Object(object))
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
