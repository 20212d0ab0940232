//! Scale refit: with codes fixed, the scales of a row that lose least of the layer's output.
//!
//! With `c_k` the codes (less their zero points) of group `k`, the output error of a row is quadratic in its scales:
//! `s^T A s - 2 b^T s` with `A_kl = c_k^T H_kl c_l` and `b_k = c_k^T (H w)_k`; the least is at `A s = b`. This is the part
//! of tuning a quantized layer by its scales alone that needs no training.
//! Source: Kim et al., "Memory-Efficient Fine-Tuning of Compressed Large Language Models via sub-4-bit Integer
//! Quantization" (PEQA), section 3: what is tuned; the closed form is ours.

use super::factor::solve;
use super::gptq::{GptqSettings, Order, gptq_prepared};
use super::grid::{AffineParts, GridSpec, Groups};
use super::matrix::Matrix;
use super::{Candidate, Layer, Method, MethodError, Settings, candidate, sweep, threads};
use faer::{Accum, MatMut, MatRef, Par, linalg::matmul::matmul};
use std::ops::Range;

/// GPTQ's codes with refitted scales.
pub static GPTQ_REFIT: Method = Method {
    name: "gptq-refit",
    summary: "rounds with error feedback, then fits all scales of a row together",
    source: "GPTQ, section 3; PEQA, section 3 (closed form)",
    needs_statistics: true,
    bits: 2..=8,
    propose,
};

/// The parts with scales fitted to `weight` `[O, I]` under `hessian` `[I, I]`. A row keeps its scales if the new ones,
/// as they are stored, are not better or not all positive.
pub fn refit(parts: &AffineParts, weight: &Matrix, hessian: &Matrix) -> AffineParts {
    let groups = parts.groups;
    let pieces = threads::map(parts.rows.div_ceil(threads::ROWS), |piece| {
        let rows = piece * threads::ROWS..((piece + 1) * threads::ROWS).min(parts.rows);
        let systems = systems(parts, weight, hessian, rows.clone());
        let solved = rows.zip(systems).flat_map(|(r, (a, b))| {
            let old = &parts.scales[r * groups.count..][..groups.count];
            best_scales(&a, &b, old, |s| parts.stored_scales(s))
        });
        solved.collect::<Vec<f64>>()
    });
    AffineParts {
        scales: pieces.concat(),
        ..parts.clone()
    }
}

/// `A` and `b` of some rows, by one product with the Hessian's rows of each group: `c_l^T H_l` of all these rows.
fn systems(
    parts: &AffineParts,
    weight: &Matrix,
    hessian: &Matrix,
    rows: Range<usize>,
) -> Vec<(Matrix, Matrix)> {
    let (groups, columns) = (parts.groups, parts.groups.columns);
    let steps: Vec<f64> = rows.clone().flat_map(|r| parts.steps(r)).collect();
    let weights = &weight.data()[rows.start * columns..rows.end * columns];
    let count = groups.count;
    let empty = || (Matrix::zeros(count, count), Matrix::zeros(count, 1));
    let mut out: Vec<(Matrix, Matrix)> = rows.map(|_| empty()).collect();
    let mut product = vec![0.0; steps.len()];
    for l in 0..count {
        let range = groups.range(l);
        let codes = MatRef::from_row_major_slice(&steps, out.len(), columns);
        matmul(
            MatMut::from_row_major_slice_mut(&mut product, out.len(), columns),
            Accum::Replace,
            codes.subcols(range.start, range.len()),
            hessian.view().subrows(range.start, range.len()),
            1.0,
            Par::Seq,
        );
        for (r, (a, b)) in out.iter_mut().enumerate() {
            let at = r * columns..(r + 1) * columns;
            let (product, steps) = (&product[at.clone()], &steps[at.clone()]);
            let weights = &weights[at];
            let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
            for k in 0..count {
                let at = groups.range(k);
                a[(l, k)] = dot(&product[at.clone()], &steps[at]);
            }
            b[(l, 0)] = dot(product, weights);
        }
    }
    out
}

