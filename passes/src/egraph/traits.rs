//! What rules may know of the contents of a large constant, or of a value from another block.
//!
//! Blocks of equal structure share a solution whatever their weights are. So a rule must not look at weights in any other
//! way than through these yes-or-no questions, whose answers are part of a block's key.

use lapidary_ir::builder::SMALL_CONSTANT;
use lapidary_ir::ops::resolve_axis;
use lapidary_ir::tensor::count;
use lapidary_ir::{Attr, Attrs, Constant, Dim, ElemType, Module, ValueId};
use std::collections::HashMap;

/// Floats up to this many are numbers of a formula or sizes; more are weights.
const FEW_FLOATS: usize = 8;

/// True if rules and type rules may look at the contents: these are part of a block's key.
pub fn is_visible(constant: &Constant) -> bool {
    let most = if constant.elem().is_float() {
        FEW_FLOATS
    } else {
        SMALL_CONSTANT
    };
    count(constant.shape()) <= most
}

/// A question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trait {
    /// A square over the last two axes, all others of length one, that allows what is on or below its diagonal and
    /// nothing else: `true` there and `false` above, or 0 there and at most -1e30 above.
    LowerTriangle,
    /// Along the last axis, the second half repeats the first.
    EqualHalves,
    /// Along the last axis, every element is there twice.
    EqualPairs,
    /// Every element is zero.
    Zero,
}

/// Every question.
const ALL: [Trait; 4] = [
    Trait::LowerTriangle,
    Trait::EqualHalves,
    Trait::EqualPairs,
    Trait::Zero,
];

/// The questions whose answer is yes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traits(u8);

impl Traits {
    /// Those of a constant.
    pub fn of(constant: &Constant) -> Traits {
        ALL.into_iter()
            .filter(|&t| has(constant, t))
            .fold(Traits::default(), Traits::with)
    }

    /// True if the answer to this one is yes.
    pub fn has(self, asked: Trait) -> bool {
        self.0 & (1 << asked as u8) != 0
    }

    fn with(self, t: Trait) -> Traits {
        Traits(self.0 | 1 << t as u8)
    }

    /// Those that are known of either of two equal values.
    pub fn or(self, other: Traits) -> Traits {
        Traits(self.0 | other.0)
    }
}

/// An operand, as far as [`of_result`] asks.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// Its identity: equal for equal values.
    pub id: usize,
    /// Its shape.
    pub shape: Option<&'a [Dim]>,
    /// Its traits.
    pub traits: Traits,
}

/// Traits of an op's result: what works element by element, or moves whole rows, keeps rows that repeat.
pub fn of_result(op: &str, attrs: &Attrs, operands: &[Known], result: Option<&[Dim]>) -> Traits {
    let Some((first, width)) = operands.first().zip(result.and_then(<[Dim]>::last)) else {
        return Traits::default();
    };
    let last = |k: &Known| k.shape.and_then(<[Dim]>::last).cloned();
    let same_width = |k: &Known| last(k).as_ref() == Some(width);
    let axis = |default: i64, rank: usize| {
        let axis = match attrs.get("axis") {
            Some(Attr::Int(v)) => *v,
            _ => default,
        };
        resolve_axis(axis, rank).ok()
    };
    let rows = [Trait::EqualHalves, Trait::EqualPairs];
    let keep = |k: &Known| {
        rows.into_iter()
            .filter(|&t| k.traits.has(t))
            .fold(Traits::default(), Traits::with)
    };
    let rank = result.map_or(0, <[Dim]>::len);
    match op {
        "cos" | "sin" | "cast" | "identity" => first.traits,
        "unsqueeze" | "squeeze" | "slice" | "reshape" if same_width(first) => keep(first),
        // Pairs that were stacked along an axis of their own.
        "reshape" if last(first).and_then(|d| d.as_const()) == Some(2) => {
            if first.traits.has(Trait::EqualHalves) {
                Traits::default().with(Trait::EqualPairs)
            } else {
                Traits::default()
            }
        }
        "mul" | "add" => {
            let one = |k: &Known| last(k).is_none_or(|d| d.as_const() == Some(1));
            let both = operands.iter().filter(|k| !one(k)).map(|k| {
                if same_width(k) {
                    keep(k)
                } else {
                    Traits::default()
                }
            });
            both.reduce(|a, b| Traits(a.0 & b.0)).unwrap_or_default()
        }
        "gather"
            if axis(0, first.shape.map_or(0, <[Dim]>::len)) == Some(0)
                && first.shape.is_some_and(|s| s.len() >= 2) =>
        {
            keep(first)
        }
        "concat"
            if operands.len() == 2
                && operands[0].id == operands[1].id
                && axis(0, rank) == Some(rank - 1) =>
        {
            let t = Traits::default().with(Trait::EqualHalves);
            if width.as_const() == Some(2) {
                t.with(Trait::EqualPairs)
            } else {
                t
            }
        }
        _ => Traits::default(),
    }
}

