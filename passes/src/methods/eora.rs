//! EoRA: what a compressed weight lacks, added again as two factors of low rank.
//!
//! The factors are those of the least output error where there are statistics, else of the least error of the weights
//! ([`lowrank`](super::lowrank)), and are stored as 8-bit codes with a scale for each row. The left one has columns of length
//! 1, so that its rows hold numbers of one size; the right one has the singular values, a scale for each.
//! Source: Liu et al., "EoRA: Fine-tuning-free Compensation for Compressed LLM with Eigenspace Low-Rank Approximation",
//! section 3.

use super::grid::{GridSpec, Groups};
use super::lowrank::{Root, weighted_lowrank};
use super::matrix::Matrix;
use super::{Candidate, Layer, Method, MethodError, Settings, decoded, gptq, measured, rtn};
use lapidary_ir::ElemType;
use lapidary_ir::encodings::matmul::matmul;
use lapidary_ir::encodings::sum::sum;

/// The method, on top of GPTQ or, without statistics, of round to nearest.
pub static EORA: Method = Method {
    name: "eora",
    summary: "a correction of low rank, in 8-bit codes, on top of gptq or (without data) rtn",
    source: "EoRA, section 3",
    needs_statistics: false,
    bits: 2..=8,
    propose: |layer, settings| {
        let base = match layer.statistics() {
            Some(_) => &gptq::GPTQ,
            None => &rtn::RTN,
        };
        compensate(layer, (base.propose)(layer, settings)?, settings)
    },
};

/// `sum{base, matmul{left, right}}` of any candidate for the layer; the candidate itself where the correction does not
/// make up for its own rounding.
pub fn compensate(
    layer: &Layer,
    base: Candidate,
    settings: &Settings,
) -> Result<Candidate, MethodError> {
    let weight = layer.weight();
    let rank = match settings.rank {
        0 => weight.rows() * weight.cols() / (32 * (weight.rows() + weight.cols())),
        rank => rank,
    };
    let missing = weight.sub(&decoded(layer, &base.encoding)?);
    let root = layer.statistics().map(|s| Root::of(&s.second_moment()));
    let found = weighted_lowrank(
        &missing,
        root.transpose()?.as_ref(),
        rank.max(1),
        settings.seed,
    )?;
    let lengths: Vec<f64> = (0..found.left.cols())
        .map(|k| {
            let column = (0..weight.rows()).map(|r| found.left[(r, k)].powi(2));
            let length = column.sum::<f64>().sqrt();
            if length > 0.0 { length } else { 1.0 }
        })
        .collect();
    let back: Vec<f64> = lengths.iter().map(|l| 1.0 / l).collect();
    let right = Matrix::from_fn(lengths.len(), weight.cols(), |k, c| {
        lengths[k] * found.right[(k, c)]
    });
    let spec = GridSpec {
        bits: 8,
        symmetric: true,
        clip_exponent: None,
        scale_elem: ElemType::F16,
        scale_bits: 0,
    };
    let factors = [found.left.scale_columns(&back), right].map(|f| {
        let groups = Groups::new(f.cols(), 0);
        rtn::round_to_nearest(&f, &spec, groups).encoding()
    });
    let correction = matmul(ElemType::F32, factors.into());
    let term = sum(ElemType::F32, vec![base.encoding.clone(), correction]);
    let corrected = measured(layer, term, base.assumptions.clone())?;
    Ok(if corrected.error < base.error {
        corrected
    } else {
        base
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::methods::testing::{near, random, tl1};

    fn settings(bits: u32, rank: usize) -> Settings {
        Settings {
            bits,
            rank,
            group_len: 64,
            ..Settings::default()
        }
    }

    #[test]
    fn corrections_on_the_reference_layer_have_the_known_errors() {
        let t = tl1();
        for (bits, plain, whitened) in [(3, 0.03062, 0.01448), (2, 0.1835, 0.0784)] {
            let settings = settings(bits, 8);
            let error = |calibrated: bool| {
                let layer = Layer::new(&t.w, calibrated.then_some(&t.stats)).expect("sound");
                let base = (rtn::RTN.propose)(&layer, &settings).expect("a candidate");
                let found = compensate(&layer, base, &settings).expect("a candidate");
                t.rel(&decoded(&layer, &found.encoding).expect("a valid term"))
            };
            near(error(false), plain, 0.01);
            near(error(true), whitened, 0.02);
        }
    }

    #[test]
    fn errors_of_low_rank_are_made_up_for() {
        let (a, b) = (random(60, 2, 1), random(2, 80, 2));
        let lost = a.mul(&b);
        let rounded = random(60, 80, 3);
        let weight = rounded.add(&lost).map(|v| f64::from(v as f32));
        let layer = Layer::new(&weight, None).expect("sound");
        let encoding = super::super::dense(ElemType::F32, &rounded);
        let base = measured(&layer, encoding, vec![]).expect("valid");
        let found = compensate(&layer, base.clone(), &settings(8, 2)).expect("a candidate");
        // What is left is the rounding of the factors to 8 bits.
        assert!(
            found.error < 1e-3 * base.error,
            "{} {}",
            found.error,
            base.error
        );
    }

    #[test]
    fn nothing_is_added_where_nothing_is_missing() {
        let weight = random(8, 8, 4).map(|v| f64::from(v as f32));
        let layer = Layer::new(&weight, None).expect("sound");
        let exact = measured(&layer, super::super::dense(ElemType::F32, &weight), vec![]);
        let exact = exact.expect("valid");
        let found = compensate(&layer, exact.clone(), &settings(4, 1)).expect("a candidate");
        assert_eq!(found.encoding, exact.encoding);
    }
}
