//! Constants and attributes, read.

use super::checksum;
use super::lex::Token;
use super::parse::{Fail, Parser};
use crate::diagnostic::{CHECKSUM, ELIDED, LIMIT, LITERAL, UNKNOWN_ENCODING};
use crate::encodings::{Encoding, constructor};
use crate::tensor::{Data, count};
use crate::{Attr, Attrs, ElemType, Tensor};
use bytes::Bytes;
use lapidary_abi::elem::ElemClass;
use std::sync::Arc;

/// Most elements of a constant.
const MAX_ELEMENTS: usize = 1 << 40;

/// A number as written, before it is known what it is for.
#[derive(Clone, Debug)]
enum Number {
    Int(i128),
    /// The text, and its sign.
    Float(String, bool),
    /// Bits of a NaN.
    Nan(Option<u64>),
    Inf(bool),
}

impl Number {
    fn f64(&self) -> f64 {
        match self {
            Number::Int(v) => *v as f64,
            Number::Float(text, negative) => sign(text.parse().unwrap_or(f64::NAN), *negative),
            Number::Nan(bits) => bits.map_or(f64::NAN, f64::from_bits),
            Number::Inf(negative) => sign(f64::INFINITY, *negative),
        }
    }

    /// Rounded once, from the digits.
    fn f32(&self) -> f32 {
        match self {
            Number::Float(text, negative) => {
                let v: f32 = text.parse().unwrap_or(f32::NAN);
                if *negative { -v } else { v }
            }
            Number::Nan(Some(bits)) => u32::try_from(*bits).map_or(f32::NAN, f32::from_bits),
            Number::Nan(None) => f32::NAN,
            other => other.f64() as f32,
        }
    }

    /// As an element of a float type: see `literal::float`.
    fn element(&self, elem: ElemType) -> f64 {
        match self {
            Number::Nan(_) => self.f64(),
            _ if elem == ElemType::F64 => self.f64(),
            _ => f64::from(self.f32()),
        }
    }
}

fn sign(v: f64, negative: bool) -> f64 {
    if negative { -v } else { v }
}

