//! BitStack: a weight as a stack of blocks, each the signs of what is left times a low-rank magnitude.
//!
//! Any number of leading blocks is a weight, so one file serves many sizes. Columns are scaled by the size of their
//! inputs first. A block of rank `k` stores one bit and `k (1/O + 1/I)` numbers for each weight.
//! Source: Wang et al., "BitStack: Any-Size Compression of Large Language Models in Variable Memory Environments",
//! section 3.

use super::factor::{Singular, leading_svd};
use super::grid::packed_codes;
use super::matrix::Matrix;
use super::{Candidate, Layer, Method, MethodError, Settings, dense, measured};
use lapidary_ir::encodings::affine::affine;
use lapidary_ir::encodings::emul::emul;
use lapidary_ir::encodings::matmul::matmul;
use lapidary_ir::encodings::sum::sum;
use lapidary_ir::encodings::{Encoding, scale};
use lapidary_ir::{ElemType, minifloat};

/// The method; `bits` counts blocks.
pub static BITSTACK: Method = Method {
    name: "bitstack",
    summary: "blocks of signs times magnitudes of low rank, each of one bit and an eighth for each weight",
    source: "BitStack, section 3",
    needs_statistics: false,
    bits: 1..=8,
    propose,
};

/// Factors of a block take as many 16-bit numbers as make an eighth of a bit for each weight: rank 16 at 4096 x 4096.
fn propose(layer: &Layer, settings: &Settings) -> Result<Candidate, MethodError> {
    let (weight, rms) = (layer.weight(), layer.statistics().map(|s| s.rms()));
    let (rows, columns) = (weight.rows(), weight.cols());
    let rank = rows * columns / (128 * (rows + columns));
    let blocks = settings.bits as usize;
    let stack = bitstack(weight, rms.as_deref(), rank, blocks, settings.seed)?;
    let mut terms: Vec<Encoding> = stack.blocks.iter().map(SignBlock::encoding).collect();
    if terms.is_empty() {
        // Nothing was left at once: a product of zeros.
        let zeros = [Matrix::zeros(rows, 1), Matrix::zeros(1, columns)];
        terms.push(matmul(
            ElemType::F32,
            zeros.map(|z| dense(ElemType::F16, &z)).into(),
        ));
    }
    let stacked = sum(ElemType::F32, terms);
    let back = Matrix::from_fn(1, columns, |_, c| 1.0 / stack.input_scales[c]);
    measured(
        layer,
        scale::scale(ElemType::F32, dense(ElemType::F16, &back), stacked),
        vec![],
    )
}

/// One block: `sign * (u v)`, element-wise.
#[derive(Clone, Debug)]
pub struct SignBlock {
    /// True where the sign is positive, `[O, I]`.
    pub positive: Vec<bool>,
    /// `[O, k]`.
    pub u: Matrix,
    /// `[k, I]`.
    pub v: Matrix,
}

/// The stack; the weight is the sum of its blocks times `diag(1 / input_scales)`.
#[derive(Clone, Debug)]
pub struct BitStack {
    /// Scales of the columns, `[I]`.
    pub input_scales: Vec<f64>,
    /// Blocks, coarse to fine.
    pub blocks: Vec<SignBlock>,
}

impl SignBlock {
    /// The block's matrix.
    pub fn decode(&self) -> Matrix {
        let mut out = self.u.mul(&self.v);
        let signed = out.data_mut().iter_mut().zip(&self.positive);
        signed.filter(|(_, p)| !**p).for_each(|(m, _)| *m = -*m);
        out
    }

    /// The term `emul{signs, matmul{u, v}}`.
    fn encoding(&self) -> Encoding {
        // 2 (code - 1/2).
        let number = |v: f64| dense(ElemType::F16, &Matrix::from_fn(1, 1, |_, _| v));
        let bits: Vec<u8> = self.positive.iter().map(|&p| p.into()).collect();
        let codes = packed_codes(1, &[self.u.rows(), self.v.cols()], &bits);
        let signs = affine(ElemType::F32, number(2.0), codes, Some(number(0.5)));
        let factors = [&self.u, &self.v].map(|f| dense(ElemType::F16, f));
        emul(
            ElemType::F32,
            vec![signs, matmul(ElemType::F32, factors.into())],
        )
    }

    /// Stored bytes: a bit for each weight, factors as `f16`.
    pub fn bytes(&self) -> u64 {
        let factors = self.u.data().len() + self.v.data().len();
        (self.positive.len().div_ceil(8) + 2 * factors) as u64
    }
}

impl BitStack {
    /// The weight of the first `blocks` blocks.
    pub fn decode(&self, blocks: usize) -> Matrix {
        let columns = self.input_scales.len();
        let rows = self.blocks.first().map_or(0, |b| b.u.rows());
        let stacked = self.blocks.iter().take(blocks);
        let sum = stacked.fold(Matrix::zeros(rows, columns), |sum, b| sum.add(&b.decode()));
        let back: Vec<f64> = self.input_scales.iter().map(|s| 1.0 / s).collect();
        sum.scale_columns(&back)
    }
}

