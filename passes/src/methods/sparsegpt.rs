//! SparseGPT: pruning in the column sweep, so that the weights that stay make up for those that go.
//!
//! The mask is chosen block by block from `w² / U_jj²`, what dropping a weight costs once the free columns react; for
//! N:M and for short blocks it is chosen in each row as the sweep reaches a run. What stays may be rounded in the same
//! pass.
//! Source: Frantar, Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot", section 3.

use super::grid::{AffineParts, Grid, GridSpec, Groups};
use super::matrix::Matrix;
use super::pattern::{Mask, Pattern, drop_lowest, run_drop, share};
use super::sweep::{self, Prepared, Rounding, prepare};
use super::{Candidate, Layer, Method, MethodError, Settings, pruning, sparse};
use std::ops::Range;

/// The method.
pub static SPARSEGPT: Method = Method {
    name: "sparsegpt",
    summary: "prunes with error feedback by the Hessian, and rounds what stays to codes unless bits are above 8",
    source: "SparseGPT, section 3",
    needs_statistics: true,
    bits: 2..=16,
    propose,
};

fn propose(layer: &Layer, settings: &Settings) -> Result<Candidate, MethodError> {
    let statistics = layer.needed_statistics()?;
    let run = settings.pattern.run();
    let groups = Groups::of_runs(layer.weight().cols(), settings.group_len, run);
    let grid = pruning::kept_grid(settings)?.map(|spec| (spec, groups));
    let prepared = prepare(&statistics.hessian, 0.01, false);
    let found = sparsegpt(
        layer.weight(),
        &prepared,
        &SparseGptSettings {
            pattern: settings.pattern,
            grid,
            block: sweep::BLOCK,
        },
    )?;
    let (mask, pattern) = (&found.mask, settings.pattern);
    let mut candidate = match &found.parts {
        Some(parts) => sparse::codes(layer, parts, mask, pattern)?,
        None => sparse::values(layer, &found.weights, mask, pattern, settings.scale_elem)?,
    };
    candidate.assumptions.extend(prepared.assumptions);
    Ok(candidate)
}

/// Settings of the core.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SparseGptSettings {
    /// Where weights compete. [`Pattern::Tensor`], [`Pattern::Rows`] and [`Pattern::Blocks`] compete over all rows and
    /// the columns of a block of the sweep.
    pub pattern: Pattern,
    /// Rounds what stays on grids of these groups, fitted to the weights that stay and zero.
    pub grid: Option<(GridSpec, Groups)>,
    /// Columns of a block.
    pub block: usize,
}

/// What the core returns, in the weight's own order.
#[derive(Clone, Debug)]
pub struct SparseGpt {
    /// What stays.
    pub mask: Mask,
    /// The weights that stay with their updates, zeros elsewhere; rounded if that was asked for.
    pub weights: Matrix,
    /// Codes and grids, if it was.
    pub parts: Option<AffineParts>,
    /// `Σe²`: the quadratic error under the damped Hessian.
    pub squared_error: f64,
}

/// Prunes `weight` `[O, I]`. `prepared` must be in the weight's own order, and the runs of the pattern and the groups of
/// the grid must divide each other.
pub fn sparsegpt(
    weight: &Matrix,
    prepared: &Prepared,
    settings: &SparseGptSettings,
) -> Result<SparseGpt, MethodError> {
    if prepared.order.iter().enumerate().any(|(k, &c)| k != c) {
        let reason = "patterns are of the weight's own order of columns";
        return Err(MethodError::Settings(reason.into()));
    }
    let (rows, columns) = (weight.rows(), weight.cols());
    let mut swept = prepared.arrange(weight);
    let mut rounding = Pruning {
        settings,
        diagonal: prepared.upper.diagonal(),
        tile: Mask::all(rows, 0),
        tile_start: 0,
        lengths: lengths(settings)?,
    };
    let (states, squared_error) =
        sweep::sweep(&mut swept, &prepared.upper, settings.block, &mut rounding);
    let kept = states.iter().flat_map(|s| &s.kept).copied().collect();
    let parts = settings.grid.map(|(spec, groups)| {
        let coded = states.into_iter().map(|s| (s.codes, s.grids)).collect();
        AffineParts::from_rows(coded, &spec, groups)
    });
    Ok(SparseGpt {
        mask: Mask {
            rows,
            columns,
            kept,
        },
        weights: swept,
        parts,
        squared_error,
    })
}

/// Columns of a run or group, and of the longer of both.
fn lengths(settings: &SparseGptSettings) -> Result<(usize, usize), MethodError> {
    let run = settings.pattern.run();
    let Some((_, groups)) = settings.grid else {
        return Ok((run, run));
    };
    let (short, long) = (run.min(groups.len), run.max(groups.len));
    if long.is_multiple_of(short) || groups.count == 1 {
        return Ok((short, long));
    }
    Err(MethodError::Settings(format!(
        "runs of {run} and groups of {} do not divide each other",
        groups.len
    )))
}

