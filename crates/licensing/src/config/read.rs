//! From the tree to types: a serde reader whose errors know their place, and that goes on after the first of them.

use serde::de::value::StrDeserializer;
use serde::de::{self, DeserializeOwned, DeserializeSeed, Deserializer, IntoDeserializer, Visitor};

use super::node::{Entry, Node, Value};
use super::problem::{Collector, Place};
use super::read_error::ReadError;

/// After so many errors of one file the rest is left for the next run.
const MAX_ERRORS: usize = 50;

/// Read `tree` as a `T`. All errors go to `problems`: what was found wrong is cut out, and the rest is read again.
pub(super) fn read<T: DeserializeOwned>(tree: &mut Node, problems: &mut Collector<'_>) -> Option<T> {
    let mut failed = false;
    for _ in 0..MAX_ERRORS {
        let mut error = match T::deserialize(&*tree) {
            Ok(value) => return (!failed).then_some(value),
            Err(error) => error,
        };
        failed = true;
        error.path.reverse();
        let (node, words) = tree.follow(&error.path)?;
        // Cutting out leaves gaps, and what is wrong only because of them is no news.
        let consequence = match error.missing {
            Some(key) => node.entry(key).is_some(),
            None => node.has_gaps(),
        };
        if matches!(node.value, Value::Pruned) {
            // The one value of a choice was cut out: with it goes the choice.
            error.path.pop();
        } else if !consequence {
            problems.error(error.place.unwrap_or(node.place), words, error.message);
        }
        if error.path.is_empty() {
            return None;
        }
        tree.follow(&error.path)?.0.value = Value::Pruned;
    }
    None
}

macro_rules! integers {
    ($($method:ident $visit:ident $type:ty),*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
            let number = match &self.value {
                Value::Number(text) => text.parse::<$type>().ok(),
                _ => None,
            };
            let expected = || format!("a whole number from {} to {}", <$type>::MIN, <$type>::MAX);
            let number = number.ok_or_else(|| ReadError::expected(&expected(), self))?;
            visitor.$visit(number).map_err(|error: ReadError| error.at(self.place))
        })*
    };
}

impl<'de> Deserializer<'de> for &'de Node {
    type Error = ReadError;

    integers!(
        deserialize_u8 visit_u8 u8, deserialize_u16 visit_u16 u16, deserialize_u32 visit_u32 u32,
        deserialize_u64 visit_u64 u64, deserialize_i8 visit_i8 i8, deserialize_i16 visit_i16 i16,
        deserialize_i32 visit_i32 i32, deserialize_i64 visit_i64 i64
    );

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        match &self.value {
            Value::Null | Value::Pruned => visitor.visit_unit().map_err(|error: ReadError| error.at(self.place)),
            Value::Bool(value) => visitor.visit_bool(*value).map_err(|error: ReadError| error.at(self.place)),
            Value::Number(text) => match text.parse() {
                Ok(number) => visitor.visit_i64(number).map_err(|error: ReadError| error.at(self.place)),
                Err(_) => self.deserialize_f64(visitor),
            },
            Value::Text(text) => visitor.visit_str(text).map_err(|error: ReadError| error.at(self.place)),
            Value::List(_) => self.deserialize_seq(visitor),
            Value::Map(_) => self.deserialize_map(visitor),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        match self.value {
            Value::Bool(value) => visitor.visit_bool(value),
            _ => Err(ReadError::expected("true or false", self)),
        }
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        let number = match &self.value {
            Value::Number(text) => text.parse::<f64>().ok().filter(|number| number.is_finite()),
            _ => None,
        };
        visitor.visit_f64(number.ok_or_else(|| ReadError::expected("a number", self))?)
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        self.deserialize_f64(visitor)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        // `5` where a text is expected is the text "5", as it is written: a plan may have that name.
        match &self.value {
            Value::Text(text) | Value::Number(text) => {
                visitor.visit_str(text).map_err(|error: ReadError| error.at(self.place))
            }
            _ => Err(ReadError::expected("a text", self)),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        match self.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, ReadError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        match &self.value {
            Value::List(items) => visitor.visit_seq(List { items, next: 0 }).map_err(|error| error.at(self.place)),
            _ => Err(ReadError::expected("a list", self)),
        }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        match &self.value {
            Value::Map(entries) => visitor.visit_map(Map { entries, next: 0 }).map_err(|error| error.at(self.place)),
            _ => Err(ReadError::expected("a mapping", self)),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        match &self.value {
            Value::Map(entries) => visitor.visit_map(Map { entries, next: 0 }).map_err(|error| error.at(self.place)),
            _ if fields.len() <= 8 => Err(ReadError::expected(&format!("a mapping of {}", fields.join(", ")), self)),
            _ => Err(ReadError::expected("a mapping", self)),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        let variant = match &self.value {
            Value::Text(text) => Variant { name: text, place: self.place, content: None },
            Value::Map(entries) if entries.len() == 1 => {
                let Entry { key, place, node } = &entries[0];
                Variant { name: key, place: *place, content: Some(node) }
            }
            _ => {
                return Err(ReadError::expected(&format!("exactly one of {}", variants.join(", ")), self));
            }
        };
        visitor.visit_enum(variant).map_err(|error| error.at(self.place))
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        self.deserialize_str(visitor)
    }

    serde::forward_to_deserialize_any! { char bytes byte_buf unit unit_struct tuple tuple_struct ignored_any }
}

struct List<'de> {
    items: &'de [Node],
    next: usize,
}

impl<'de> de::SeqAccess<'de> for List<'de> {
    type Error = ReadError;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, ReadError> {
        while let Some(item) = self.items.get(self.next) {
            self.next += 1;
            if !matches!(item.value, Value::Pruned) {
                return seed.deserialize(item).map(Some).map_err(|error| error.at(item.place).under(self.next - 1));
            }
        }
        Ok(None)
    }
}

