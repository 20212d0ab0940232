//! Ternary and binary weights: `γ {-1, 0, 1}` and `α {-1, 1}`, one scale for each group.
//!
//! For given codes the best scale is a mean. The best ternary codes are found exactly as well: for any scale, the
//! non-zero codes belong to the largest magnitudes, so with these sorted the best count `k` has the largest `(Σ of the
//! first k)² / k`. Published ternary models are trained with `γ = mean|w|` instead (*absmean*); such weights are
//! recognised and kept as they are. With a Hessian, the scale is fitted to each group as the column sweep reaches it, and
//! codes are rounded with error feedback.
//! Source: Kaushal et al., "Spectra: A Comprehensive Study of Ternary, Quantized, and FP16 Language Models", section 3
//! (absmean, shards); He et al., "BiViT: Extremely Compressed Binary Vision Transformer" (least squares of the sorted
//! values).

use super::grid::{AffineParts, Groups, Zeros, scale_type, stored_scale};
use super::matrix::Matrix;
use super::sweep::{self, Prepared, Rounding, prepare};
use super::{Candidate, Layer, Method, MethodError, Settings, candidate, threads};
use lapidary_ir::ElemType;
use lapidary_ir::encodings::affine::affine;
use lapidary_ir::encodings::coded::base3::base3;
use std::ops::Range;

/// Ternary weights.
pub static TERNARY: Method = Method {
    name: "ternary",
    summary: "codes -1, 0 and 1 with the scale of least error, with error feedback where there is a Hessian",
    source: "Spectra, section 3; BiViT (least squares)",
    needs_statistics: false,
    bits: 2..=2,
    propose: |layer, settings| propose(layer, settings, Kind::Ternary),
};

/// Ternary weights, five of them in a byte.
pub static TRITS: Method = Method {
    name: "trits",
    summary: "as ternary, with five codes in a byte: 1.6 bits for each",
    source: "Spectra, section 3; BiViT (least squares)",
    needs_statistics: false,
    bits: 2..=2,
    propose: |layer, settings| {
        let mut found = propose(layer, settings, Kind::Ternary)?;
        let [scale, codes, zero] = &found.encoding.children[..] else {
            return Ok(found);
        };
        let unpacked: Vec<u8> = codes.integers()?.iter().map(|&c| c as u8).collect();
        let packed = base3(codes.shape.clone(), &unpacked);
        let [scale, zero] = [scale, zero].map(|e| e.as_ref().clone());
        found.encoding = affine(ElemType::F32, scale, packed, Some(zero));
        found.bytes = found.encoding.stored_bytes();
        Ok(found)
    },
};

/// Binary weights.
pub static BINARY: Method = Method {
    name: "binary",
    summary: "codes -1 and 1 with the scale of least error, with error feedback where there is a Hessian",
    source: "BiViT, section 3",
    needs_statistics: false,
    bits: 1..=1,
    propose: |layer, settings| propose(layer, settings, Kind::Binary),
};

/// Which codes there are, and how the scale is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// -1, 0, 1 with the scale of least squared error.
    Ternary,
    /// -1, 0, 1 with the mean magnitude, as ternary models are trained.
    Absmean,
    /// -1, 1 with the mean magnitude, which is the least squared error.
    Binary,
}

impl Kind {
    /// The scale of some weights.
    pub fn scale(self, weights: &[f64]) -> f64 {
        let mean = || weights.iter().map(|w| w.abs()).sum::<f64>() / weights.len().max(1) as f64;
        match self {
            Kind::Ternary => best_ternary_scale(weights),
            Kind::Absmean | Kind::Binary => mean(),
        }
    }

    /// The code of a weight, before its offset: -1, 0 or 1.
    fn code(self, weight: f64, scale: f64) -> f64 {
        match self {
            Kind::Binary if weight < 0.0 => -1.0,
            Kind::Binary => 1.0,
            _ => (weight / scale).round_ties_even().clamp(-1.0, 1.0),
        }
    }
}

/// The scale of the ternary approximation with least squared error.
pub fn best_ternary_scale(weights: &[f64]) -> f64 {
    let mut sorted: Vec<f64> = weights.iter().map(|w| w.abs()).collect();
    sorted.sort_by(|a, b| b.total_cmp(a));
    let (mut sum, mut best) = (0.0, (0.0, 0.0));
    for (k, w) in sorted.iter().enumerate() {
        sum += w;
        let count = (k + 1) as f64;
        if sum * sum / count > best.0 {
            best = (sum * sum / count, sum / count);
        }
    }
    best.1
}

