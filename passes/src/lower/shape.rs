//! Ops that move elements: the result's positions are the operand's in another order.

use super::expr::{E, Node};
use super::index::Pos;
use super::{Element, Lowerer, Rule, Spec};
use lapidary_ir::kernel::Binary;
use lapidary_ir::ops::{OpError, resolve_axis};
use lapidary_ir::{Attr, Dim, NodeId};

/// The family's lowerings.
pub static RULES: &[Rule] = &[
    Rule::reshape("identity", |x, p| x.at(0, p)),
    Rule::reshape("reshape", flat),
    Rule::reshape("flatten", flat),
    Rule::reshape("squeeze", flat),
    Rule::reshape("unsqueeze", flat),
    Rule::view("transpose", transpose),
    Rule::view("expand", |x, p| x.broadcast(0, p)),
    Rule::view("tile", tile),
    Rule::view("split", split),
    Rule::view("slice", slice),
    Rule::view("pad", pad),
    Rule::view("center_crop_pad", center),
    Rule::steps("concat", concat),
    Rule::pointwise("range", |x, p| {
        let shape = x.out_shape()?;
        let i = p.linear(&shape);
        let origin = Pos::At(vec![]);
        let (start, delta) = (x.at(0, &origin)?, x.at(2, &origin)?);
        let b = x.b();
        let ty = b.ty(start);
        let i = b.index(i);
        let i = b.cast(ty, i);
        let steps = b.binary(Binary::Mul, i, delta);
        Ok(b.binary(Binary::Add, start, steps))
    }),
    Rule::pointwise("constant_of_shape", |x, _| {
        let elem = x.out_elem()?;
        let value = match x.attr("value") {
            Some(Attr::Tensor(t)) => t.to_f64s().zip(Some(t)).and_then(|(f, t)| {
                Some(match t.integers() {
                    Some(i) => x.b().int(elem, *i.first()? as i64),
                    None => x.b().float(elem, *f.first()?),
                })
            }),
            _ => Some(x.b().int(elem, 0)),
        };
        value.ok_or_else(|| OpError::new("`value` must hold one number"))
    }),
    Rule::pointwise("eye_like", |x, p| {
        let (k, elem, shape) = (x.int("k").unwrap_or(0), x.out_elem()?, x.out_shape()?);
        let at = p.indices(&x.x.body, &shape);
        let on = diagonal(x, &at, k, Binary::Eq)?;
        let b = x.b();
        let (one, zero) = (b.int(elem, 1), b.int(elem, 0));
        Ok(b.select(on, one, zero))
    }),
    Rule::pointwise("trilu", |x, p| {
        let k = match x.const_ints(1) {
            Some(k) => k.first().copied().unwrap_or(0),
            None if x.has(1) => return Err(OpError::new("`k` must be constant")),
            None => 0,
        };
        let shape = x.out_shape()?;
        let at = p.indices(&x.x.body, &shape);
        let f = if x.flag("upper") {
            Binary::Ge
        } else {
            Binary::Le
        };
        let keep = diagonal(x, &at, k, f)?;
        let v = x.at(0, p)?;
        let b = x.b();
        let zero = b.int(b.ty(v), 0);
        Ok(b.select(keep, v, zero))
    }),
    Rule::pointwise("one_hot", one_hot),
    Rule::pointwise("shape", |x, p| {
        let shape = x.shape(0)?;
        let rank = shape.len() as i64;
        let clamp = |i: i64| (if i < 0 { i + rank } else { i }).clamp(0, rank) as usize;
        let start = clamp(x.int("start").unwrap_or(0));
        let end = clamp(x.int("end").unwrap_or(rank)).max(start);
        let (elem, out) = (x.out_elem()?, x.out_shape()?);
        Ok(x.x.sizes(elem, &shape[start..end], &p.linear(&out)))
    }),
    Rule::pointwise("size", |x, _| {
        let n = x
            .shape(0)?
            .iter()
            .fold(Dim::from(1i64), |n, d| n * d.clone());
        Ok(x.b().index(n))
    }),
];

fn flat(x: &mut Element, p: &Pos) -> Result<E, OpError> {
    let out = x.out_shape()?;
    x.at(0, &Pos::Flat(p.linear(&out)))
}

fn transpose(x: &mut Element, p: &Pos) -> Result<E, OpError> {
    let out = x.out_shape()?;
    let at = p.indices(&x.x.body, &out);
    let rank = out.len();
    let perm = x
        .ints("perm")
        .unwrap_or_else(|| (0..rank as i64).rev().collect());
    let mut from = vec![Dim::default(); rank];
    for (i, &axis) in perm.iter().enumerate() {
        from[resolve_axis(axis, rank)?] = at[i].clone();
    }
    x.at(0, &Pos::At(from))
}

