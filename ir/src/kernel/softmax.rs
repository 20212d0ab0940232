//! Rows of scores to weights of a softmax that runs on over several stretches of keys: the canonical loop, written and
//! recognised.
//!
//! ```text
//! for r in 0..rows {
//!   x = s[r][j] * scale, softcap, mask            for the keys j that row r sees
//!   m' = max(m[r], max x);  s[r][j] = exp(x - m'), 0 for keys that it does not see
//!   o[r] *= exp(m[r] - m');  l[r] = l[r] * exp(m[r] - m') + sum s[r];  m[r] = m'
//! }
//! ```
//! Source: Milakov, Gimelshein, "Online normalizer calculation for softmax" (arXiv 1805.02867), section 3.

use super::build::KernelBuilder;
use super::contraction::{Facts, PANEL};
use super::pattern::{loop_alone, written};
use super::*;

/// What is added to scores, or hides them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mask {
    /// `bool`, where true is seen, or `f32`, which is added.
    pub buf: Buf,
    /// Its first element for row 0.
    pub base: Var,
    /// Elements between rows; none if all rows share one.
    pub pitch: Option<Var>,
}

/// What becomes of a row's sum.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rest {
    /// There may be other stretches: maxima, sums, and what weights have given so far, in rows of `width` (a multiple of
    /// [`PANEL`]) numbers.
    Running {
        /// Largest scores, one for each row.
        m: Buf,
        /// Sums, one for each row.
        l: Buf,
        /// Results.
        o: Buf,
        /// Numbers of a row of them.
        width: Var,
    },
    /// This is the only stretch, and its sums are kept.
    Sum(Buf),
    /// This is the only stretch, and rows are divided by their sums; nothing where that is zero.
    Divided,
}

/// What [`softmax()`] computes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Softmax {
    /// Scores, and weights afterwards (`f32`). Rows have room for whole vectors.
    pub s: Buf,
    /// Elements between rows.
    pub pitch: Var,
    /// Rows.
    pub rows: Var,
    /// Keys.
    pub here: Var,
    /// Factor of the scores (`f32` scalar).
    pub scale: Var,
    /// Bound of the scaled scores, if they have one.
    pub softcap: Option<f32>,
    /// The first key that row 0 sees, any number; row `r` begins `r` keys later. None: all do at the first one.
    pub first: Option<Var>,
    /// The one after the last that row 0 sees, any number; row `r` ends `r` keys later. None: all do at the last one.
    pub end: Option<Var>,
    /// Mask.
    pub mask: Option<Mask>,
    /// What becomes of sums.
    pub rest: Rest,
    /// Elements that are computed together.
    pub lanes: u32,
    /// `here` is a multiple of `lanes`, and every row sees all.
    pub exact: bool,
}

fn scalar(b: &mut KernelBuilder, value: f64) -> Var {
    b.constant(TileType::of(ElemType::F32, &[]), Literal::Float(value))
}

/// `1 / sum`, or zero where that is zero.
pub fn reciprocal(b: &mut KernelBuilder, sum: Var) -> Var {
    let nothing = scalar(b, 0.0);
    let empty = b.binary(Binary::Eq, sum, nothing);
    let inverse = b.unary(Unary::Reciprocal, sum);
    b.select(empty, nothing, inverse)
}

/// Writes the canonical loop.
pub fn softmax(b: &mut KernelBuilder, x: Softmax) {
    let zero = b.index(0);
    b.for_loop(zero, x.rows, 1, &[], |b, r, _| {
        x.row(b, r);
        vec![]
    });
}