/// Codes of `weights` `[O, I]`, each group by itself.
pub fn nearest(weights: &Matrix, kind: Kind, groups: Groups, elem: ElemType) -> AffineParts {
    let rows = threads::map(weights.rows(), |r| {
        let mut row = CodeRow::new(groups.columns);
        for g in 0..groups.count {
            let part = &weights.row(r)[groups.range(g)];
            row.scales.push(stored_scale(kind.scale(part), elem));
            for (c, &w) in groups.range(g).zip(part) {
                row.codes[c] = kind.code(w, row.scales[g]) as i8;
            }
        }
        row
    });
    parts(rows, kind, groups, elem)
}

/// Codes of `weights` `[O, I]` by the column sweep, scales fitted as it reaches a group.
pub fn with_feedback(
    weights: &Matrix,
    prepared: &Prepared,
    kind: Kind,
    groups: Groups,
    elem: ElemType,
) -> AffineParts {
    let mut swept = prepared.arrange(weights);
    let mut rounding = Scales { kind, groups, elem };
    let (rows, _) = sweep::sweep(&mut swept, &prepared.upper, sweep::BLOCK, &mut rounding);
    parts(rows, kind, groups, elem)
}

/// Codes -1, 0, 1 and the scales of a row's groups.
struct CodeRow {
    codes: Vec<i8>,
    scales: Vec<f64>,
}

impl CodeRow {
    fn new(columns: usize) -> CodeRow {
        CodeRow {
            codes: vec![0; columns],
            scales: vec![],
        }
    }
}

fn parts(rows: Vec<CodeRow>, kind: Kind, groups: Groups, elem: ElemType) -> AffineParts {
    let binary = kind == Kind::Binary;
    let stored = |c: i8| {
        if binary {
            u8::from(c > 0)
        } else {
            (c + 1) as u8
        }
    };
    AffineParts {
        rows: rows.len(),
        groups,
        bits: if binary { 1 } else { 2 },
        codes: rows
            .iter()
            .flat_map(|r| &r.codes)
            .map(|&c| stored(c))
            .collect(),
        scale_elem: elem,
        scale_bits: 0,
        // Codes 0 and 1 are two scales apart.
        scales: rows
            .iter()
            .flat_map(|r| &r.scales)
            .map(|s| if binary { 2.0 * s } else { *s })
            .collect(),
        zeros: Zeros::Shared(if binary { 0.5 } else { 1.0 }),
    }
}

struct Scales {
    kind: Kind,
    groups: Groups,
    elem: ElemType,
}

impl Rounding for Scales {
    type Row = CodeRow;

    fn start(&self, _: usize) -> CodeRow {
        CodeRow::new(self.groups.columns)
    }

    fn group_len(&self) -> usize {
        self.groups.len
    }

    fn begin_group(&self, row: &mut CodeRow, _: usize, _: Range<usize>, part: &[f64]) {
        row.scales
            .push(stored_scale(self.kind.scale(part), self.elem));
    }

    fn round(&self, row: &mut CodeRow, _: usize, column: usize, weight: f64) -> f64 {
        let scale = row.scales[self.groups.of(column)];
        let code = self.kind.code(weight, scale);
        row.codes[column] = code as i8;
        scale * code
    }
}

/// A trained ternary weight: consecutive rows (or columns) whose values are `-scale`, 0 and `scale`.
#[derive(Clone, Debug, PartialEq)]
pub struct Shards {
    /// True if the shards are runs of rows, false if of columns.
    pub by_rows: bool,
    /// Each shard's rows or columns, and its scale.
    pub shards: Vec<(Range<usize>, f64)>,
}

/// Finds the shards of a weight that was trained ternary; `None` if it has other values, or more than `most` shards.
pub fn recognize(weights: &Matrix, most: usize) -> Option<Shards> {
    let lines = |by_rows: bool| {
        let (lines, len) = match by_rows {
            true => (weights.rows(), weights.cols()),
            false => (weights.cols(), weights.rows()),
        };
        let at = |line, k| {
            if by_rows {
                weights[(line, k)]
            } else {
                weights[(k, line)]
            }
        };
        let mut shards: Vec<(Range<usize>, f64)> = vec![];
        for line in 0..lines {
            let mut scale = 0.0;
            for v in (0..len).map(|k| at(line, k).abs()).filter(|&v| v != 0.0) {
                if scale != 0.0 && v != scale {
                    return None;
                }
                scale = v;
            }
            match shards.last_mut() {
                // A line of zeros fits any shard, and a shard of zeros any line.
                Some(last) if scale == 0.0 || last.1 == 0.0 || last.1 == scale => {
                    last.0.end = line + 1;
                    last.1 = last.1.max(scale);
                }
                _ => shards.push((line..line + 1, scale)),
            }
            if shards.len() > most {
                return None;
            }
        }
        Some(Shards { by_rows, shards })
    };
    lines(true).or_else(|| lines(false))
}

