//! What channels, heads and blocks are worth, as published criteria measure it.
//!
//! ```text
//! minitron     head |Attn_h(x)|, neuron its input to the activation, channel its norm's output: means over data
//! block        1 - cos(x_in, x_out): how much a block turns its input
//! bn scales    |γ|, with one threshold for each group of layers; what a removed channel still gives goes to the bias
//! ld-pruner    change of the latents' mean and deviation without an operator
//! laptop-diff  squared change of the output without a layer; costs are taken to add up, a knapsack chooses
//! ```
//! Source: Muralidharan et al., "Compact Language Models via Pruning and Knowledge Distillation" (Minitron), section 2.2;
//! Castells et al., "LD-Pruner: Efficient Pruning of Latent Diffusion Models using Task-Agnostic Insights", section 3;
//! Zhang et al., "LAPTOP-Diff: Layer Pruning and Normalized Distillation for Compressing Diffusion Models", section 3;
//! "Group channel pruning and spatial attention distilling for object detection" (YOLOv4), section 3.

use crate::methods::matrix::Matrix;

/// Importance of channels: the mean over the sequence of the L2 norm over the batch. `activations` are of `[tokens, channels]`,
/// a matrix for each sequence, all of one length.
pub fn channels(activations: &[Matrix]) -> Vec<f64> {
    let Some(first) = activations.first() else {
        return vec![];
    };
    let norm = |t: usize, c: usize| {
        let squares = activations.iter().map(|a| a[(t, c)].powi(2));
        squares.sum::<f64>().sqrt()
    };
    let mean = |c: usize| {
        let all = (0..first.rows()).map(|t| norm(t, c));
        all.sum::<f64>() / first.rows().max(1) as f64
    };
    (0..first.cols()).map(mean).collect()
}

/// Importance of heads of `len` channels: as [`channels`], with the norm of a head's output at each token.
pub fn heads(activations: &[Matrix], len: usize) -> Vec<f64> {
    let norms = |a: &Matrix| {
        let of = |t: usize, h: usize| {
            let own = &a.row(t)[h * len..(h + 1) * len];
            own.iter().map(|v| v * v).sum::<f64>().sqrt()
        };
        Matrix::from_fn(a.rows(), a.cols() / len, of)
    };
    channels(&activations.iter().map(norms).collect::<Vec<_>>())
}

/// Influence of a block: the mean over tokens of `1 - cos` between its input and output `[tokens, channels]`. A token of
/// zeros counts as kept.
pub fn block_influence(input: &Matrix, output: &Matrix) -> f64 {
    let turned = (0..input.rows()).map(|t| {
        let (x, y) = (input.row(t), output.row(t));
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let length = (dot(x, x) * dot(y, y)).sqrt();
        if length > 0.0 {
            1.0 - dot(x, y) / length
        } else {
            0.0
        }
    });
    turned.sum::<f64>() / input.rows().max(1) as f64
}

/// Change of the latents without an operator: of their means, and of their deviations, element by element. Both are `[samples,
/// elements]`, of the same noise.
pub fn latent_change(with: &Matrix, without: &Matrix) -> f64 {
    let moments = |m: &Matrix, c: usize| {
        let n = m.rows().max(1) as f64;
        let mean = (0..m.rows()).map(|r| m[(r, c)]).sum::<f64>() / n;
        let square = (0..m.rows())
            .map(|r| (m[(r, c)] - mean).powi(2))
            .sum::<f64>()
            / n;
        (mean, square.sqrt())
    };
    let change = (0..with.cols()).map(|c| {
        let (a, b) = (moments(with, c), moments(without, c));
        (a.0 - b.0).abs() + (a.1 - b.1).abs()
    });
    change.sum()
}

