//! How names, numbers, texts and attributes are written.

use crate::tensor::Data;
use crate::{Attr, ElemType, Tensor};

/// Words that a dimension's symbol cannot be without quotes.
const FUNCTIONS: &[&str] = &["floordiv", "mod", "min", "max"];

/// True if `name` reads back as one word.
fn is_word(name: &str) -> bool {
    let mut chars = name.chars();
    chars
        .next()
        .is_some_and(|c| c.is_ascii_alphabetic() || c == '_' || c == '?')
        && chars.all(is_word_char)
}

/// Characters of a word after its first.
pub fn is_word_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '?')
}

/// Characters that a value's name may hold without quotes.
pub fn is_value_char(c: char) -> bool {
    is_word_char(c) || matches!(c, '/' | '-' | '$' | '@')
}

/// A name where a word is expected; quoted if it is not one.
pub fn word(name: &str) -> String {
    if is_word(name) && name != "_" {
        name.to_owned()
    } else {
        string(name)
    }
}

/// A dimension's symbol; quoted if it is not a plain word.
pub fn symbol(name: &str) -> String {
    if FUNCTIONS.contains(&name) {
        string(name)
    } else {
        word(name)
    }
}

/// A value's name, without the `%`.
pub fn value_name(name: &str) -> String {
    let plain = name.chars().all(is_value_char) && !name.chars().all(|c| c.is_ascii_digit());
    if plain { name.to_owned() } else { string(name) }
}

/// A quoted text.
pub fn string(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            c if c.is_control() => out.push_str(&format!("\\u{{{:x}}}", c as u32)),
            c => out.push(c),
        }
    }
    out + "\""
}

/// A float of type `elem` (`f64`: all digits of a double, else of a single). A NaN other than the usual one
/// is written with its bits.
pub fn float(elem: ElemType, v: f64) -> String {
    match v {
        v if v.is_nan() && v.to_bits() == f64::NAN.to_bits() => "nan".into(),
        v if v.is_nan() => format!("nan(0x{:x})", v.to_bits()),
        v if elem == ElemType::F64 => format!("{v:?}"),
        v => format!("{:?}", v as f32),
    }
}

/// An `f32` attribute.
fn single(v: f32) -> String {
    if v.is_nan() && v.to_bits() != f32::NAN.to_bits() {
        return format!("nan(0x{:x})", v.to_bits());
    }
    float(ElemType::F32, f64::from(v))
}

/// The elements of a tensor.
pub fn elements(tensor: &Tensor) -> String {
    let elem = tensor.elem();
    let half = if elem == ElemType::C128 {
        ElemType::F64
    } else {
        ElemType::F32
    };
    match tensor.data() {
        Data::Float(v) => list(v, |&v| float(elem, v)),
        Data::Int(v) => list(v, i128::to_string),
        Data::Complex(v) => list(v, |v| {
            format!("({}, {})", float(half, v[0]), float(half, v[1]))
        }),
        Data::Str(v) => list(v, |v| string(v)),
    }
}

/// The type of a tensor of known size: `f32[2,3]`.
pub fn tensor_type(elem: ElemType, shape: &[usize]) -> String {
    let dims: Vec<String> = shape.iter().map(usize::to_string).collect();
    format!("{elem}[{}]", dims.join(","))
}

/// `[a, b]`.
pub fn list<T>(items: &[T], write: impl Fn(&T) -> String) -> String {
    let items: Vec<String> = items.iter().map(write).collect();
    format!("[{}]", items.join(", "))
}

/// An attribute's value.
pub fn attr(value: &Attr) -> String {
    match value {
        Attr::Int(v) => v.to_string(),
        Attr::Ints(v) => list(v, i64::to_string),
        Attr::Float(v) => single(*v),
        Attr::Floats(v) if v.is_empty() => "floats[]".into(),
        Attr::Floats(v) => list(v, |&v| single(v)),
        Attr::Str(v) => string(v),
        Attr::Strs(v) if v.is_empty() => "strs[]".into(),
        Attr::Strs(v) => list(v, |v| string(v)),
        Attr::Elem(v) => v.to_string(),
        Attr::Type(v) => v.to_string(),
        Attr::Tensor(t) => {
            format!(
                "tensor {} {}",
                tensor_type(t.elem(), t.shape()),
                elements(t)
            )
        }
    }
}