impl Softmax {
    fn row(&self, b: &mut KernelBuilder, r: Var) {
        let from = b.binary(Binary::Mul, r, self.pitch);
        let here = self.here;
        let allowed = match self.end {
            Some(end) => {
                let end = b.binary(Binary::Add, end, r);
                let none = b.index(0);
                let end = b.binary(Binary::Max, end, none);
                b.binary(Binary::Min, here, end)
            }
            None => here,
        };
        let top = self.scores(b, r, (from, allowed));
        let before = match self.rest {
            Rest::Running { m, .. } => Some((m, b.load(m, r, &[], vec![]))),
            _ => None,
        };
        let now = match before {
            Some((m, before)) => {
                let now = b.binary(Binary::Max, before, top);
                b.store(m, r, vec![], now);
                now
            }
            None => top,
        };
        // Where nothing is allowed yet the maximum is minus infinity, and any other number serves.
        let (low, nothing) = (scalar(b, f64::NEG_INFINITY), scalar(b, 0.0));
        let none = b.binary(Binary::Eq, now, low);
        let top = b.select(none, nothing, now);
        let sums = b.broadcast(nothing, &[self.lanes], 0);
        let sum = self.vectors(b, allowed, sums, |b, j, _, left, sum| {
            let x = self.load(b, from, j);
            let x = b.binary(Binary::Sub, x, top);
            let e = b.unary(Unary::Exp, x);
            // Rows are whole vectors: what is missing weighs nothing.
            let e = existing(b, e, nothing, left, self.lanes);
            self.store(b, from, j, e);
            b.binary(Binary::Add, sum, e)
        });
        let sum = b.reduce(ReduceKind::Sum, sum, 0);
        if self.end.is_some() {
            // What lies after the query weighs nothing; the vector of the last key is done.
            let more = b.index(i64::from(self.lanes) - 1);
            let up = b.binary(Binary::Add, allowed, more);
            let vector = b.index(i64::from(self.lanes));
            let vectors = b.binary(Binary::FloorDiv, up, vector);
            let first = b.binary(Binary::Mul, vectors, vector);
            let zeros = b.broadcast(nothing, &[self.lanes], 0);
            b.for_loop(first, here, self.lanes, &[], |b, j, _| {
                self.store(b, from, j, zeros);
                vec![]
            });
        }
        match (self.rest, before) {
            (Rest::Running { l, o, width, .. }, Some((_, before))) => {
                let fall = b.binary(Binary::Sub, before, top);
                let fall = b.unary(Unary::Exp, fall);
                let old = b.load(l, r, &[], vec![]);
                let total = b.mul_add(old, fall, sum);
                b.store(l, r, vec![], total);
                let from = b.binary(Binary::Mul, r, width);
                let zero = b.index(0);
                b.for_loop(zero, width, PANEL, &[], |b, j, _| {
                    let at = b.binary(Binary::Add, from, j);
                    let o_row = b.load(o, at, &[PANEL], vec![Axis::stride(1)]);
                    let o_row = b.binary(Binary::Mul, o_row, fall);
                    b.store(o, at, vec![Axis::stride(1)], o_row);
                    vec![]
                });
            }
            (Rest::Sum(l), _) => b.store(l, r, vec![], sum),
            _ => {
                let inverse = reciprocal(b, sum);
                let zero = b.index(0);
                b.for_loop(zero, here, self.lanes, &[], |b, j, _| {
                    let e = self.load(b, from, j);
                    let e = b.binary(Binary::Mul, e, inverse);
                    self.store(b, from, j, e);
                    vec![]
                });
            }
        }
    }

    /// Scales a row and hides what it does not see; its maximum.
    fn scores(&self, b: &mut KernelBuilder, r: Var, (from, allowed): (Var, Var)) -> Var {
        let first = self.first.map(|first| b.binary(Binary::Add, first, r));
        let mask = self.mask.map(|mask| {
            let skip = mask.pitch.map(|pitch| b.binary(Binary::Mul, r, pitch));
            let at = match skip {
                Some(skip) => b.binary(Binary::Add, mask.base, skip),
                None => mask.base,
            };
            (mask.buf, at)
        });
        let low = scalar(b, f64::NEG_INFINITY);
        let lows = b.broadcast(low, &[self.lanes], 0);
        let most = self.vectors(b, allowed, lows, |b, j, axis, left, most| {
            let mut x = self.load(b, from, j);
            x = b.binary(Binary::Mul, x, self.scale);
            if let Some(cap) = self.softcap {
                x = bounded(b, x, cap);
            }
            if let Some(first) = first {
                let lane = b.iota(self.lanes);
                let key = b.binary(Binary::Add, lane, j);
                let seen = b.binary(Binary::Ge, key, first);
                x = b.select(seen, x, low);
            }
            if let Some((buf, at)) = mask {
                let at = b.binary(Binary::Add, at, j);
                let own = b.load(buf, at, &[self.lanes], vec![axis]);
                x = match b.ty(own).elem {
                    TileElem::Elem(ElemType::Bool) => b.select(own, x, low),
                    _ => b.binary(Binary::Add, x, own),
                };
            }
            self.store(b, from, j, x);
            let x = existing(b, x, low, left, self.lanes);
            b.binary(Binary::Max, most, x)
        });
        b.reduce(ReduceKind::Max, most, 0)
    }