fn tile(x: &mut Element, p: &Pos) -> Result<E, OpError> {
    let (out, shape) = (x.out_shape()?, x.shape(0)?);
    let at = p.indices(&x.x.body, &out);
    let from = at
        .iter()
        .zip(&shape)
        .map(|(i, n)| x.x.body.rem(i, n))
        .collect();
    x.at(0, &Pos::At(from))
}

fn split(x: &mut Element, p: &Pos) -> Result<E, OpError> {
    let out = x.out_shape()?;
    let axis = x.axis("axis", out.len())?;
    let mut at = p.indices(&x.x.body, &out);
    let before = x.n().results[..x.result].to_vec();
    for v in before {
        at[axis] = &at[axis] + &x.x.facts.shape(v)?[axis];
    }
    x.at(0, &Pos::At(at))
}

/// A size operand's entries, or an error that names it.
fn sizes(x: &Element, i: usize, name: &str) -> Result<Vec<Dim>, OpError> {
    x.contents(i)
        .map(<[Dim]>::to_vec)
        .ok_or_else(|| OpError::new(format!("`{name}` must be known before the program runs")))
}

fn slice(x: &mut Element, p: &Pos) -> Result<E, OpError> {
    let (out, shape) = (x.out_shape()?, x.shape(0)?);
    let starts = sizes(x, 1, "starts")?;
    let numbers = |x: &Element, i: usize, name: &str| -> Result<Option<Vec<i64>>, OpError> {
        if !x.has(i) {
            return Ok(None);
        }
        let v = x.const_ints(i);
        v.map(Some)
            .ok_or_else(|| OpError::new(format!("`{name}` must be constant")))
    };
    let axes = numbers(x, 3, "axes")?.unwrap_or_else(|| (0..starts.len() as i64).collect());
    let steps = numbers(x, 4, "steps")?.unwrap_or_else(|| vec![1; starts.len()]);
    let mut at = p.indices(&x.x.body, &out);
    for ((start, &axis), &step) in starts.iter().zip(&axes).zip(&steps) {
        let axis = resolve_axis(axis, shape.len())?;
        let n = &shape[axis];
        let zero = Dim::default();
        let start = match start.as_const() {
            Some(s) if s < 0 => n + &Dim::from(s),
            Some(_) => start.clone(),
            None if super::index::nonnegative(start) => start.clone(),
            None => {
                return Err(OpError::new(format!(
                    "cannot tell whether the start `{start}` counts from the end"
                )));
            }
        };
        let last = if step < 0 {
            n - &Dim::from(1i64)
        } else {
            n.clone()
        };
        let start = start.max_dim(&zero).min_dim(&last);
        at[axis] = start + &at[axis] * &Dim::from(step);
    }
    x.at(0, &Pos::At(at))
}

fn pad(x: &mut Element, p: &Pos) -> Result<E, OpError> {
    let shape = x.shape(0)?;
    let rank = shape.len();
    let pads = x
        .const_ints(1)
        .ok_or_else(|| OpError::new("`pads` must be constant"))?;
    let axes: Vec<usize> = match x.const_ints(3) {
        Some(a) => a
            .iter()
            .map(|&a| resolve_axis(a, rank))
            .collect::<Result<_, _>>()?,
        None if x.has(3) => return Err(OpError::new("`axes` must be constant")),
        None => (0..rank).collect(),
    };
    let mut both = vec![(0, 0); rank];
    for (i, &axis) in axes.iter().enumerate() {
        let get = |i: usize| {
            pads.get(i)
                .copied()
                .ok_or_else(|| OpError::new("`pads` has too few entries"))
        };
        both[axis] = (get(i)?, get(i + axes.len())?);
    }
    let fill = match x.has(2) {
        true => Some(x.at(2, &Pos::Flat(Dim::default()))?),
        false => None,
    };
    let mode = x.text("mode");
    pad_by(x, p, &both, &mode, fill)
}

fn center(x: &mut Element, p: &Pos) -> Result<E, OpError> {
    let (out, shape) = (x.out_shape()?, x.shape(0)?);
    let both = out
        .iter()
        .zip(&shape)
        .map(|(o, n)| {
            let more = (o - n)
                .as_const()
                .ok_or_else(|| OpError::new("how much is cut or padded must be constant"))?;
            Ok((more / 2, more - more / 2))
        })
        .collect::<Result<Vec<_>, OpError>>()?;
    pad_by(x, p, &both, "constant", None)
}

