//! A weight as a stack of grids: codes of few bits, codes of what these leave, and so on.
//!
//! Any number of leading grids is a weight, so one file serves many sizes, as BitStack's blocks do; but each grid is found with error
//! feedback, has scales of its own, and is multiplied as it is. Slices of one grid's codes ([`nested`](super::nested)) take fewer
//! scales, and lose more where only the first are used.
//!
//! ```text
//! sum{affine{scales; int{2}; zeros}, affine{scales; int{2}; zeros}, ..}
//! ```
//! Source: Wang et al., "BitStack: Any-Size Compression of Large Language Models in Variable Memory Environments", section 3.1 (a stack
//! of approximations of what is left); Frantar et al., "GPTQ", section 3 (each of them).

use super::refit::GPTQ_REFIT;
use super::rtn::RTN;
use super::{Candidate, Layer, Method, MethodError, Settings, decoded, measured};
use lapidary_ir::ElemType;
use lapidary_ir::encodings::sum::sum;

/// The method.
pub static STACK: Method = Method {
    name: "stack",
    summary: "codes of 2 or 3 bits of the weight, of what these leave, and so on, each by gptq-refit (or without data by rtn)",
    source: "BitStack, section 3.1; GPTQ, section 3",
    needs_statistics: false,
    bits: 2..=8,
    propose,
};

/// Bits of a stack's grids. The first has 3 where there are more: with 2 alone too much is lost.
///
/// Error feedback moves weights away from what they were, so each further grid has more to repair than the rounding of the one before:
/// few grids of more bits lose less in the end than many of 2.
fn widths(bits: u32) -> &'static [u32] {
    match bits {
        0..=2 => &[2],
        3 => &[3],
        4 => &[2, 2],
        5 => &[3, 2],
        6 => &[3, 3],
        7 => &[3, 2, 2],
        _ => &[3, 2, 3],
    }
}

fn propose(layer: &Layer, settings: &Settings) -> Result<Candidate, MethodError> {
    let method = match layer.statistics() {
        Some(_) => &GPTQ_REFIT,
        None => &RTN,
    };
    let mut left = layer.weight().clone();
    let (mut terms, mut assumptions) = (vec![], vec![]);
    for &bits in widths(settings.bits) {
        let rest = Layer::new(&left, layer.statistics())?;
        let of_rest = Settings {
            bits,
            ..settings.clone()
        };
        let found = (method.propose)(&rest, &of_rest)?;
        left = left.sub(&decoded(&rest, &found.encoding)?);
        terms.push(found.encoding);
        assumptions.extend(found.assumptions);
    }
    assumptions.dedup();
    measured(layer, sum(ElemType::F32, terms), assumptions)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::methods::matrix::Matrix;
    use crate::methods::testing::tl1;
    use std::sync::Arc;

    fn settings(bits: u32) -> Settings {
        Settings {
            bits,
            group_len: 64,
            clip: true,
            ..Settings::default()
        }
    }

    #[test]
    fn bits_are_those_asked_for() {
        for bits in STACK.bits.clone() {
            assert_eq!(widths(bits).iter().sum::<u32>(), bits);
        }
    }

    #[test]
    fn each_grid_is_of_what_is_left() {
        let t = tl1();
        let stack = propose(&t.layer(), &settings(8)).expect("a candidate");
        let terms = &stack.encoding.children;
        let mut last = 1.0;
        for count in 1..=terms.len() {
            let prefix: Vec<_> = terms[..count].iter().map(|t| t.as_ref().clone()).collect();
            let decoded = decoded(&t.layer(), &sum(ElemType::F32, prefix)).expect("decodes");
            let error = t.rel(&decoded);
            assert!(error < 0.4 * last, "{count} grids: {error} after {last}");
            last = error;
        }
        assert_eq!(stack.error, last);
    }

    #[test]
    fn a_few_grids_are_the_stack_of_fewer_bits() {
        let t = tl1();
        let [long, short] =
            [8, 5].map(|bits| propose(&t.layer(), &settings(bits)).expect("a candidate"));
        let same = long.encoding.children.iter().zip(&short.encoding.children);
        assert_eq!(short.encoding.children.len(), 2);
        for (long, short) in same {
            let numbers = |e: &Arc<_>| decoded(&t.layer(), e).expect("decodes");
            assert_eq!(numbers(long), numbers(short));
        }
    }

    #[test]
    fn it_loses_less_than_blocks_of_signs_of_its_size() {
        let t = tl1();
        let whole = propose(&t.layer(), &settings(4)).expect("a candidate");
        let blocks = |bits| {
            let settings = Settings {
                bits,
                ..Settings::default()
            };
            (super::super::bitstack::BITSTACK.propose)(&t.layer(), &settings).expect("a candidate")
        };
        let four = blocks(4);
        assert!(whole.bytes <= four.bytes + four.bytes / 50 && whole.error < 0.7 * four.error);
    }

    #[test]
    fn without_data_grids_are_of_the_range() {
        let w = Matrix::from_fn(6, 64, |r, c| ((r * 64 + c) as f64 * 0.7).sin());
        let layer = Layer::new(&w, None).expect("a sound layer");
        let error = |bits| propose(&layer, &settings(bits)).expect("a candidate").error;
        assert!(error(8) < 0.1 * error(5) && error(5) < 0.2 * error(3));
    }
}