    fn load(&self, b: &mut KernelBuilder, from: Var, j: Var) -> Var {
        let at = b.binary(Binary::Add, from, j);
        b.load(self.s, at, &[self.lanes], vec![Axis::stride(1)])
    }

    fn store(&self, b: &mut KernelBuilder, from: Var, j: Var, x: Var) {
        let at = b.binary(Binary::Add, from, j);
        b.store(self.s, at, vec![Axis::stride(1)], x);
    }

    /// A loop over `n` elements by vectors that carries one, and a last vector that is not whole unless [`Softmax::exact`]. The
    /// body gets the position, the axis, how many elements exist if that is not all, and the carried vector.
    fn vectors(
        &self,
        b: &mut KernelBuilder,
        n: Var,
        init: Var,
        body: impl Fn(&mut KernelBuilder, Var, Axis, Option<Var>, Var) -> Var,
    ) -> Var {
        let (zero, width) = (b.index(0), b.index(i64::from(self.lanes)));
        let whole = if self.exact {
            n
        } else {
            let groups = b.binary(Binary::FloorDiv, n, width);
            b.binary(Binary::Mul, groups, width)
        };
        let most = b.for_loop(zero, whole, self.lanes, &[init], |b, j, x| {
            vec![body(b, j, Axis::stride(1), None, x[0])]
        })[0];
        if self.exact {
            return most;
        }
        let left = b.binary(Binary::Sub, n, whole);
        let any = b.binary(Binary::Gt, left, zero);
        b.if_else(
            any,
            |b| {
                let axis = Axis::stride(1).valid(left);
                vec![body(b, whole, axis, Some(left), most)]
            },
            |_| vec![most],
        )[0]
    }
}

/// `cap * tanh(x / cap)`.
pub fn bounded(b: &mut KernelBuilder, x: Var, cap: f32) -> Var {
    let [cap, inverse] = [cap, 1.0 / cap].map(|number| scalar(b, f64::from(number)));
    let x = b.binary(Binary::Mul, x, inverse);
    let x = b.unary(Unary::Tanh, x);
    b.binary(Binary::Mul, x, cap)
}

/// `x` where it exists, else `other`.
fn existing(b: &mut KernelBuilder, x: Var, other: Var, left: Option<Var>, lanes: u32) -> Var {
    let Some(left) = left else { return x };
    let i = b.iota(lanes);
    let there = b.binary(Binary::Lt, i, left);
    b.select(there, x, other)
}

/// Recognises what [`softmax()`] writes, before its exponentials are expanded and after it; not with a softcap, which no micro-kernel computes.
pub fn recognise(facts: &Facts, stmt: &Stmt) -> Option<Softmax> {
    let Op::For { begin, body, .. } = &stmt.op else {
        return None;
    };
    let lanes = body.iter().find_map(|inner| exponentials(facts, inner))?;
    if facts.int(*begin) != Some(0) {
        return None;
    }
    let mut forms = vec![];
    for mask in [
        None,
        Some((ElemType::F32, false)),
        Some((ElemType::F32, true)),
        Some((ElemType::Bool, false)),
        Some((ElemType::Bool, true)),
    ] {
        for rest in 0..3 {
            for sees in [[false, true], [false, false], [true, true], [true, false]] {
                forms.extend([false, true].map(|exact| (mask, rest, sees, exact)));
            }
        }
    }
    forms
        .into_iter()
        .find_map(|(mask, rest, [first, end], exact)| {
            let mut b = KernelBuilder::new("pattern");
            let mut buffer = |elem| b.buffer("", elem, true);
            let [s, m, l, o] = [ElemType::F32; 4].map(&mut buffer);
            let mask = mask.map(|(elem, by_row)| (buffer(elem), by_row));
            let [pitch, rows, here, width, base] = [(); 5].map(|()| b.var(TileType::index()));
            let scale = b.var(TileType::of(ElemType::F32, &[]));
            let pattern = Softmax {
                s,
                pitch,
                rows,
                here,
                scale,
                softcap: None,
                first: first.then(|| b.var(TileType::index())),
                end: end.then(|| b.var(TileType::index())),
                mask: mask.map(|(buf, by_row)| Mask {
                    buf,
                    base,
                    pitch: by_row.then(|| b.var(TileType::index())),
                }),
                rest: [
                    Rest::Running { m, l, o, width },
                    Rest::Sum(l),
                    Rest::Divided,
                ][rest],
                lanes,
                exact,
            };
            softmax(&mut b, pattern);
            let found = written(loop_alone(b), facts, std::slice::from_ref(stmt))?;
            let var = |v: Option<Var>| match v {
                Some(v) => found.var(v).map(Some),
                None => Some(None),
            };
            Some(Softmax {
                s: found.buf(s)?,
                pitch: found.var(pitch)?,
                rows: found.var(rows)?,
                here: found.var(here)?,
                scale: found.var(scale)?,
                first: var(pattern.first)?,
                end: var(pattern.end)?,
                mask: match pattern.mask {
                    Some(mask) => Some(Mask {
                        buf: found.buf(mask.buf)?,
                        base: found.var(mask.base)?,
                        pitch: var(mask.pitch)?,
                    }),
                    None => None,
                },
                rest: match pattern.rest {
                    Rest::Running { m, l, o, width } => Rest::Running {
                        m: found.buf(m)?,
                        l: found.buf(l)?,
                        o: found.buf(o)?,
                        width: found.var(width)?,
                    },
                    Rest::Sum(l) => Rest::Sum(found.buf(l)?),
                    Rest::Divided => Rest::Divided,
                },
                ..pattern
            })
        })
}

