//! Texts of a request as tokens: a text, its tokens, or a list of either.

use crate::error::Refused;
use crate::fields::Fields;
use lapidary_language::Error;
use serde_json::Value;

/// How the texts of a request become tokens.
pub struct Prompts<'r> {
    /// The field that they are in.
    pub field: &'r str,
    /// Most of them.
    pub most: usize,
    /// What cuts a text into tokens.
    pub encode: &'r dyn Fn(&str) -> Result<Vec<u32>, Error>,
    /// Whether the model takes such tokens.
    pub check: &'r dyn Fn(&[u32]) -> Result<(), Error>,
}

impl Prompts<'_> {
    /// Reads them; tokens are taken as they are. What is wrong with one of several is said with its number, from 0 on.
    pub fn read(&self, fields: &Fields) -> Result<Vec<Vec<u32>>, Refused> {
        let all = match fields.get(self.field) {
            Some(text @ Value::String(_)) => return Ok(vec![self.one(text, "")?]),
            Some(Value::Array(all)) => all,
            _ => return Err(self.wrong()),
        };
        match all.first() {
            None => Err(self.refuse("is an empty list")),
            Some(Value::Number(_)) => Ok(vec![self.tokens(all, "")?]),
            Some(_) if all.len() > self.most => Err(self.refuse(&format!(
                "has {} texts, at most {} go into one request",
                all.len(),
                self.most
            ))),
            Some(_) => {
                let one = |(one, place): (&Value, usize)| match all.len() {
                    1 => self.one(one, ""),
                    _ => self.one(one, &format!("{} {place}: ", self.field)),
                };
                all.iter().zip(0..).map(one).collect()
            }
        }
    }

    /// The tokens of one text; `which` it is, for messages.
    fn one(&self, value: &Value, which: &str) -> Result<Vec<u32>, Refused> {
        match value {
            Value::String(text) => self.checked((self.encode)(text), which),
            Value::Array(tokens) => self.tokens(tokens, which),
            _ => Err(self.wrong()),
        }
    }

    fn tokens(&self, all: &[Value], which: &str) -> Result<Vec<u32>, Refused> {
        let token = |v: &Value| u32::try_from(v.as_u64()?).ok();
        let tokens: Option<Vec<u32>> = all.iter().map(token).collect();
        let tokens = tokens.filter(|t| !t.is_empty());
        self.checked(Ok(tokens.ok_or_else(|| self.wrong())?), which)
    }

    fn checked(&self, tokens: Result<Vec<u32>, Error>, which: &str) -> Result<Vec<u32>, Refused> {
        let tokens = tokens.and_then(|t| (self.check)(&t).map(|()| t));
        tokens.map_err(|mut error| {
            error.message.insert_str(0, which);
            Refused::of(self.field, &error)
        })
    }

    fn wrong(&self) -> Refused {
        self.refuse(
            "must be a string, a list of strings, a list of tokens, or a list of such lists",
        )
    }

    fn refuse(&self, why: &str) -> Refused {
        Refused::field(self.field, format!("`{}` {why}", self.field))
    }
}
