//! Tokens as text, up to the texts to stop at.

use crate::Error;
use crate::vocabulary::{Stream, Vocabulary};

/// Text on its way out: what might become a text to stop at is held back.
pub struct Text<'v> {
    stream: Stream<'v>,
    held: String,
    stop: Vec<String>,
}

impl<'v> Text<'v> {
    /// After these tokens; it ends before any of `stop`.
    pub fn after(vocabulary: &'v Vocabulary, tokens: &[u32], stop: Vec<String>) -> Text<'v> {
        Text {
            stream: Stream::after(vocabulary, tokens),
            held: String::new(),
            stop,
        }
    }

    /// Text that can go, and whether it ends there.
    pub fn push(&mut self, token: u32) -> Result<(String, bool), Error> {
        self.held += &self.stream.push(token)?;
        Ok(self.release(false))
    }

    /// The rest of it, and whether it ends before that.
    pub fn finish(&mut self) -> Result<(String, bool), Error> {
        self.held += &self.stream.finish()?;
        Ok(self.release(true))
    }

    fn release(&mut self, last: bool) -> (String, bool) {
        let stops = || self.stop.iter().filter(|s| !s.is_empty());
        if let Some(at) = stops().filter_map(|s| self.held.find(s.as_str())).min() {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        let may_begin = |&at: &usize| stops().any(|s| s.starts_with(&self.held[at..]));
        let places = self.held.char_indices().map(|(at, _)| at);
        let keep = match last {
            true => None,
            false => places.into_iter().find(may_begin),
        };
        let kept = self.held.split_off(keep.unwrap_or(self.held.len()));
        (std::mem::replace(&mut self.held, kept), false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vocabulary::testing::bytes;

    #[test]
    fn what_may_be_a_stop_is_held_back() {
        let vocabulary = Vocabulary::read(&bytes(), 256).expect("a tokenizer");
        let run = |text: &str, stop: &[&str]| -> (Vec<String>, bool) {
            let stop: Vec<String> = stop.iter().map(|s| (*s).to_owned()).collect();
            let mut out = Text::after(&vocabulary, &[], stop);
            let mut pieces = vec![];
            for token in text.bytes() {
                let (piece, stopped) = out.push(token.into()).expect("decoded");
                pieces.push(piece);
                if stopped {
                    return (pieces, true);
                }
            }
            let (piece, stopped) = out.finish().expect("decoded");
            pieces.push(piece);
            (pieces, stopped)
        };
        let (pieces, stopped) = run("ab\n\ncd", &["\n\n", "zz"]);
        assert_eq!((pieces.concat().as_str(), stopped), ("ab", true));
        let (pieces, stopped) = run("ab\ncz", &["\n\n", "zz"]);
        assert_eq!((pieces.concat().as_str(), stopped), ("ab\ncz", false));
        assert_eq!(pieces[2], "", "a newline waits");
        let (pieces, stopped) = run("aaab", &["aab"]);
        assert_eq!((pieces.concat().as_str(), stopped), ("a", true));
    }
}
