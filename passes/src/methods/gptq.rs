//! GPTQ: rounding with error feedback, so that later weights make up for the errors of earlier ones.
//!
//! The objective is the layer's output: for each row, the least `(w-ŵ) H (w-ŵ)^T`. Grids are fitted when the sweep
//! reaches a group, to weights that already carry the errors before them. With *activity order* the columns whose
//! inputs are largest come first; groups then are either runs of the reordered columns, which needs a permutation
//! when the weight is read, or *static*: fitted before the sweep, in the weight's own order, at no cost to readers.
//! The plain error of the weights grows under GPTQ; only the output error falls.
//! Source: "GPTQ: Accurate Post-training Compression for Generative Pretrained Transformers", section 3.

use super::grid::{AffineParts, Grid, GridSpec, Groups};
use super::matrix::Matrix;
use super::sweep::{self, DAMPING, Prepared, Rounding, prepare};
use super::{Candidate, Layer, Method, MethodError, Settings, candidate, rtn, threads};
use std::ops::Range;

/// The method: activity order with static groups, damping 0.01.
pub static GPTQ: Method = Method {
    name: "gptq",
    summary: "rounds with error feedback by the Hessian, columns of the largest inputs first",
    source: "GPTQ, section 3",
    needs_statistics: true,
    bits: 2..=8,
    propose,
};

/// In which order columns are rounded, and what a group is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// As they are.
    Given,
    /// By activity; groups are runs of the weight's own columns, fitted before the sweep.
    StaticGroups,
    /// By activity; groups are runs of the reordered columns, fitted as the sweep reaches them.
    DynamicGroups,
}

/// Settings of the core.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GptqSettings {
    /// How grids are fitted.
    pub spec: GridSpec,
    /// Groups of a row.
    pub groups: Groups,
    /// Added to the Hessian's diagonal, relative to its mean.
    pub damping: f64,
    /// Order and groups.
    pub order: Order,
    /// Columns whose errors are spread at once; does not change the result beyond rounding.
    pub block: usize,
}

/// What the core returns.
#[derive(Clone, Debug)]
pub struct Gptq {
    /// Codes and grids; with [`Order::DynamicGroups`] in the order of `permutation`.
    pub parts: AffineParts,
    /// Column of the weight that the parts hold in place `k`, if they are reordered.
    pub permutation: Option<Vec<usize>>,
    /// `Σe²`: the quadratic error under the damped Hessian.
    pub squared_error: f64,
    /// What was added to the Hessian's diagonal.
    pub damping: f64,
    /// What had to be repaired.
    pub assumptions: Vec<String>,
}

impl Gptq {
    /// The decoded weight in its own order.
    pub fn decode(&self) -> Matrix {
        let decoded = self.parts.decode();
        match &self.permutation {
            None => decoded,
            Some(p) => {
                let mut place = vec![0; p.len()];
                p.iter().enumerate().for_each(|(k, &c)| place[c] = k);
                decoded.select_columns(&place)
            }
        }
    }
}

/// Rounds `weight` `[O, I]` by `hessian` `[I, I]`.
pub fn gptq(weight: &Matrix, hessian: &Matrix, settings: &GptqSettings) -> Gptq {
    let prepared = prepare(hessian, settings.damping, settings.order != Order::Given);
    gptq_prepared(weight, &prepared, settings)
}

/// As [`gptq`], with a Hessian that is factored already (layers that read one input share it).
pub fn gptq_prepared(weight: &Matrix, prepared: &Prepared, settings: &GptqSettings) -> Gptq {
    let mut swept = prepared.arrange(weight);
    // Scales that are codes are known once all of a row's are.
    let known = settings.order == Order::StaticGroups || settings.spec.scale_bits > 0;
    let fixed = known.then(|| {
        let grouped = match settings.order {
            Order::DynamicGroups => &swept,
            _ => &prepared.restore(&swept),
        };
        let fit = |r: usize| settings.spec.fit_row(grouped.row(r), settings.groups);
        threads::map(weight.rows(), fit)
    });
    let mut rounding = Grids {
        settings,
        order: &prepared.order,
        fixed,
    };
    let (rows, squared_error) =
        sweep::sweep(&mut swept, &prepared.upper, settings.block, &mut rounding);
    let rows = rows.into_iter().map(|r| (r.codes, r.grids)).collect();
    let dynamic = settings.order == Order::DynamicGroups;
    Gptq {
        parts: AffineParts::from_rows(rows, &settings.spec, settings.groups),
        permutation: dynamic.then(|| prepared.order.clone()),
        squared_error,
        damping: prepared.damping,
        assumptions: prepared.assumptions.clone(),
    }
}