struct Map<'de> {
    entries: &'de [Entry],
    next: usize,
}

impl<'de> de::MapAccess<'de> for Map<'de> {
    type Error = ReadError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, ReadError> {
        while let Some(entry) = self.entries.get(self.next) {
            self.next += 1;
            if !matches!(entry.node.value, Value::Pruned) {
                let key: StrDeserializer<'_, ReadError> = entry.key.as_str().into_deserializer();
                return seed.deserialize(key).map(Some).map_err(|error| error.at(entry.place).under(self.next - 1));
            }
        }
        Ok(None)
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, ReadError> {
        let position = self.next - 1;
        let node = &self.entries[position].node;
        seed.deserialize(node).map_err(|error| error.at(node.place).under(position))
    }
}

struct Variant<'de> {
    name: &'de str,
    place: Place,
    content: Option<&'de Node>,
}

impl<'de> de::EnumAccess<'de> for Variant<'de> {
    type Error = ReadError;
    type Variant = Self;

    fn variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<(T::Value, Self), ReadError> {
        let name: StrDeserializer<'_, ReadError> = self.name.into_deserializer();
        let variant = seed.deserialize(name).map_err(|error| error.at(self.place))?;
        Ok((variant, self))
    }
}

impl<'de> Variant<'de> {
    fn content(&self) -> Result<&'de Node, ReadError> {
        let message = || format!("`{0}` needs a value: write `{0}: …`", self.name);
        self.content.ok_or_else(|| ReadError::new(message()).at(self.place))
    }
}

impl<'de> de::VariantAccess<'de> for Variant<'de> {
    type Error = ReadError;

    fn unit_variant(self) -> Result<(), ReadError> {
        match self.content {
            None => Ok(()),
            Some(node) => Err(ReadError::expected(&format!("`{}` alone, without a value", self.name), node)),
        }
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, ReadError> {
        let content = self.content()?;
        seed.deserialize(content).map_err(|error| error.at(content.place).under(0))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, ReadError> {
        self.content()?.deserialize_seq(visitor).map_err(|error| error.under(0))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        self.content()?.deserialize_struct("", fields, visitor).map_err(|error| error.under(0))
    }
}
