//! What rules may know of the contents of a large constant.
//!
//! Blocks of equal structure share a solution whatever their weights are. So a rule must not look at weights in any other
//! way than through these yes-or-no questions, whose answers are part of a block's key.

use lapidary_ir::tensor::count;
use lapidary_ir::{Constant, ElemType};

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
}

/// Every question.
pub const ALL: [Trait; 3] = [Trait::LowerTriangle, Trait::EqualHalves, Trait::EqualPairs];

/// Constants that are not stored plainly are decoded up to this size.
const MOST_DECODED: usize = 1 << 16;

/// The answer for a constant. It ends at the first element that says no, which in trained weights is nearly the first.
pub fn has(constant: &Constant, asked: Trait) -> bool {
    let shape = constant.shape();
    let (Some(&width), n) = (shape.last(), count(shape)) else {
        return false;
    };
    let square = shape.len() >= 2
        && shape[shape.len() - 2] == width
        && shape[..shape.len() - 2].iter().all(|&d| d == 1);
    let possible = match asked {
        Trait::LowerTriangle => square && width > 1,
        Trait::EqualHalves | Trait::EqualPairs => width >= 2 && width % 2 == 0,
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
    };
    match (constant.dense_bytes(), constant.elem()) {
        (Some(bytes), ElemType::F32) if bytes.len() == n * 4 => ask(&|i| {
            let four = &bytes[4 * i..4 * i + 4];
            f64::from(f32::from_le_bytes([four[0], four[1], four[2], four[3]]))
        }),
        (Some(bytes), ElemType::Bool) if bytes.len() == n => ask(&|i| f64::from(bytes[i])),
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
        let infinite = constant(ElemType::F32, &[2, 2], vec![0.0, f64::NEG_INFINITY, 0.0, 0.0]);
        assert!(has(&infinite, Trait::LowerTriangle));
        for wrong in [[0.0, -1e4, 0.0, 0.0], [0.0, low, low, 0.0], [1.0, low, 0.0, 0.0]] {
            let c = constant(ElemType::F32, &[2, 2], wrong.to_vec());
            assert!(!has(&c, Trait::LowerTriangle), "{wrong:?}");
        }
        let two = constant(ElemType::F32, &[2, 2, 2], vec![0.0, low, 0.0, 0.0, 0.0, low, 0.0, 0.0]);
        assert!(!has(&two, Trait::LowerTriangle));
        let halves = constant(ElemType::F64, &[2, 4], vec![1.0, 2.0, 1.0, 2.0, 3.0, 4.0, 3.0, 4.0]);
        assert!(has(&halves, Trait::EqualHalves) && !has(&halves, Trait::EqualPairs));
        let pairs = constant(ElemType::F32, &[1, 4], vec![1.0, 1.0, 2.0, 2.0]);
        assert!(has(&pairs, Trait::EqualPairs) && !has(&pairs, Trait::EqualHalves));
    }
}