fn best_scales(
    a: &Matrix,
    b: &Matrix,
    old: &[f64],
    stored: impl Fn(&[f64]) -> Vec<f64>,
) -> Vec<f64> {
    let error = |s: &[f64]| {
        let pairs = (0..s.len()).map(|k| {
            let dot: f64 = a.row(k).iter().zip(s).map(|(a, s)| a * s).sum();
            s[k] * (dot - 2.0 * b[(k, 0)])
        });
        pairs.sum::<f64>()
    };
    // Groups of zeros have no say; a little on the diagonal keeps their scales where they are.
    let ridge = a.diagonal().iter().sum::<f64>() / a.rows() as f64 * 1e-10 + f64::MIN_POSITIVE;
    let damped = a.zip(&Matrix::identity(a.rows()), |a, e| a + ridge * e);
    let target = Matrix::from_fn(a.rows(), 1, |k, _| b[(k, 0)] + ridge * old[k]);
    let Ok(found) = solve(&damped, &target) else {
        return old.to_vec();
    };
    if found.data().iter().any(|&s| s <= 0.0) {
        return old.to_vec();
    }
    let stored = stored(found.data());
    if error(&stored) < error(old) {
        stored
    } else {
        old.to_vec()
    }
}

fn propose(layer: &Layer, settings: &Settings) -> Result<Candidate, MethodError> {
    let statistics = layer.needed_statistics()?;
    let spec = GridSpec::from_settings(settings)?;
    let rounded = gptq_prepared(
        layer.weight(),
        statistics.prepared(),
        &GptqSettings {
            spec,
            groups: Groups::new(layer.weight().cols(), settings.group_len),
            damping: sweep::DAMPING,
            order: Order::StaticGroups,
            block: sweep::BLOCK,
        },
    );
    let parts = refit(&rounded.parts, layer.weight(), &statistics.hessian);
    candidate(
        layer,
        parts.encoding(),
        &parts.decode(),
        rounded.assumptions,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::methods::gptq::gptq;
    use crate::methods::rtn::round_to_nearest;
    use crate::methods::testing::{near, random, tl1};
    use lapidary_ir::ElemType;

    fn spec(bits: u32, symmetric: bool) -> GridSpec {
        GridSpec {
            bits,
            symmetric,
            clip_exponent: None,
            scale_elem: ElemType::F16,
            scale_bits: 0,
        }
    }

    #[test]
    fn errors_on_the_reference_layer_are_the_known_ones() {
        let t = tl1();
        let groups = Groups::new(256, 64);
        for (bits, rtn, swept) in [
            (4, 0.00745, 0.00082),
            (3, 0.03112, 0.00373),
            (2, 0.14801, 0.02245),
        ] {
            let plain = round_to_nearest(&t.w, &spec(bits, false), groups);
            near(
                t.rel(&refit(&plain, &t.w, &t.stats.hessian).decode()),
                rtn,
                0.01,
            );
            let settings = GptqSettings {
                spec: spec(bits, false),
                groups,
                damping: 0.01,
                order: Order::Given,
                block: sweep::BLOCK,
            };
            let fed = gptq(&t.w, &t.stats.hessian, &settings).parts;
            near(
                t.rel(&refit(&fed, &t.w, &t.stats.hessian).decode()),
                swept,
                0.02,
            );
        }
    }

    #[test]
    fn no_row_gets_worse() {
        let t = tl1();
        for symmetric in [false, true] {
            for group_len in [0, 16, 100] {
                let groups = Groups::new(256, group_len);
                let plain = round_to_nearest(&t.w, &spec(2, symmetric), groups);
                let fitted = refit(&plain, &t.w, &t.stats.hessian).decode();
                let plain = plain.decode();
                for r in 0..t.w.rows() {
                    let error = |m: &Matrix| {
                        let row = t.w.sub(m).block(r..r + 1, 0..256);
                        row.quadratic(&t.stats.hessian)
                    };
                    assert!(error(&fitted) <= error(&plain) * (1.0 + 1e-6));
                }
            }
        }
    }

    #[test]
    fn exact_codes_keep_their_scales() {
        let w = random(10, 40, 3);
        let parts = round_to_nearest(&w, &spec(3, false), Groups::new(40, 10));
        let h = random(100, 40, 4).gram();
        let again = refit(&parts, &parts.decode(), &h);
        let pairs = again.scales.iter().zip(&parts.scales);
        assert!(pairs.clone().all(|(a, b)| (a / b - 1.0).abs() < 1e-3));
    }
}
