//! ZipLM: every layer at several widths by exact removal, and the widths that are fastest for their error.
//!
//! A layer's structures are removed one by one, each time the one that costs least, with the rest updated to make up for it
//! ([`obs`](crate::methods::obs)); on the way the weight is kept at the widths of a grid. What each width takes is measured
//! on the target; over all layers the choice is a knapsack of errors and times.
//! Source: Kurtic, Frantar, Alistarh, "ZipLM: Inference-Aware Structured Pruning of Language Models", section 3.

use crate::methods::factor::Singular;
use crate::methods::matrix::Matrix;
use crate::methods::obs::Surgeon;
use crate::search::knapsack::{self, Choice, KnapsackError, Solution};

/// A layer with some of its structures removed.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Structures that are left.
    pub left: usize,
    /// Those that are gone, by their places in what was given, in the order that they went.
    pub gone: Vec<usize>,
    /// The weight `[O, I]` with its updates, zero in the columns that are gone.
    pub weight: Matrix,
    /// `tr(Δ H Δ^T) / tr(W H W^T)`.
    pub error: f64,
}

/// Widths from all down to none, each at most nine tenths of the one before, rounded down to a multiple of `multiple` (what
/// kernels compute at once), without repetitions.
pub fn widths(all: usize, multiple: usize) -> Vec<usize> {
    let multiple = multiple.max(1);
    let mut out = vec![all];
    let mut width = all;
    while width > 0 {
        let next = (width as f64 * 0.9) as usize;
        width = next.min(width - 1) / multiple * multiple;
        out.push(width);
    }
    out
}

/// `weight` `[O, I]` with so many `structures` (columns each) left, at each of `widths`, which fall. `hessian` must be positive
/// definite.
pub fn snapshots(
    weight: &Matrix,
    hessian: &Matrix,
    structures: &[Vec<usize>],
    widths: &[usize],
) -> Result<Vec<Snapshot>, Singular> {
    let energy = weight.quadratic(hessian);
    let mut surgeon = Surgeon::new(weight, hessian, structures.to_vec())?;
    let (mut gone, mut lost, mut out) = (vec![], 0.0, vec![]);
    for &left in widths {
        while structures.len() - gone.len() > left {
            let Some((columns, cost)) = surgeon.remove_least()? else {
                break;
            };
            let place = structures.iter().position(|s| *s == columns);
            gone.push(place.expect("it removes one of the structures"));
            lost += cost;
        }
        out.push(Snapshot {
            left,
            gone: gone.clone(),
            weight: surgeon.weight.clone(),
            error: if energy > 0.0 { lost / energy } else { 0.0 },
        });
    }
    Ok(out)
}

/// The width of each layer with the least sum of `errors[layer][width]` within `budget`, where a width takes
/// `times[layer][width]`, in the budget's unit. Errors may be weighted by how much layers matter.
pub fn choose(
    errors: &[Vec<f64>],
    times: &[Vec<f64>],
    budget: f64,
) -> Result<Solution, KnapsackError> {
    let layer = |(errors, times): (&Vec<f64>, &Vec<f64>)| {
        let pairs = errors.iter().zip(times);
        let choice = |(&error, &time): (&f64, &f64)| Choice {
            error,
            costs: vec![time],
        };
        pairs.map(choice).collect::<Vec<Choice>>()
    };
    let items: Vec<Vec<Choice>> = errors.iter().zip(times).map(layer).collect();
    knapsack::solve(&items, &[budget], knapsack::Limits::default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::methods::testing::{correlated, near, random};

    #[test]
    fn widths_fall_by_a_tenth_in_whole_multiples() {
        assert_eq!(widths(12, 4), [12, 8, 4, 0]);
        let all = widths(704, 16);
        assert!(
            all.windows(2)
                .all(|w| w[1] < w[0] && w[1] as f64 <= 0.9 * w[0] as f64)
        );
        assert!(all[1..].iter().all(|w| w.is_multiple_of(16)));
        assert_eq!(widths(3, 1), [3, 2, 1, 0]);
    }

    #[test]
    fn errors_are_those_of_the_weights_and_rise() {
        let h = correlated(24, 400, 1).gram();
        let w = random(10, 24, 2);
        let heads: Vec<Vec<usize>> = (0..6).map(|h| (4 * h..4 * h + 4).collect()).collect();
        let all = snapshots(&w, &h, &heads, &[6, 4, 2, 0]).expect("positive definite");
        let energy = w.quadratic(&h);
        for s in &all {
            let direct = w.sub(&s.weight).quadratic(&h) / energy;
            assert!((direct - s.error).abs() < 1e-6 * (1.0 + direct));
            assert_eq!(s.gone.len(), 6 - s.left);
            let columns = s.gone.iter().flat_map(|&g| &heads[g]);
            assert!(
                columns
                    .clone()
                    .all(|&c| (0..10).all(|r| s.weight[(r, c)] == 0.0))
            );
        }
        assert_eq!(all[0].weight, w);
        near(all[3].error, 1.0, 1e-6);
        assert!(all.windows(2).all(|s| s[0].error <= s[1].error));
    }

    #[test]
    fn times_decide_which_layer_shrinks() {
        // Both lose the same; the second is ten times as slow.
        let errors = vec![vec![0.0, 0.1, 0.4], vec![0.0, 0.1, 0.4]];
        let times = vec![vec![1.0, 0.9, 0.8], vec![10.0, 9.0, 8.0]];
        let found = choose(&errors, &times, 10.0).expect("fits");
        assert_eq!(found.chosen, [0, 1]);
        let whole = choose(&errors, &times, 11.0).expect("fits");
        assert_eq!(whole.chosen, [0, 0]);
        assert!(choose(&errors, &times, 1.0).is_err());
    }
}