/// The elements of a vector of exponentials in a loop; none if it computes none.
fn exponentials(facts: &Facts, stmt: &Stmt) -> Option<u32> {
    let Op::For { body, .. } = &stmt.op else {
        return None;
    };
    let exp = body
        .iter()
        .find(|s| matches!(s.op, Op::Unary(Unary::Exp, _)))?;
    facts.ty(*exp.results.first()?).shape.first().copied()
}

#[cfg(test)]
mod tests {
    use super::super::pattern::expanded;
    use super::*;

    #[test]
    fn what_is_written_is_recognised() {
        let masks = [None, Some(ElemType::F32), Some(ElemType::Bool)];
        for (mask, case) in masks.into_iter().flat_map(|m| (0..24).map(move |c| (m, c))) {
            let mut b = KernelBuilder::new("k");
            let [s, m, l, o] = ["s", "m", "l", "o"].map(|name| b.buffer(name, ElemType::F32, true));
            let mask = mask.map(|elem| b.buffer("mask", elem, false));
            let [pitch, rows, here, width] = [64, 3, 40, 96].map(|v| b.index(v));
            let scale = scalar(&mut b, 0.125);
            let x = Softmax {
                s,
                pitch,
                rows,
                here,
                scale,
                softcap: None,
                first: (case % 2 == 1).then(|| b.index(-2)),
                end: (case / 2 % 2 == 1).then(|| b.index(7)),
                mask: mask.map(|buf| Mask {
                    buf,
                    base: b.index(5),
                    pitch: (case / 4 % 2 == 1).then(|| b.index(40)),
                }),
                rest: [
                    Rest::Running { m, l, o, width },
                    Rest::Sum(l),
                    Rest::Divided,
                ][case / 8],
                lanes: 16,
                exact: case % 3 == 0,
            };
            softmax(&mut b, x);
            let bounded = Softmax {
                softcap: Some(3.0),
                ..x
            };
            softmax(&mut b, bounded);
            let kernel = b.finish();
            super::super::verify::verify(&kernel).expect("valid");
            for kernel in [kernel.clone(), expanded(kernel)] {
                let facts = Facts::new(&kernel);
                let loops: Vec<&Stmt> = kernel
                    .body
                    .iter()
                    .filter(|s| matches!(s.op, Op::For { .. }))
                    .collect();
                let found = recognise(&facts, loops[0]).expect("the form");
                assert_eq!((found.lanes, found.exact), (x.lanes, x.exact));
                assert_eq!(found.first.is_some(), x.first.is_some());
                assert_eq!(found.end.is_some(), x.end.is_some());
                let form = |x: &Softmax| {
                    let mask = x.mask.map(|m| (m.buf, m.pitch.is_some()));
                    (x.s, mask, std::mem::discriminant(&x.rest))
                };
                assert_eq!(form(&found), form(&x));
                assert_eq!(facts.int(found.here), Some(40));
                assert_eq!(recognise(&facts, loops[1]), None);
            }
        }
    }
}