impl Parser<'_> {
    /// An encoding term with its type and bytes.
    pub(super) fn term(&mut self) -> Result<Encoding, Fail> {
        self.nested(|p| {
            let name = p.word("an encoding")?;
            let Some(ctor) = constructor(&name) else {
                return p.fail_before(&UNKNOWN_ENCODING, format!("there is no encoding `{name}`"));
            };
            let (mut params, mut children) = (Attrs::new(), vec![]);
            if p.eat_sign('{') {
                while !p.eat_sign('}') {
                    if !(params.is_empty() && children.is_empty()) {
                        p.sign(',')?;
                    }
                    if !p.names_value() {
                        children.push(Arc::new(p.term()?));
                        continue;
                    }
                    let key = p.name("a parameter")?;
                    p.sign('=')?;
                    let child = ctor.children.iter();
                    let mut child = child.map(|c| c.trim_end_matches('?'));
                    if let Some(place) = child.position(|c| c == key) {
                        if place != children.len() {
                            let message = format!("`{key}` is the term with number {}", place + 1);
                            return p.fail_before(&LITERAL, message);
                        }
                        children.push(Arc::new(p.term()?));
                    } else {
                        let value = p.attr()?;
                        params.insert(key, value);
                    }
                }
            }
            let (elem, shape) = p.sized_type()?;
            let blob = p.blob(elem, &shape)?;
            Ok(Encoding {
                ctor,
                elem,
                shape,
                params,
                children,
                blob,
            })
        })
    }

    /// `f32[2,3]` with numbers only, whose product is in range.
    fn sized_type(&mut self) -> Result<(ElemType, Vec<usize>), Fail> {
        let word = self.word("an element type")?;
        let elem = self.elem_named(&word)?;
        let Some(shape) = self.tensor_type_of(elem)?.const_shape() else {
            return self.fail_before(&LITERAL, "the shape of a constant must be numbers");
        };
        // A zero must not hide an absurd dimension: strides multiply the others.
        let size = shape
            .iter()
            .try_fold(1usize, |n, &d| n.checked_mul(d.max(1)));
        if size.is_none_or(|n| n > MAX_ELEMENTS) || shape.len() > 64 {
            return self.fail_before(&LIMIT, "the constant is too large");
        }
        Ok((elem, shape))
    }

    fn blob(&mut self, elem: ElemType, shape: &[usize]) -> Result<Option<Bytes>, Fail> {
        match self.peek() {
            Token::Hex(_) => match self.next() {
                Token::Hex(bytes) => Ok(Some(Bytes::from(bytes))),
                other => self.expected("bytes", &other),
            },
            Token::Sign('[') => {
                let tensor = self.elements(elem, shape.to_vec())?;
                match tensor.to_bytes() {
                    Some(bytes) => Ok(Some(Bytes::from(bytes))),
                    None => {
                        self.fail_before(&LITERAL, "texts are written as the parameter `strings`")
                    }
                }
            }
            Token::Word(w) if w == "bytes" => self.distant_bytes().map(Some),
            _ => Ok(None),
        }
    }

    /// `bytes(length, checksum)` or `bytes(length, checksum, offset)`.
    fn distant_bytes(&mut self) -> Result<Bytes, Fail> {
        let start = self.here().start;
        self.next();
        self.sign('(')?;
        let len = self.count()?;
        self.sign(',')?;
        let sum = self.count()?;
        let at = if self.eat_sign(',') {
            Some(self.count()?)
        } else {
            None
        };
        self.sign(')')?;
        let span = start..self.before().end;
        let missing = |p: &mut Self, why: &str, help: &str| {
            p.fail_help(
                &ELIDED,
                span.clone(),
                format!("the {len} bytes of this constant are {why}"),
                help,
            )
        };
        let Some(at) = at else {
            return missing(
                self,
                "left out of this text",
                "print it with its bytes to read it back",
            );
        };
        let Some(weights) = self.weights else {
            return missing(
                self,
                "in the side file, which is not given",
                "read it together with its `.weights` file",
            );
        };
        let range = usize::try_from(at)
            .ok()
            .zip(at.checked_add(len).and_then(|e| usize::try_from(e).ok()));
        let Some((from, to)) = range.filter(|&(_, to)| to <= weights.len()) else {
            return missing(
                self,
                "beyond the end of the side file",
                "is it the file that was written with this text?",
            );
        };
        let bytes = weights.slice(from..to);
        if checksum(&bytes) != sum {
            return self.fail_help(
                &CHECKSUM,
                span,
                format!(
                    "the bytes have checksum 0x{:016x}, expected 0x{sum:016x}",
                    checksum(&bytes)
                ),
                "is it the side file that was written with this text?",
            );
        }
        Ok(bytes)
    }

    fn count(&mut self) -> Result<u64, Fail> {
        match self.next() {
            Token::Number(n) => {
                let value = match n.strip_prefix("0x") {
                    Some(hex) => u64::from_str_radix(hex, 16),
                    None => n.parse(),
                };
                value.or_else(|_| self.fail_before(&LITERAL, format!("`{n}` is no count of bytes")))
            }
            other => self.expected("a number", &other),
        }
    }

    /// `[1.0, 2.0]` as a tensor of this type.
    fn elements(&mut self, elem: ElemType, shape: Vec<usize>) -> Result<Tensor, Fail> {
        let start = self.here().start;
        let data = match elem.class() {
            ElemClass::Float => Data::Float(self.list(|p| Ok(p.number()?.element(elem)))?),
            ElemClass::String => Data::Str(self.list(Self::string)?),
            ElemClass::Complex => Data::Complex(self.list(|p| p.complex(elem))?),
            _ => Data::Int(self.list(|p| p.integer(elem))?),
        };
        let found = match &data {
            Data::Float(v) => v.len(),
            Data::Int(v) => v.len(),
            Data::Complex(v) => v.len(),
            Data::Str(v) => v.len(),
        };
        if found != count(&shape) {
            let message = format!("{} elements are needed, {found} are written", count(&shape));
            return self.fail(&LITERAL, start..self.before().end, message);
        }
        Ok(match data {
            Data::Float(v) => Tensor::from_f64(elem, shape, v),
            data => Tensor::new(elem, shape, data),
        })
    }

    fn complex(&mut self, elem: ElemType) -> Result<[f64; 2], Fail> {
        let half = if elem == ElemType::C128 {
            ElemType::F64
        } else {
            ElemType::F32
        };
        self.sign('(')?;
        let re = self.number()?.element(half);
        self.sign(',')?;
        let im = self.number()?.element(half);
        self.sign(')')?;
        Ok([re, im])
    }

    fn integer(&mut self, elem: ElemType) -> Result<i128, Fail> {
        let number = self.number()?;
        match (number, elem.int_range()) {
            (Number::Int(v), Some((lo, hi))) if (lo..=hi).contains(&v) => Ok(v),
            (Number::Int(v), _) => {
                self.fail_before(&LITERAL, format!("{v} is out of range for {elem}"))
            }
            _ => self.fail_before(&LITERAL, format!("an element of {elem} must be an integer")),
        }
    }

    fn number(&mut self) -> Result<Number, Fail> {
        let negative = self.eat_sign('-');
        match self.next() {
            Token::Number(n) => {
                if let Ok(v) = n.parse::<i128>() {
                    return Ok(Number::Int(if negative { -v } else { v }));
                }
                match n.parse::<f64>() {
                    Ok(_) => Ok(Number::Float(n, negative)),
                    Err(_) => self.fail_before(&LITERAL, format!("`{n}` is no number")),
                }
            }
            Token::Word(w) if w == "inf" => Ok(Number::Inf(negative)),
            Token::Word(w) if w == "true" => Ok(Number::Int(1)),
            Token::Word(w) if w == "false" => Ok(Number::Int(0)),
            Token::Word(w) if w == "nan" => {
                if !self.eat_sign('(') {
                    return Ok(Number::Nan(None));
                }
                let bits = self.count()?;
                self.sign(')')?;
                Ok(Number::Nan(Some(bits)))
            }
            other => self.expected("a number", &other),
        }
    }

    /// An attribute's value.
    pub(super) fn attr(&mut self) -> Result<Attr, Fail> {
        match self.peek().clone() {
            Token::Str(_) => self.string().map(Attr::Str),
            Token::Sign('[') => self.attr_list(),
            Token::Word(w) => match w.as_str() {
                "true" | "false" | "inf" | "nan" => self.scalar_attr(),
                "floats" | "strs" => {
                    self.next();
                    self.sign('[')?;
                    self.sign(']')?;
                    Ok(if w == "floats" {
                        Attr::Floats(vec![])
                    } else {
                        Attr::Strs(vec![])
                    })
                }
                "tensor" => {
                    self.next();
                    let (elem, shape) = self.sized_type()?;
                    self.elements(elem, shape).map(Attr::Tensor)
                }
                "sequence" | "optional" => self.ty().map(Attr::Type),
                _ if *self.peek_at(1) == Token::Sign('[') => self.ty().map(Attr::Type),
                _ => {
                    self.next();
                    self.elem_named(&w).map(Attr::Elem)
                }
            },
            _ => self.scalar_attr(),
        }
    }

    fn scalar_attr(&mut self) -> Result<Attr, Fail> {
        match self.number()? {
            Number::Int(v) => match i64::try_from(v) {
                Ok(v) => Ok(Attr::Int(v)),
                Err(_) => {
                    self.fail_before(&LITERAL, format!("{v} is out of range for an attribute"))
                }
            },
            other => Ok(Attr::Float(other.f32())),
        }
    }

    fn attr_list(&mut self) -> Result<Attr, Fail> {
        if matches!(self.peek_at(1), Token::Str(_)) {
            return self.list(Self::string).map(Attr::Strs);
        }
        let items = self.list(Self::scalar_attr)?;
        if items.iter().any(|a| matches!(a, Attr::Float(_))) {
            let floats = items.into_iter().map(|a| match a {
                Attr::Float(v) => v,
                Attr::Int(v) => v as f32,
                _ => f32::NAN,
            });
            return Ok(Attr::Floats(floats.collect()));
        }
        let ints = items.into_iter().filter_map(|a| match a {
            Attr::Int(v) => Some(v),
            _ => None,
        });
        Ok(Attr::Ints(ints.collect()))
    }

    /// `[a, b]`.
    fn list<T>(
        &mut self,
        mut item: impl FnMut(&mut Self) -> Result<T, Fail>,
    ) -> Result<Vec<T>, Fail> {
        self.sign('[')?;
        let mut out = vec![];
        while !self.eat_sign(']') {
            if !out.is_empty() {
                self.sign(',')?;
            }
            out.push(item(self)?);
        }
        Ok(out)
    }
}
