//! Mutations of programs as text: words are removed, doubled, exchanged and replaced by others.

use super::random::Random;

/// Words that a program may lack.
const WORDS: &[&str] = &[
    "%x",
    "%y",
    "%0",
    "_",
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    "=",
    ",",
    ":",
    "*",
    "-",
    "->",
    "fn",
    "const",
    "return",
    "yield",
    "f32",
    "i64",
    "bool",
    "string",
    "u4",
    "sequence",
    "optional",
    "<",
    ">",
    "N",
    "0",
    "1",
    "-1",
    "4",
    "1099511627776",
    "9223372036854775807",
    "floordiv",
    "mod",
    "min",
    "max",
    "dense",
    "int",
    "affine",
    "bits",
    "scale",
    "codes",
    "zero",
    "add",
    "mul",
    "div",
    "relu",
    "reshape",
    "concat",
    "gather",
    "shape",
    "slice",
    "if",
    "loop",
    "scan",
    "then_branch",
    "else_branch",
    "body",
    "axis",
    "perm",
    "to",
    "nan",
    "inf",
    "x\"00\"",
    "\"a\"",
    "1.5",
    "tensor",
    "floats",
    "conv",
    "matmul",
    "squeeze",
    "expand",
    "pad",
    "tile",
    "range",
    "resize",
    "split",
    "cast",
    "transpose",
    "one_hot",
    "top_k",
    "einsum",
    "equation",
    "sequence_at",
    "optional_get_element",
];

/// A text like this one, with up to four changes.
pub fn mutate(data: &[u8], random: &mut Random) -> Vec<u8> {
    let text = String::from_utf8_lossy(data);
    let mut words = split(&text);
    for _ in 0..=random.below(4) {
        let (at, other) = (random.below(words.len()), random.below(words.len()));
        let new = random.pick(WORDS).copied().unwrap_or_default();
        if words.is_empty() {
            words.push(new);
            continue;
        }
        match random.below(6) {
            0 => {
                words.remove(at);
            }
            1 => words.insert(at, new),
            2 => words.insert(at, words[other]),
            3 => words.swap(at, other),
            4 => words[at] = words[other],
            _ => words[at] = new,
        }
    }
    words.concat().into_bytes()
}

/// Words, spaces and single signs; together they are the text.
fn split(text: &str) -> Vec<&str> {
    let kind = |c: char| match c {
        c if c.is_alphanumeric() || matches!(c, '_' | '.' | '?' | '%') => 0,
        c if c.is_whitespace() => 1,
        _ => 2,
    };
    let mut words = vec![];
    let mut start = 0;
    let mut last = 2;
    for (i, c) in text.char_indices() {
        if i > start && (kind(c) != last || last == 2) {
            words.push(&text[start..i]);
            start = i;
        }
        last = kind(c);
    }
    words.push(&text[start..]);
    words
}