/// Rounding to grids that are fitted on the way, or fixed.
struct Grids<'a> {
    settings: &'a GptqSettings,
    order: &'a [usize],
    fixed: Option<Vec<Vec<Grid>>>,
}

struct GridRow {
    codes: Vec<u8>,
    grids: Vec<Grid>,
}

impl Rounding for Grids<'_> {
    type Row = GridRow;

    fn start(&self, row: usize) -> GridRow {
        GridRow {
            codes: vec![0; self.order.len()],
            grids: self.fixed.as_ref().map_or(vec![], |f| f[row].clone()),
        }
    }

    fn group_len(&self) -> usize {
        self.settings.groups.len
    }

    fn begin_group(&self, state: &mut GridRow, _: usize, _: Range<usize>, part: &[f64]) {
        if self.fixed.is_none() {
            state.grids.push(self.settings.spec.fit(part));
        }
    }

    fn round(&self, state: &mut GridRow, _: usize, column: usize, weight: f64) -> f64 {
        // Static groups keep the weight's own order; the others are held as they are swept.
        let place = match self.settings.order {
            Order::StaticGroups => self.order[column],
            _ => column,
        };
        let grid = state.grids[self.settings.groups.of(place)];
        let code = grid.code(weight);
        state.codes[place] = code as u8;
        grid.value(code)
    }
}

