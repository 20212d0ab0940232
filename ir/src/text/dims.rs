//! Types and dimensions, read.

use super::lex::Token;
use super::parse::{Fail, Parser};
use crate::diagnostic::{LIMIT, LITERAL};
use crate::types::TensorType;
use crate::{Dim, ElemType, Type};

impl Parser<'_> {
    /// `f32[batch,4]`, `f32[*]`, `sequence<T>`, `optional<T>`.
    pub(super) fn ty(&mut self) -> Result<Type, Fail> {
        self.nested(|p| {
            let word = p.word("a type")?;
            if matches!(word.as_str(), "sequence" | "optional") {
                p.sign('<')?;
                let inner = Box::new(p.ty()?);
                p.sign('>')?;
                return Ok(match word.as_str() {
                    "sequence" => Type::Sequence(inner),
                    _ => Type::Optional(inner),
                });
            }
            let elem = p.elem_named(&word)?;
            p.tensor_type_of(elem).map(Type::Tensor)
        })
    }

    /// The element type of a name that was just read.
    pub(super) fn elem_named(&mut self, name: &str) -> Result<ElemType, Fail> {
        match ElemType::from_name(name) {
            Some(elem) => Ok(elem),
            None => self.fail_before(&LITERAL, format!("there is no element type `{name}`")),
        }
    }

    /// The shape after an element type.
    pub(super) fn tensor_type_of(&mut self, elem: ElemType) -> Result<TensorType, Fail> {
        self.sign('[')?;
        if self.eat_sign('*') {
            self.sign(']')?;
            return Ok(TensorType::unranked(elem));
        }
        let mut shape = vec![];
        while !self.eat_sign(']') {
            if !shape.is_empty() {
                self.sign(',')?;
            }
            shape.push(self.dim()?);
        }
        Ok(TensorType::new(elem, shape))
    }

    /// A sum of products.
    pub(super) fn dim(&mut self) -> Result<Dim, Fail> {
        self.nested(|p| {
            let mut sum = Dim::default();
            let mut negative = p.eat_sign('-');
            loop {
                let term = p.product(negative)?;
                p.limit(sum.outgrows_sum(&term))?;
                sum = sum + term;
                negative = match () {
                    () if p.eat_sign('+') => false,
                    () if p.eat_sign('-') => true,
                    () => return Ok(sum),
                };
            }
        })
    }

    fn product(&mut self, negative: bool) -> Result<Dim, Fail> {
        let mut product = match self.peek() {
            // The one number that is in range only with its sign.
            Token::Number(n) if negative && n.parse() == Ok(i64::MIN.unsigned_abs()) => {
                self.next();
                Dim::from(i64::MIN)
            }
            _ if negative => Dim::default() - self.factor()?,
            _ => self.factor()?,
        };
        while self.eat_sign('*') {
            let factor = self.factor()?;
            self.limit(product.outgrows_product(&factor))?;
            product = product * factor;
        }
        Ok(product)
    }

    fn factor(&mut self) -> Result<Dim, Fail> {
        let token = self.next();
        let word = match token {
            Token::Number(n) => {
                return match n.parse::<i64>() {
                    Ok(n) => Ok(Dim::from(n)),
                    Err(_) => self.fail_before(&LITERAL, format!("`{n}` is no dimension")),
                };
            }
            Token::Str(name) => return Ok(Dim::sym(&name)),
            Token::Word(word) => word,
            other => return self.expected("a dimension", &other),
        };
        let function: fn(&Dim, &Dim) -> Dim = match word.as_str() {
            "floordiv" => Dim::floor_div,
            "mod" => Dim::modulo,
            "min" => Dim::min_dim,
            "max" => Dim::max_dim,
            _ => return Ok(Dim::sym(&word)),
        };
        self.sign('(')?;
        let a = self.dim()?;
        self.sign(',')?;
        let b = self.dim()?;
        self.sign(')')?;
        self.limit(a.outgrows_sum(&b))?;
        Ok(function(&a, &b))
    }

    fn limit(&mut self, outgrown: bool) -> Result<(), Fail> {
        if outgrown {
            return self.fail_before(&LIMIT, "a dimension has too many terms");
        }
        Ok(())
    }
}