/// Which channels of layers go by their norms' scales, where the layers of a group share one threshold: the share `ratio` of
/// the group's scales is below it, but at least `least` channels of each layer stay.
pub fn by_norm_scales(scales: &[Vec<f64>], ratio: f64, least: usize) -> Vec<Vec<usize>> {
    let mut all: Vec<(f64, usize, usize)> = scales
        .iter()
        .enumerate()
        .flat_map(|(l, s)| s.iter().enumerate().map(move |(c, v)| (v.abs(), l, c)))
        .collect();
    all.sort_by(|a, b| a.0.total_cmp(&b.0));
    let count = (all.len() as f64 * ratio.clamp(0.0, 1.0)) as usize;
    let mut gone = vec![vec![]; scales.len()];
    for &(_, layer, channel) in &all[..count] {
        if scales[layer].len() - gone[layer].len() > least {
            gone[layer].push(channel);
        }
    }
    gone.iter_mut().for_each(|g| g.sort_unstable());
    gone
}

/// What channels that are gone still add to the next layer's bias, `[O]`: their constant output `act(β)` times the sum of the
/// filter at them. `weight` is `[O, channels * taps]`, a channel's taps one after the other. Exact where no border is padded.
pub fn folded_bias(weight: &Matrix, taps: usize, gone: &[(usize, f64)]) -> Vec<f64> {
    let of = |r: usize| {
        let sums = gone.iter().map(|&(channel, value)| {
            let own = &weight.row(r)[channel * taps..(channel + 1) * taps];
            value * own.iter().sum::<f64>()
        });
        sums.sum::<f64>()
    };
    (0..weight.rows()).map(of).collect()
}