fn propose(layer: &Layer, settings: &Settings) -> Result<Candidate, MethodError> {
    let statistics = layer.needed_statistics()?;
    let spec = GridSpec::from_settings(settings)?;
    let groups = Groups::new(layer.weight().cols(), settings.group_len);
    let found = gptq_prepared(
        layer.weight(),
        statistics.prepared(),
        &GptqSettings {
            spec,
            groups,
            damping: DAMPING,
            order: Order::StaticGroups,
            block: sweep::BLOCK,
        },
    );
    let feedback = candidate(
        layer,
        found.parts.encoding(),
        &found.decode(),
        found.assumptions,
    )?;
    // Grids that clip weights late in the sweep can lose to plain rounding. What that would lose is seen by the
    // Hessian's diagonal; the whole of it is only computed where the two are near.
    let plain = rtn::round_to_nearest(layer.weight(), &spec, groups);
    let decoded = plain.decode();
    let diagonal = statistics.hessian.diagonal();
    let roots: Vec<f64> = diagonal.iter().map(|h| h.max(0.0).sqrt()).collect();
    let by_diagonal = layer
        .weight()
        .sub(&decoded)
        .scale_columns(&roots)
        .square_sum();
    if by_diagonal < 2.0 * feedback.error * layer.energy() {
        let found = candidate(
            layer,
            plain.encoding(),
            &decoded,
            vec!["error feedback did not help; weights were rounded to nearest".into()],
        )?;
        if found.error < feedback.error {
            return Ok(found);
        }
    }
    Ok(feedback)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::methods::statistics::Statistics;
    use crate::methods::testing::{ReferenceLayer, correlated, mse, near, random, tl1};
    use lapidary_ir::ElemType;

    fn settings(bits: u32, group_len: usize, order: Order) -> GptqSettings {
        GptqSettings {
            spec: GridSpec {
                bits,
                symmetric: false,
                clip_exponent: None,
                scale_elem: ElemType::F16,
                scale_bits: 0,
            },
            groups: Groups::new(256, group_len),
            damping: 0.01,
            order,
            block: sweep::BLOCK,
        }
    }

    fn rel(t: &ReferenceLayer, s: &GptqSettings) -> f64 {
        t.rel(&gptq(&t.w, &t.stats.hessian, s).decode())
    }

    #[test]
    fn errors_on_the_reference_layer_are_the_known_ones() {
        let t = tl1();
        for (bits, group_len, golden) in [
            (4, 0, 0.001188),
            (4, 64, 0.000837),
            (4, 32, 0.000653),
            (3, 0, 0.005281),
            (3, 64, 0.003831),
            (3, 32, 0.003018),
            (2, 0, 0.030898),
            (2, 64, 0.023861),
            (2, 32, 0.018718),
        ] {
            near(
                rel(t, &settings(bits, group_len, Order::Given)),
                golden,
                0.02,
            );
        }
        for (bits, golden) in [(4, 0.000822), (3, 0.003765), (2, 0.023294)] {
            near(
                rel(t, &settings(bits, 64, Order::DynamicGroups)),
                golden,
                0.02,
            );
        }
        near(
            rel(t, &settings(2, 64, Order::StaticGroups)),
            0.022013,
            0.02,
        );
    }

    #[test]
    fn outputs_gain_while_weights_lose() {
        let t = tl1();
        let s = settings(3, 64, Order::Given);
        let plain = rtn::round_to_nearest(&t.w, &s.spec, s.groups).decode();
        let found = gptq(&t.w, &t.stats.hessian, &s).decode();
        assert!(t.rel(&found) < t.rel(&plain));
        near(mse(&t.w, &plain), 0.0386, 0.01);
        near(mse(&t.w, &found), 0.0794, 0.02);
    }

    #[test]
    fn an_identity_hessian_rounds_to_nearest() {
        let w = random(30, 100, 3);
        let s = GptqSettings {
            groups: Groups::new(100, 30),
            ..settings(3, 0, Order::Given)
        };
        let found = gptq(&w, &Matrix::identity(100), &s).decode();
        let plain = rtn::round_to_nearest(&w, &s.spec, s.groups).decode();
        assert_eq!(found, plain);
    }

    #[test]
    fn block_length_does_not_change_the_result() {
        let x = correlated(96, 400, 5);
        let h = Statistics::from_inputs(&x).hessian;
        let w = random(20, 96, 6);
        for order in [Order::Given, Order::StaticGroups, Order::DynamicGroups] {
            for group_len in [0, 20, 32] {
                let with = |block| {
                    let s = GptqSettings {
                        groups: Groups::new(96, group_len),
                        block,
                        ..settings(4, 0, order)
                    };
                    gptq(&w, &h, &s)
                };
                let whole = with(1000);
                for block in [1, 7, 32] {
                    let same = with(block).parts.codes;
                    let other = same.iter().zip(&whole.parts.codes).filter(|(a, b)| a != b);
                    assert!(other.count() <= 2, "block {block}");
                }
            }
        }
    }

    #[test]
    fn activity_order_does_not_depend_on_the_inputs_order() {
        let (n, w) = (48, random(12, 48, 6));
        let h = Statistics::from_inputs(&correlated(n, 400, 9)).hessian;
        let shuffled: Vec<usize> = (0..n).map(|i| i * 29 % n).collect();
        let run = |order| {
            let s = GptqSettings {
                groups: Groups::new(n, 0),
                ..settings(3, 0, order)
            };
            let straight = gptq(&w, &h, &s).decode().select_columns(&shuffled);
            let moved = gptq(&w.select_columns(&shuffled), &h.select_both(&shuffled), &s).decode();
            mse(&straight, &moved)
        };
        assert!(run(Order::StaticGroups) < 1e-12);
        assert!(run(Order::Given) > 1e-6);
    }

    #[test]
    fn sum_of_squares_is_the_quadratic_error() {
        let t = tl1();
        for order in [Order::Given, Order::StaticGroups, Order::DynamicGroups] {
            let found = gptq(&t.w, &t.stats.hessian, &settings(3, 64, order));
            let delta = t.w.sub(&found.decode());
            let quadratic = delta.quadratic(&t.stats.hessian) + found.damping * delta.square_sum();
            near(found.squared_error, quadratic, 1e-6);
        }
    }

    #[test]
    fn singular_hessians_are_repaired_and_said_so() {
        let w = random(8, 40, 2);
        // Fewer rows than inputs, and one input that never fires.
        let mut x = random(10, 40, 3);
        (0..10).for_each(|r| x[(r, 5)] = 0.0);
        let h = Statistics::from_inputs(&x).hessian;
        let s = GptqSettings {
            groups: Groups::new(40, 0),
            damping: 0.0,
            ..settings(4, 0, Order::Given)
        };
        let found = gptq(&w, &h, &s);
        assert_eq!(found.assumptions.len(), 2, "{:?}", found.assumptions);
        let decoded = found.decode();
        assert!(decoded.is_finite() && (0..8).all(|r| decoded[(r, 5)] == 0.0));

        let negative = Matrix::from_fn(40, 40, |r, c| if r == c { 1.0 } else { -50.0 });
        let found = gptq(&w, &negative, &s);
        assert_eq!(found.damping, 0.0);
        assert_eq!(
            found.decode(),
            rtn::round_to_nearest(&w, &s.spec, s.groups).decode()
        );
    }
}
