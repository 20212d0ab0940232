//! Fields of a request, and what is said of wrong ones.

use crate::error::Refused;
use serde_json::{Map, Value};
use std::ops::RangeInclusive;

/// The fields; those that are `null` count as missing.
pub struct Fields(Map<String, Value>);

impl Fields {
    /// Those of an object.
    pub fn read(bytes: &[u8]) -> Result<Fields, Refused> {
        let value = serde_json::from_slice(bytes)
            .map_err(|e| Refused::wrong(format!("the request is no JSON: {e}")))?;
        match value {
            Value::Object(object) => Ok(Fields(object)),
            _ => Err(Refused::wrong("the request is no JSON object")),
        }
    }

    /// One of them.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|v| !v.is_null())
    }

    /// One of them as something, by `read`; `what` is said of a wrong one.
    fn read_as<'f, T>(
        &'f self,
        name: &str,
        what: &str,
        read: impl FnOnce(&'f Value) -> Option<T>,
    ) -> Result<Option<T>, Refused> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        let wrong = || Refused::field(name, format!("`{name}` must be {what}"));
        read(value).ok_or_else(wrong).map(Some)
    }

    /// A number within bounds.
    pub fn number(&self, name: &str, within: RangeInclusive<f64>) -> Result<Option<f64>, Refused> {
        let what = match *within.end() == f64::INFINITY {
            true => format!("a number of at least {}", within.start()),
            false => format!("a number from {} to {}", within.start(), within.end()),
        };
        let read = |v: &Value| v.as_f64().filter(|n| n.is_finite() && within.contains(n));
        self.read_as(name, &what, read)
    }

    /// A whole number within bounds.
    pub fn whole(
        &self,
        name: &str,
        within: RangeInclusive<usize>,
    ) -> Result<Option<usize>, Refused> {
        let what = match *within.end() == usize::MAX {
            true => format!("a whole number of at least {}", within.start()),
            false => format!("a whole number from {} to {}", within.start(), within.end()),
        };
        let read = |v: &Value| usize::try_from(v.as_u64()?).ok();
        self.read_as(name, &what, |v| read(v).filter(|n| within.contains(n)))
    }

    /// A start of random numbers, which may be negative.
    pub fn seed(&self, name: &str) -> Result<Option<u64>, Refused> {
        let read = |v: &Value| v.as_u64().or_else(|| v.as_i64().map(|n| n as u64));
        self.read_as(name, "a whole number", read)
    }

    /// Whether it is `true`; missing ones are not.
    pub fn truth(&self, name: &str) -> Result<bool, Refused> {
        Ok(self
            .read_as(name, "true or false", Value::as_bool)?
            .unwrap_or(false))
    }

    /// A text.
    pub fn text(&self, name: &str) -> Result<Option<&str>, Refused> {
        self.read_as(name, "a string", Value::as_str)
    }

    /// A text or a list of texts.
    pub fn texts(&self, name: &str) -> Result<Option<Vec<String>>, Refused> {
        let read = |v: &Value| match v {
            Value::String(text) => Some(vec![text.clone()]),
            Value::Array(all) => all.iter().map(|v| v.as_str().map(str::to_owned)).collect(),
            _ => None,
        };
        self.read_as(name, "a string or a list of strings", read)
    }

    /// An error if the field asks for something that there is not; `harmless` are its values that ask for nothing.
    pub fn refuse(&self, name: &str, harmless: fn(&Value) -> bool) -> Result<(), Refused> {
        match self.get(name).is_none_or(harmless) {
            true => Ok(()),
            false => Err(Refused::field(name, format!("`{name}` is not supported"))),
        }
    }
}

/// Says nothing: an empty list, object or text, zero, or `false`.
pub fn empty(value: &Value) -> bool {
    match value {
        Value::Array(all) => all.is_empty(),
        Value::Object(all) => all.is_empty(),
        Value::String(text) => text.is_empty(),
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::Bool(yes) => !yes,
        Value::Null => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_fields_are_named() {
        let fields = Fields::read(br#"{"a": 3, "b": null, "c": ["x", "y"], "d": -1, "e": "t"}"#);
        let fields = fields.unwrap_or_else(|e| panic!("{e:?}"));
        assert_eq!(fields.whole("a", 1..=4).ok(), Some(Some(3)));
        assert_eq!(fields.number("b", 0.0..=1.0).ok(), Some(None));
        assert_eq!(fields.texts("c").ok().flatten().map(|t| t.len()), Some(2));
        assert_eq!(fields.seed("d").ok().flatten(), Some(u64::MAX));
        let message = |r: Refused| r.to_json()["error"]["message"].to_string();
        let error = fields.whole("a", 1..=2).expect_err("too high");
        assert!(message(error).contains("`a` must be a whole number from 1 to 2"));
        assert!(fields.whole("d", 0..=usize::MAX).is_err());
        assert!(fields.truth("e").is_err() && fields.text("a").is_err());
        assert!(fields.refuse("b", empty).is_ok() && fields.refuse("a", empty).is_err());
        for wrong in ["", "{", "[]", "3", "{\"a\": \"\\ud800\"}"] {
            assert!(Fields::read(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }
}