/// Traits of every value that has some, found once for a module.
pub fn of_module(module: &Module) -> HashMap<ValueId, Traits> {
    let mut known: HashMap<ValueId, Traits> = HashMap::new();
    for i in 0..module.value_count() {
        let v = ValueId(i as u32);
        if let Some(c) = module.as_constant(v) {
            let traits = Traits::of(c);
            if traits != Traits::default() {
                known.insert(v, traits);
            }
        }
    }
    for region in module.reachable_regions() {
        for &n in &module.region(region).nodes {
            let node = module.node(n);
            let &[result] = &node.results[..] else {
                continue;
            };
            let operands: Vec<Known> = node
                .operands
                .iter()
                .flatten()
                .map(|&v| Known {
                    id: v.index(),
                    shape: module.value(v).ty.shape(),
                    traits: known.get(&v).copied().unwrap_or_default(),
                })
                .collect();
            let traits = of_result(
                node.op.name,
                &node.attrs,
                &operands,
                module.value(result).ty.shape(),
            );
            if traits != Traits::default() {
                known.insert(result, traits);
            }
        }
    }
    known
}

/// Constants that are not stored plainly are decoded up to this size.
const MOST_DECODED: usize = 1 << 16;

/// The answer for a constant. It ends at the first element that says no, which in trained weights is nearly the first.
fn has(constant: &Constant, asked: Trait) -> bool {
    let shape = constant.shape();
    let (width, n) = (shape.last().copied().unwrap_or(1), count(shape));
    let square = shape.len() >= 2
        && shape[shape.len() - 2] == width
        && shape[..shape.len() - 2].iter().all(|&d| d == 1);
    let possible = match asked {
        Trait::LowerTriangle => square && width > 1,
        Trait::EqualHalves | Trait::EqualPairs => width >= 2 && width % 2 == 0,
        Trait::Zero => true,
    };
    if !possible || n == 0 {
        return false;
    }
    let ask = |at: &dyn Fn(usize) -> f64| match asked {
        Trait::LowerTriangle => (0..n).all(|i| {
            let (v, allowed) = (at(i), i % width <= i / width);
            match (constant.elem(), allowed) {
                (ElemType::Bool, allowed) => (v != 0.0) == allowed,
                (_, true) => v == 0.0,
                (_, false) => v <= -1e30,
            }
        }),
        Trait::EqualHalves => {
            let half = width / 2;
            (0..n)
                .filter(|i| i % width < half)
                .all(|i| at(i) == at(i + half))
        }
        Trait::EqualPairs => (0..n / 2).all(|i| at(2 * i) == at(2 * i + 1)),
        Trait::Zero => (0..n).all(|i| at(i) == 0.0),
    };
    match (constant.dense_bytes(), constant.elem()) {
        (Some(bytes), ElemType::F32) if bytes.len() == n * 4 => ask(&|i| {
            let four = &bytes[4 * i..4 * i + 4];
            f64::from(f32::from_le_bytes([four[0], four[1], four[2], four[3]]))
        }),
        (Some(bytes), ElemType::Bool | ElemType::U8) if bytes.len() == n => {
            ask(&|i| f64::from(bytes[i]))
        }
        (Some(bytes), ElemType::I8) if bytes.len() == n => ask(&|i| f64::from(bytes[i] as i8)),
        _ if n <= MOST_DECODED => constant
            .decode()
            .ok()
            .and_then(|t| t.to_f64s())
            .is_some_and(|v| ask(&|i| v[i])),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lapidary_ir::Tensor;

    #[test]
    fn answers() {
        let constant = |elem, shape: &[usize], v: Vec<f64>| {
            Constant::from_tensor(&Tensor::from_f64(elem, shape.to_vec(), v))
        };
        let low = f64::from(f32::MIN);
        let causal = constant(ElemType::F32, &[1, 2, 2], vec![0.0, low, 0.0, 0.0]);
        assert!(has(&causal, Trait::LowerTriangle));
        let infinite = constant(
            ElemType::F32,
            &[2, 2],
            vec![0.0, f64::NEG_INFINITY, 0.0, 0.0],
        );
        assert!(has(&infinite, Trait::LowerTriangle));
        for wrong in [
            [0.0, -1e4, 0.0, 0.0],
            [0.0, low, low, 0.0],
            [1.0, low, 0.0, 0.0],
        ] {
            let c = constant(ElemType::F32, &[2, 2], wrong.to_vec());
            assert!(!has(&c, Trait::LowerTriangle), "{wrong:?}");
        }
        let two = constant(
            ElemType::F32,
            &[2, 2, 2],
            vec![0.0, low, 0.0, 0.0, 0.0, low, 0.0, 0.0],
        );
        assert!(!has(&two, Trait::LowerTriangle));
        let halves = constant(
            ElemType::F64,
            &[2, 4],
            vec![1.0, 2.0, 1.0, 2.0, 3.0, 4.0, 3.0, 4.0],
        );
        assert!(has(&halves, Trait::EqualHalves) && !has(&halves, Trait::EqualPairs));
        let pairs = constant(ElemType::F32, &[1, 4], vec![1.0, 1.0, 2.0, 2.0]);
        assert!(has(&pairs, Trait::EqualPairs) && !has(&pairs, Trait::EqualHalves));
    }
}