/// Rank correlation (Spearman's) of predicted and measured costs, with ties at their mean rank: how far costs of layers may
/// be taken to add up. 0 for fewer than two.
pub fn rank_correlation(predicted: &[f64], measured: &[f64]) -> f64 {
    let ranks = |v: &[f64]| -> Vec<f64> {
        let below = |x: f64| v.iter().filter(|&&y| y < x).count() as f64;
        let equal = |x: f64| v.iter().filter(|&&y| y == x).count() as f64;
        v.iter()
            .map(|&x| below(x) + (equal(x) - 1.0) / 2.0)
            .collect()
    };
    let (a, b) = (ranks(predicted), ranks(measured));
    let middle = (a.len().max(1) - 1) as f64 / 2.0;
    let dot = |x: &[f64], y: &[f64]| {
        let pairs = x.iter().zip(y);
        pairs.map(|(x, y)| (x - middle) * (y - middle)).sum::<f64>()
    };
    let length = (dot(&a, &a) * dot(&b, &b)).sqrt();
    if length > 0.0 {
        dot(&a, &b) / length
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::methods::testing::{near, random};
    use crate::search::knapsack::{self, Choice};

    #[test]
    fn importance_is_the_formula() {
        let batch = [random(3, 4, 1), random(3, 4, 2)];
        let direct: f64 = (0..3)
            .map(|t| batch[0][(t, 2)].hypot(batch[1][(t, 2)]))
            .sum();
        near(channels(&batch)[2], direct / 3.0, 1e-12);
        let of_heads = heads(&batch, 2);
        let at = |b: usize, t: usize| batch[b][(t, 2)].hypot(batch[b][(t, 3)]);
        let direct: f64 = (0..3).map(|t| at(0, t).hypot(at(1, t))).sum();
        near(of_heads[1], direct / 3.0, 1e-12);
        assert!(channels(&[]).is_empty());
    }

    #[test]
    fn a_block_that_changes_nothing_has_no_influence() {
        let x = random(5, 8, 3);
        assert!(block_influence(&x, &x.map(|v| 2.0 * v)).abs() < 1e-12);
        near(block_influence(&x, &x.map(|v| -v)), 2.0, 1e-12);
        assert_eq!(
            block_influence(&Matrix::zeros(2, 3), &Matrix::zeros(2, 3)),
            0.0
        );
    }

    #[test]
    fn an_operator_that_gives_zeros_changes_no_latents() {
        let z = random(50, 6, 4);
        assert_eq!(latent_change(&z, &z), 0.0);
        near(latent_change(&z, &z.map(|v| v + 0.5)), 3.0, 1e-9);
        assert!(latent_change(&z, &z.map(|v| 2.0 * v)) > 5.0);
    }

    #[test]
    fn groups_share_a_threshold_and_layers_keep_some() {
        let scales = vec![vec![0.1, 0.2, -0.3, 5.0], vec![1.0, -2.0, 0.01, 3.0]];
        assert_eq!(by_norm_scales(&scales, 0.5, 1), [vec![0, 1, 2], vec![2]]);
        assert_eq!(by_norm_scales(&scales, 0.5, 2), [vec![0, 1], vec![2]]);
        assert_eq!(
            by_norm_scales(&scales, 0.0, 0),
            [vec![], Vec::<usize>::new()]
        );
    }

    #[test]
    fn a_silenced_channel_is_a_constant_in_the_interior() {
        // One row of pixels, two channels, three taps; channel 1 is constant.
        let w = random(4, 6, 5);
        let x = random(1, 7, 6);
        let constant = 0.7;
        let bias = folded_bias(&w, 3, &[(1, constant)]);
        for (o, &folded) in bias.iter().enumerate() {
            for p in 1..6 {
                let tap = |k: usize| w[(o, k)] * x[(0, p + k - 1)];
                let whole: f64 = (0..3).map(|k| tap(k) + w[(o, 3 + k)] * constant).sum();
                near((0..3).map(tap).sum::<f64>() + folded, whole, 1e-9);
            }
        }
    }

    #[test]
    fn costs_of_small_residual_layers_add_up() {
        // x <- x + A_i x with small A_i in many dimensions, where changes are nearly orthogonal.
        let x = random(64, 1, 7);
        let layers: Vec<Matrix> = (0..8)
            .map(|i| random(64, 64, 10 + i).map(|v| 0.01 * v))
            .collect();
        let run = |skip: &dyn Fn(usize) -> bool| {
            let all = layers.iter().enumerate().filter(|(i, _)| !skip(*i));
            all.fold(x.clone(), |x, (_, a)| x.add(&a.mul(&x)))
        };
        let whole = run(&|_| false);
        let cost = |skip: &dyn Fn(usize) -> bool| whole.sub(&run(skip)).square_sum();
        let alone: Vec<f64> = (0..8).map(|i| cost(&|k| k == i)).collect();
        let (mut predicted, mut measured) = (vec![], vec![]);
        for set in 1..255u32 {
            let inside = |i: usize| set >> i & 1 == 1;
            predicted.push((0..8).filter(|&i| inside(i)).map(|i| alone[i]).sum());
            measured.push(cost(&inside));
        }
        assert!(rank_correlation(&predicted, &measured) > 0.8);
        // The knapsack's choice is the best of all for the sums.
        let sizes = [3.0, 1.0, 2.0, 5.0, 4.0, 1.0, 2.0, 3.0];
        let item = |i: usize| {
            let choice = |error, size| Choice {
                error,
                costs: vec![size],
            };
            vec![choice(0.0, sizes[i]), choice(alone[i], 0.0)]
        };
        let items: Vec<Vec<Choice>> = (0..8).map(item).collect();
        let found = knapsack::solve(&items, &[10.0], knapsack::Limits::default()).expect("fits");
        let best = (0..256u32)
            .filter(|set| {
                (0..8)
                    .filter(|i| set >> i & 1 == 0)
                    .map(|i| sizes[i])
                    .sum::<f64>()
                    <= 10.0
            })
            .map(|set| {
                (0..8)
                    .filter(|i| set >> i & 1 == 1)
                    .map(|i| alone[i])
                    .sum::<f64>()
            })
            .fold(f64::INFINITY, f64::min);
        near(found.error, best, 1e-9);
    }

    #[test]
    fn ranks_tell_order_alone() {
        assert_eq!(rank_correlation(&[1.0, 2.0, 3.0], &[1.0, 4.0, 90.0]), 1.0);
        assert_eq!(rank_correlation(&[1.0, 2.0, 3.0], &[3.0, 2.0, 1.0]), -1.0);
        assert_eq!(rank_correlation(&[1.0], &[2.0]), 0.0);
    }
}