/// Operand 0 with borders: what a negative pad cuts is gone before the others are added.
fn pad_by(
    x: &mut Element,
    p: &Pos,
    pads: &[(i64, i64)],
    mode: &str,
    fill: Option<E>,
) -> Result<E, OpError> {
    let (out, shape) = (x.out_shape()?, x.shape(0)?);
    let at = p.indices(&x.x.body, &out);
    let mut from = vec![];
    let mut inside = x.b().bool(true);
    for ((i, n), &(begin, end)) in at.iter().zip(&shape).zip(pads) {
        if (begin, end) == (0, 0) {
            from.push(i.clone());
            continue;
        }
        let cut = Dim::from((-begin).max(0));
        let n = n - &Dim::from((-begin).max(0) + (-end).max(0));
        let i = i - &Dim::from(begin.max(0));
        let one = Dim::from(1i64);
        let i = match mode {
            "constant" => {
                let here = x.b().index_within(&i, &n);
                inside = x.b().binary(Binary::And, inside, here);
                i
            }
            "edge" => i.max_dim(&Dim::default()).min_dim(&(n - one)),
            "wrap" => i.modulo(&n),
            "reflect" if n.as_const() == Some(1) => Dim::default(),
            "reflect" => {
                let period = Dim::from(2i64) * (n - one);
                let r = i.modulo(&period);
                r.min_dim(&(period - &r))
            }
            other => return Err(OpError::new(format!("pad mode `{other}` is not known"))),
        };
        from.push(i + cut);
    }
    let v = x.at(0, &Pos::At(from))?;
    let b = x.b();
    let fill = match fill {
        Some(f) => f,
        None => b.int(b.ty(v), 0),
    };
    Ok(b.where_inside(inside, v, fill))
}

/// One kernel per operand, each writing its part.
fn concat(low: &mut Lowerer, n: NodeId) -> Result<(), OpError> {
    let node = low.facts.module.node(n).clone();
    let out = *node
        .results
        .first()
        .ok_or_else(|| OpError::new("has no result"))?;
    let shape = low.facts.shape(out)?;
    let axis = match node.attr("axis") {
        Some(Attr::Int(a)) => resolve_axis(a, shape.len())?,
        _ => return Err(OpError::new("attribute `axis` is missing")),
    };
    let mut begin = Dim::default();
    for &v in node.operands.iter().flatten() {
        let part = low.facts.shape(v)?;
        if part[axis].as_const() == Some(0) {
            continue;
        }
        let start = begin.clone();
        begin = begin + part[axis].clone();
        if low.facts.is_part(v, out, &start) {
            continue;
        }
        low.kernel("concat", out, |x| {
            let vars = x.body.loop_vars(&part);
            let mut at: Vec<Dim> = vars.iter().map(|v| v.dim()).collect();
            let value = x.value(v, &Pos::At(at.clone()))?;
            at[axis] = &at[axis] + &start;
            let order = x.facts.memory_order(out, shape.len());
            Ok(Spec {
                offset: x.facts.offset(&x.body, out, &shape, &Pos::At(at)),
                vars: order.into_iter().map(|i| vars[i]).collect(),
                mask: None,
                value,
                serial: vec![],
            })
        })?;
    }
    low.stored(out)?;
    Ok(())
}

/// Compares column - row with `k`.
fn diagonal(x: &mut Element, at: &[Dim], k: i64, f: Binary) -> Result<E, OpError> {
    let [.., i, j] = at else {
        return Err(OpError::new("a matrix is needed"));
    };
    let b = x.b();
    let d = b.index(j - i);
    let k = b.index(Dim::from(k));
    Ok(b.binary(f, d, k))
}

fn one_hot(x: &mut Element, p: &Pos) -> Result<E, OpError> {
    let out = x.out_shape()?;
    let axis = x.axis("axis", out.len())?;
    let mut at = p.indices(&x.x.body, &out);
    let i = at.remove(axis);
    let wanted = x.at(0, &Pos::At(at))?;
    let off = x.at(2, &Pos::At(vec![Dim::default()]))?;
    let on = x.at(2, &Pos::At(vec![Dim::from(1i64)]))?;
    let b = x.b();
    let wanted = b.cast(lapidary_ir::ElemType::I64, wanted);
    let (n, i) = (b.index(out[axis].clone()), b.index(i));
    let zero = b.index(Dim::default());
    let negative = b.binary(Binary::Lt, wanted, zero);
    let from_end = b.binary(Binary::Add, wanted, n);
    let wanted = b.select(negative, from_end, wanted);
    let hit = b.binary(Binary::Eq, wanted, i);
    Ok(b.select(hit, on, off))
}

impl super::expr::Body {
    /// `v` where `inside` holds, else `fill`; loads of `v` happen only inside.
    pub fn where_inside(&mut self, inside: E, v: E, fill: E) -> E {
        let v = self.guard(v, inside);
        let zero = self.int(self.ty(v), 0);
        if fill == zero && matches!(self.node(v), Node::Load { mask: Some(m), .. } if *m == inside)
        {
            return v;
        }
        self.select(inside, v, fill)
    }
}