struct Pruning<'a> {
    settings: &'a SparseGptSettings,
    diagonal: Vec<f64>,
    /// Mask of the block at hand; of no columns where rows choose for themselves.
    tile: Mask,
    tile_start: usize,
    lengths: (usize, usize),
}

/// A row's mask, codes and grids so far.
struct PrunedRow {
    kept: Vec<bool>,
    codes: Vec<u8>,
    grids: Vec<Grid>,
}

impl Pruning<'_> {
    fn cost(&self, column: usize, weight: f64) -> f64 {
        (weight / self.diagonal[column]).powi(2)
    }
}

impl Rounding for Pruning<'_> {
    type Row = PrunedRow;

    fn start(&self, _: usize) -> PrunedRow {
        PrunedRow {
            kept: Vec::with_capacity(self.diagonal.len()),
            codes: vec![],
            grids: vec![],
        }
    }

    fn group_len(&self) -> usize {
        self.lengths.0
    }

    fn span_len(&self) -> usize {
        self.lengths.1
    }

    fn begin_block(&mut self, weights: &Matrix, columns: Range<usize>) {
        let (rows, len) = (weights.rows(), columns.len());
        let costs = Matrix::from_fn(rows, len, |r, c| {
            self.cost(columns.start + c, weights[(r, columns.start + c)])
        });
        let mut kept = vec![true; rows * len];
        match self.settings.pattern {
            Pattern::NOfM { .. } => {
                self.tile = Mask::all(rows, 0);
                return;
            }
            Pattern::Tensor { sparsity } | Pattern::Rows { sparsity } => {
                drop_lowest(costs.data(), share(rows * len, sparsity), &mut kept);
            }
            Pattern::Blocks { len: run, sparsity } => {
                let run = run.max(1);
                let per_row = len.div_ceil(run);
                let sums: Vec<f64> = (0..rows)
                    .flat_map(|r| costs.row(r).chunks(run).map(|s| s.iter().sum::<f64>()))
                    .collect();
                let mut whole = vec![true; rows * per_row];
                drop_lowest(&sums, share(sums.len(), sparsity), &mut whole);
                for (r, row) in kept.chunks_mut(len).enumerate() {
                    for (b, part) in row.chunks_mut(run).enumerate() {
                        part.fill(whole[r * per_row + b]);
                    }
                }
            }
        }
        self.tile_start = columns.start;
        self.tile = Mask {
            rows,
            columns: len,
            kept,
        };
    }

    fn begin_group(&self, row: &mut PrunedRow, _: usize, columns: Range<usize>, part: &[f64]) {
        if let Some((spec, groups)) = &self.settings.grid
            && columns.start.is_multiple_of(groups.len)
        {
            let len = groups.len.min(part.len());
            row.grids.push(spec.fit(&part[..len]));
        }
        if let Pattern::NOfM { keep, of } = self.settings.pattern
            && columns.start.is_multiple_of(of.max(1))
        {
            let run = part.iter().zip(columns).take(of.max(1));
            let costs: Vec<f64> = run.map(|(&w, c)| self.cost(c, w)).collect();
            let mut kept = vec![true; costs.len()];
            drop_lowest(&costs, run_drop(costs.len(), keep, of), &mut kept);
            row.kept.extend(kept);
        }
    }

    fn round(&self, row: &mut PrunedRow, at: usize, column: usize, weight: f64) -> f64 {
        let kept = if self.tile.columns == 0 {
            row.kept[column]
        } else {
            let kept = self.tile.row(at)[column - self.tile_start];
            row.kept.push(kept);
            kept
        };
        let Some((_, groups)) = &self.settings.grid else {
            return if kept { weight } else { 0.0 };
        };
        let grid = row.grids[groups.of(column)];
        let code = grid.code(if kept { weight } else { 0.0 });
        row.codes.push(code as u8);
        grid.value(code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::methods::Layer;
    use crate::methods::gptq::{GptqSettings, Order, gptq};
    use crate::methods::pruning::{magnitude, wanda};
    use crate::methods::statistics::Statistics;
    use crate::methods::sweep::prepare;
    use crate::methods::testing::{correlated, near, random, tl1};
    use lapidary_ir::ElemType;

    fn settings(pattern: Pattern) -> SparseGptSettings {
        SparseGptSettings {
            pattern,
            grid: None,
            block: sweep::BLOCK,
        }
    }

    #[test]
    fn errors_on_correlated_inputs_are_in_the_known_order() {
        let x = correlated(256, 4096, 11);
        let stats = Statistics::from_inputs(&x);
        let w = random(256, 256, 12);
        let layer = Layer::new(&w, Some(&stats)).expect("sound");
        let prepared = prepare(&stats.hessian, 0.01, false);
        let errors = |pattern| {
            [
                layer.error(&magnitude(&w, pattern).apply(&w)),
                layer.error(&wanda(&w, &stats, pattern).apply(&w)),
                layer.error(
                    &sparsegpt(&w, &prepared, &settings(pattern))
                        .expect("sound")
                        .weights,
                ),
            ]
        };
        // Another draw of the inputs' scales than the published figures: the ratios hold, not the digits.
        let [m, wa, s] = errors(Pattern::Rows { sparsity: 0.5 });
        assert!(m > 5.0 * wa && wa > 1.5 * s && s < 0.006, "{m} {wa} {s}");
        let [m, wa, s] = errors(Pattern::NOfM { keep: 2, of: 4 });
        assert!(m > 3.0 * wa && wa > 2.0 * s && s < 0.012, "{m} {wa} {s}");
        let [m, wa, s] = errors(Pattern::Blocks {
            len: 4,
            sparsity: 0.5,
        });
        assert!(m > wa && wa > 1.5 * s, "{m} {wa} {s}");
    }

    #[test]
    fn masks_are_as_sparse_as_asked_and_weights_obey_them() {
        let t = tl1();
        let prepared = prepare(&t.stats.hessian, 0.01, false);
        for pattern in [
            Pattern::Rows { sparsity: 0.5 },
            Pattern::NOfM { keep: 2, of: 4 },
            Pattern::NOfM { keep: 1, of: 2 },
            Pattern::Blocks {
                len: 4,
                sparsity: 0.5,
            },
        ] {
            let found = sparsegpt(&t.w, &prepared, &settings(pattern)).expect("sound");
            assert_eq!(found.mask.density(), 0.5);
            let pairs = found.weights.data().iter().zip(&found.mask.kept);
            assert!(pairs.clone().all(|(w, k)| *k || *w == 0.0));
            let delta = t.w.sub(&found.weights);
            let quadratic =
                delta.quadratic(&t.stats.hessian) + prepared.damping * delta.square_sum();
            near(found.squared_error, quadratic, 1e-6);
            if let Pattern::NOfM { keep, of } = pattern {
                let runs = found.mask.kept.chunks(of);
                assert!(
                    runs.clone()
                        .all(|r| r.iter().filter(|k| **k).count() == keep)
                );
            }
        }
    }

    #[test]
    fn two_of_four_gains_on_the_reference_layer() {
        let t = tl1();
        let prepared = prepare(&t.stats.hessian, 0.01, false);
        let pattern = Pattern::NOfM { keep: 2, of: 4 };
        let updated = t.rel(
            &sparsegpt(&t.w, &prepared, &settings(pattern))
                .expect("sound")
                .weights,
        );
        let diagonal = prepared.upper.gram().diagonal();
        let scores = Matrix::from_fn(128, 256, |r, c| t.w[(r, c)].powi(2) / diagonal[c]);
        let masked = t.rel(&super::super::pattern::mask(&scores, pattern).apply(&t.w));
        near(masked, 0.1266, 0.01);
        assert!(updated < 0.5 * masked, "{updated} {masked}");
    }

    #[test]
    fn with_everything_kept_it_is_gptq() {
        let t = tl1();
        let prepared = prepare(&t.stats.hessian, 0.01, false);
        for group_len in [0, 64, 32] {
            let spec = GridSpec {
                bits: 3,
                symmetric: false,
                clip_exponent: None,
                scale_elem: ElemType::F16,
                scale_bits: 0,
            };
            let groups = Groups::new(256, group_len);
            for pattern in [
                Pattern::Rows { sparsity: 0.0 },
                Pattern::NOfM { keep: 4, of: 4 },
            ] {
                let joint = SparseGptSettings {
                    grid: Some((spec, groups)),
                    ..settings(pattern)
                };
                let found = sparsegpt(&t.w, &prepared, &joint).expect("sound");
                let same = gptq(
                    &t.w,
                    &t.stats.hessian,
                    &GptqSettings {
                        spec,
                        groups,
                        damping: 0.01,
                        order: Order::Given,
                        block: sweep::BLOCK,
                    },
                );
                assert_eq!(found.parts, Some(same.parts));
            }
        }
    }

    #[test]
    fn pruned_and_rounded_weights_are_zero_and_on_the_grid() {
        let t = tl1();
        let prepared = prepare(&t.stats.hessian, 0.01, false);
        let spec = GridSpec {
            bits: 4,
            symmetric: false,
            clip_exponent: None,
            scale_elem: ElemType::F16,
            scale_bits: 0,
        };
        let joint = SparseGptSettings {
            grid: Some((spec, Groups::new(256, 16))),
            ..settings(Pattern::NOfM { keep: 2, of: 4 })
        };
        let found = sparsegpt(&t.w, &prepared, &joint).expect("sound");
        let decoded = found.parts.expect("codes").decode();
        let pairs = decoded.data().iter().zip(&found.mask.kept);
        assert!(pairs.clone().all(|(w, k)| *k || *w == 0.0));
        assert!(
            t.rel(&decoded)
                < 2.0
                    * t.rel(
                        &sparsegpt(&t.w, &prepared, &settings(joint.pattern))
                            .expect("sound")
                            .weights
                    )
        );
    }
}