fn propose(layer: &Layer, settings: &Settings, kind: Kind) -> Result<Candidate, MethodError> {
    let elem = scale_type(settings.scale_elem)?;
    let groups = Groups::new(layer.weight().cols(), settings.group_len);
    let plain = nearest(layer.weight(), kind, groups, elem);
    let best = candidate(layer, plain.encoding(), &plain.decode(), vec![])?;
    let Some(statistics) = layer.statistics() else {
        return Ok(best);
    };
    let prepared = prepare(&statistics.hessian, 0.01, false);
    let fed = with_feedback(layer.weight(), &prepared, kind, groups, elem);
    let fed = candidate(layer, fed.encoding(), &fed.decode(), prepared.assumptions)?;
    Ok(if fed.error < best.error { fed } else { best })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::methods::testing::{mse, near, random, tl1};

    #[test]
    fn errors_of_normals_are_the_known_ones() {
        let w = random(64, 4096, 5);
        let whole = Groups::new(4096, 0);
        let error = |kind| mse(&w, &nearest(&w, kind, whole, ElemType::F32).decode());
        near(error(Kind::Absmean), 0.2635, 0.01);
        near(error(Kind::Ternary), 0.190174, 0.01);
        near(error(Kind::Binary), 0.363380, 0.01);
        let absmean = nearest(&w, Kind::Absmean, whole, ElemType::F32);
        let zeros = absmean.codes.iter().filter(|&&c| c == 1).count();
        near(zeros as f64 / absmean.codes.len() as f64, 0.310, 0.01);
        // The least-squares scale for absmean's codes.
        let fitted = Matrix::from_rows(64, 4096, |r, out| {
            let steps = absmean.steps(r);
            let dot: f64 = w.row(r).iter().zip(&steps).map(|(w, s)| w * s).sum();
            let scale = dot / steps.iter().map(|s| s * s).sum::<f64>();
            out.iter_mut().zip(steps).for_each(|(o, s)| *o = scale * s);
        });
        near(mse(&w, &fitted), 0.2131, 0.01);
    }

    #[test]
    fn no_ternary_code_is_better() {
        for seed in 0..12 {
            let w = random(1, 8, seed);
            let found = nearest(&w, Kind::Ternary, Groups::new(8, 0), ElemType::F64);
            let error = w.sub(&found.decode()).square_sum();
            let mut best = f64::INFINITY;
            for mut code in 0..3u32.pow(8) {
                let (mut dot, mut len) = (0.0, 0.0);
                for v in w.data() {
                    let t = f64::from(code % 3) - 1.0;
                    code /= 3;
                    dot += t * v;
                    len += t * t;
                }
                let gain = if len > 0.0 { dot * dot / len } else { 0.0 };
                best = best.min(w.square_sum() - gain);
            }
            assert!((error - best).abs() < 1e-6, "seed {seed}: {error} {best}");
        }
    }

    #[test]
    fn feedback_gains_on_the_reference_layer() {
        let t = tl1();
        let groups = Groups::new(256, 64);
        let prepared = prepare(&t.stats.hessian, 0.01, false);
        for kind in [Kind::Ternary, Kind::Binary] {
            let plain = t.rel(&nearest(&t.w, kind, groups, ElemType::F16).decode());
            let fed = with_feedback(&t.w, &prepared, kind, groups, ElemType::F16);
            assert!(t.rel(&fed.decode()) < 0.5 * plain);
        }
    }

    #[test]
    fn trained_ternary_weights_are_recognised() {
        let w = Matrix::from_fn(6, 5, |r, c| {
            let scale = if r < 4 { 0.25 } else { 0.5 };
            scale * (((r + 2 * c) % 3) as f64 - 1.0)
        });
        let found = recognize(&w, 6).expect("ternary");
        assert_eq!(found.shards, vec![(0..4, 0.25), (4..6, 0.5)]);
        let columns = recognize(&w.transpose(), 6).expect("ternary");
        assert!(!columns.by_rows && columns.shards.len() == 2);
        assert_eq!(recognize(&w, 1), None);
        assert_eq!(recognize(&random(6, 5, 1), 6), None);
    }

    #[test]
    fn absmean_of_a_trained_weight_is_the_weight() {
        let w = Matrix::from_fn(3, 64, |r, c| 0.5 * (((r + c) % 2) as f64 * 2.0 - 1.0));
        let found = nearest(&w, Kind::Binary, Groups::new(64, 0), ElemType::F16);
        assert_eq!(found.decode(), w);
    }
}