/// A stack of at most `blocks` blocks of rank `rank` for `weight` `[O, I]`, whose inputs have root mean squares `rms`
/// (`None`: all of one size). Ends early if nothing is left.
pub fn bitstack(
    weight: &Matrix,
    rms: Option<&[f64]>,
    rank: usize,
    blocks: usize,
    seed: u64,
) -> Result<BitStack, Singular> {
    let input_scales = scales(weight.cols(), rms);
    let mut left = weight.scale_columns(&input_scales);
    let mut stack = vec![];
    for level in 0..blocks {
        if left.square_sum() == 0.0 {
            break;
        }
        let svd = leading_svd(
            &left.map(f64::abs),
            rank.max(1),
            seed.wrapping_add(level as u64),
        )?;
        let roots: Vec<f64> = svd.values.iter().map(|v| v.sqrt()).collect();
        let stored = |v: f64| minifloat::round_to(ElemType::F16, v.clamp(-65504.0, 65504.0));
        let block = SignBlock {
            positive: left.data().iter().map(|&v| v >= 0.0).collect(),
            u: svd.u.scale_columns(&roots).map(stored),
            v: svd.v.scale_columns(&roots).transpose().map(stored),
        };
        left = left.sub(&block.decode());
        stack.push(block);
    }
    Ok(BitStack {
        input_scales,
        blocks: stack,
    })
}

/// Scales relative to the largest input; silent inputs get a thousandth of it.
fn scales(columns: usize, rms: Option<&[f64]>) -> Vec<f64> {
    let Some(rms) = rms else {
        return vec![1.0; columns];
    };
    let top = rms.iter().copied().fold(0.0, f64::max);
    if top <= 0.0 {
        return vec![1.0; columns];
    }
    // Inverses are stored, as `f16`.
    let stored = |v: f64| 1.0 / minifloat::round_to(ElemType::F16, 1.0 / v);
    rms.iter().map(|v| stored((v / top).max(1e-3))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::methods::lowrank::weighted_lowrank;
    use crate::methods::testing::{decoded, mse, near, tl1};

    #[test]
    fn errors_on_the_reference_layer_are_the_known_ones() {
        let t = tl1();
        let rms = t.stats.rms();
        let cases: [(usize, Option<&[f64]>, &[f64]); 4] = [
            (
                16,
                Some(&rms),
                &[0.14699, 0.03534, 0.00983, 0.00292, 0.00095, 0.00032],
            ),
            (16, None, &[0.25201, 0.06681, 0.01887]),
            (4, Some(&rms), &[0.24271, 0.07614, 0.02891, 0.01310]),
            (1, Some(&rms), &[0.33415, 0.12308, 0.05405]),
        ];
        for (rank, rms, golden) in cases {
            let stack = bitstack(&t.w, rms, rank, golden.len(), 0).expect("converges");
            let mut last = 1.0;
            for (blocks, &golden) in (1..).zip(golden) {
                let rel = t.rel(&stack.decode(blocks));
                near(rel, golden, 0.02);
                assert!(rel < last);
                last = rel;
            }
        }
    }

    #[test]
    fn blocks_beat_plain_values_of_their_size() {
        let t = tl1();
        let rms = t.stats.rms();
        let stack = bitstack(&t.w, Some(&rms), 16, 4, 0).expect("converges");
        let scaled = t.w.scale_columns(&stack.input_scales);
        let back: Vec<f64> = stack.input_scales.iter().map(|s| 1.0 / s).collect();
        for blocks in 1..=4 {
            // A block of rank 16 has the bytes of 21.3 pairs of vectors.
            assert_eq!(stack.blocks[blocks - 1].bytes(), 4096 + 2 * 16 * 384);
            let svd = weighted_lowrank(&scaled, None, 21 * blocks, 0).expect("converges");
            let plain = t.rel(&svd.decode().scale_columns(&back));
            assert!(t.rel(&stack.decode(blocks)) < plain);
        }
    }

    #[test]
    fn the_term_is_the_stack() {
        let t = tl1();
        let settings = Settings {
            bits: 3,
            ..Settings::default()
        };
        let found = propose(&t.layer(), &settings).expect("a candidate");
        let stack = bitstack(&t.w, Some(&t.stats.rms()), 1, 3, 0).expect("converges");
        assert!(mse(&stack.decode(3), &decoded(&found.encoding)) < 1e-10);
        // Beside the blocks: columns' scales, and two numbers with each block's signs.
        let blocks: u64 = stack.blocks.iter().map(SignBlock::bytes).sum();
        assert_eq!(found.bytes, blocks + 2 * 256 + 3 * 4);
    }

    #[test]
    fn nothing_left_needs_no_blocks() {
        let stack = bitstack(&Matrix::zeros(3, 4), None, 2, 5, 0).expect("sound");
        assert!(stack.blocks.is_empty());
        let w = Matrix::from_fn(3, 4, |r, c| if (r + c) % 2 == 0 { 1.0 } else { -1.0 });
        let stack = bitstack(&w, Some(&[0.0; 4]), 1, 5, 0).expect("sound");
        assert!(w.sub(&stack.decode(1)).square_sum() < 1e-5);
    }
}
