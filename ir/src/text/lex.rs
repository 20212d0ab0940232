//! Text to tokens.

use super::literal::{is_value_char, is_word_char};
use std::ops::Range;

/// Longest text that is read, in bytes.
pub const MAX_TEXT: usize = 1 << 28;

/// A token.
#[derive(Clone, Debug, PartialEq)]
pub enum Token {
    /// A word.
    Word(String),
    /// `%name` or `%name#1`: the name as written, and the source name (empty for `%7`).
    Value { written: String, name: String },
    /// An unsigned number as written.
    Number(String),
    /// A quoted text.
    Str(String),
    /// `x"…"`.
    Hex(Vec<u8>),
    /// `->`.
    Arrow,
    /// Any other sign.
    Sign(char),
    /// The end.
    End,
}

impl Token {
    /// How messages call it.
    pub fn describe(&self) -> String {
        match self {
            Token::Word(w) => format!("`{w}`"),
            Token::Value { written, .. } => format!("`%{written}`"),
            Token::Number(n) => format!("`{n}`"),
            Token::Str(_) => "a text".into(),
            Token::Hex(_) => "bytes".into(),
            Token::Arrow => "`->`".into(),
            Token::Sign(c) => format!("`{c}`"),
            Token::End => "the end".into(),
        }
    }
}

/// A lexical mistake.
pub struct LexError {
    /// Where.
    pub span: Range<usize>,
    /// What.
    pub message: String,
}

/// All tokens of a text, each with its bytes; the last one is [`Token::End`].
pub fn tokens(text: &str) -> Result<Vec<(Token, Range<usize>)>, LexError> {
    let mut lexer = Lexer { text, at: 0 };
    let mut out = vec![];
    loop {
        lexer.skip();
        let start = lexer.at;
        let token = lexer.token()?;
        let end = token == Token::End;
        out.push((token, start..lexer.at));
        if end {
            return Ok(out);
        }
    }
}

struct Lexer<'t> {
    text: &'t str,
    at: usize,
}

impl<'t> Lexer<'t> {
    fn rest(&self) -> &'t str {
        &self.text[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn take_while(&mut self, keep: impl Fn(char) -> bool) -> &'t str {
        let rest = self.rest();
        let len = rest.find(|c| !keep(c)).unwrap_or(rest.len());
        self.at += len;
        &rest[..len]
    }

    fn skip(&mut self) {
        loop {
            self.take_while(char::is_whitespace);
            if self.peek() != Some(';') {
                return;
            }
            self.take_while(|c| c != '\n');
        }
    }

    fn error(&self, start: usize, message: impl Into<String>) -> LexError {
        LexError {
            span: start..self.at.max(start),
            message: message.into(),
        }
    }

    fn token(&mut self) -> Result<Token, LexError> {
        let Some(c) = self.peek() else {
            return Ok(Token::End);
        };
        if self.rest().starts_with("x\"") {
            self.at += 1;
            return self.hex();
        }
        if self.rest().starts_with("->") {
            self.at += 2;
            return Ok(Token::Arrow);
        }
        match c {
            '"' => self.string().map(Token::Str),
            '%' => self.value(),
            c if c.is_ascii_digit() => Ok(Token::Number(self.number())),
            c if c.is_ascii_alphabetic() || c == '_' || c == '?' => {
                Ok(Token::Word(self.take_while(is_word_char).to_owned()))
            }
            c => {
                self.at += c.len_utf8();
                Ok(Token::Sign(c))
            }
        }
    }

    fn number(&mut self) -> String {
        let start = self.at;
        if self.rest().starts_with("0x") {
            self.at += 2;
            self.take_while(|c| c.is_ascii_hexdigit());
            return self.text[start..self.at].to_owned();
        }
        let digits = |l: &mut Self| l.take_while(|c| c.is_ascii_digit()).len();
        digits(self);
        if self.peek() == Some('.') {
            self.at += 1;
            digits(self);
        }
        let before = self.at;
        if matches!(self.peek(), Some('e' | 'E')) {
            self.at += 1;
            if matches!(self.peek(), Some('+' | '-')) {
                self.at += 1;
            }
            if digits(self) == 0 {
                self.at = before;
            }
        }
        self.text[start..self.at].to_owned()
    }

    fn value(&mut self) -> Result<Token, LexError> {
        let start = self.at;
        self.at += 1;
        let from = self.at;
        let name = if self.peek() == Some('"') {
            self.string()?
        } else {
            let name = self.take_while(is_value_char);
            if name.is_empty() {
                return Err(self.error(start, "expected a name after `%`"));
            }
            if name.chars().all(|c| c.is_ascii_digit()) {
                String::new()
            } else {
                name.to_owned()
            }
        };
        if self.peek() == Some('#') {
            self.at += 1;
            self.take_while(|c| c.is_ascii_digit());
        }
        let written = self.text[from..self.at].to_owned();
        Ok(Token::Value { written, name })
    }

    fn string(&mut self) -> Result<String, LexError> {
        let start = self.at;
        self.at += 1;
        let mut out = String::new();
        loop {
            let Some(c) = self.peek() else {
                return Err(self.error(start, "the text has no closing `\"`"));
            };
            self.at += c.len_utf8();
            match c {
                '"' => return Ok(out),
                '\n' => return Err(self.error(start, "the text has no closing `\"` on its line")),
                '\\' => out.push(self.escape()?),
                c => out.push(c),
            }
        }
    }

    fn escape(&mut self) -> Result<char, LexError> {
        let start = self.at;
        let c = self.peek();
        self.at += c.map_or(0, char::len_utf8);
        match c {
            Some('n') => Ok('\n'),
            Some('t') => Ok('\t'),
            Some('r') => Ok('\r'),
            Some(c @ ('"' | '\\')) => Ok(c),
            Some('u') => {
                let code = self
                    .rest()
                    .strip_prefix('{')
                    .and_then(|r| r.split_once('}'))
                    .filter(|(code, _)| code.len() <= 6 && code.is_ascii());
                let Some((code, _)) = code else {
                    return Err(self.error(start, "expected `\\u{...}`"));
                };
                self.at += code.len() + 2;
                u32::from_str_radix(code, 16)
                    .ok()
                    .and_then(char::from_u32)
                    .ok_or_else(|| self.error(start, "there is no such character"))
            }
            _ => Err(self.error(start, "there is no such escape")),
        }
    }

    fn hex(&mut self) -> Result<Token, LexError> {
        let start = self.at;
        self.at += 1;
        let digits = self.take_while(|c| c.is_ascii_hexdigit() || c == ' ');
        if self.peek() != Some('"') {
            return Err(self.error(start, "expected hexadecimal digits up to a closing `\"`"));
        }
        self.at += 1;
        let digits: Vec<u8> = digits
            .chars()
            .filter_map(|c| c.to_digit(16))
            .map(|d| d as u8)
            .collect();
        if !digits.len().is_multiple_of(2) {
            return Err(self.error(start, "bytes need an even number of digits"));
        }
        Ok(Token::Hex(
            digits.chunks_exact(2).map(|p| p[0] << 4 | p[1]).collect(),
        ))
    }
}
