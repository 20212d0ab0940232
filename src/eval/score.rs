//! Sums over predictions: surprise at what came, and distance from other predictions.

use lapidary_runtime::Tensor;
use std::thread;

/// Predictions of a window, one row of logits for each token.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'v> {
    bytes: &'v [u8],
    width: usize,
}

impl<'v> Rows<'v> {
    /// Of a tensor `f32[1,n,width]`.
    pub fn of(tensor: &'v Tensor, n: usize) -> Option<Rows<'v>> {
        let &[1, rows, width] = tensor.dims() else {
            return None;
        };
        let fits = tensor.elem() == lapidary_ir::ElemType::F32 && rows == n && width > 0;
        fits.then(|| Rows {
            bytes: tensor.bytes(),
            width,
        })
    }

    /// Tokens that are predicted.
    pub fn width(&self) -> usize {
        self.width
    }

    fn row(&self, i: usize) -> impl Iterator<Item = f64> + Clone + use<'v> {
        let row = &self.bytes[i * self.width * 4..(i + 1) * self.width * 4];
        row.as_chunks::<4>()
            .0
            .iter()
            .map(|&b| f64::from(f32::from_le_bytes(b)))
    }
}

/// Sums over predicted tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Score {
    /// Predictions.
    pub tokens: u64,
    /// Sum of -ln of the probability of what came.
    pub nll: f64,
    /// Sum of the Kullback-Leibler divergence of the predictions from the other ones, in nats.
    pub kl: f64,
    /// Predictions whose most probable token is the other ones'.
    pub agree: u64,
}

impl Score {
    /// Both.
    pub fn add(&mut self, more: &Score) {
        self.tokens += more.tokens;
        self.nll += more.nll;
        self.kl += more.kl;
        self.agree += more.agree;
    }

    /// Mean of -ln of the probability of what came.
    pub fn mean_nll(&self) -> f64 {
        self.nll / self.tokens.max(1) as f64
    }

    /// e to the mean surprise.
    pub fn perplexity(&self) -> f64 {
        self.mean_nll().exp()
    }

    /// Mean divergence from the other predictions, in nats.
    pub fn mean_kl(&self) -> f64 {
        self.kl / self.tokens.max(1) as f64
    }

    /// Share of predictions with the other ones' most probable token.
    pub fn agreement(&self) -> f64 {
        self.agree as f64 / self.tokens.max(1) as f64
    }
}

/// The logarithm of the sum of exponentials, and where the largest logit is first.
fn log_sum(row: impl Iterator<Item = f64> + Clone) -> (f64, usize) {
    let first = |best: (f64, usize), (i, v): (usize, f64)| if v > best.0 { (v, i) } else { best };
    let (max, at) = row.clone().enumerate().fold((f64::NEG_INFINITY, 0), first);
    (max + row.map(|v| (v - max).exp()).sum::<f64>().ln(), at)
}

/// How well rows predict the tokens that came.
pub fn score(rows: Rows, next: &[u32], threads: usize) -> Score {
    spread(next.len(), threads, |i| of_row(rows, next, i).0)
}

/// As [`score`], and how far the rows are from the original's.
pub fn compare(rows: Rows, original: Rows, next: &[u32], threads: usize) -> Score {
    spread(next.len(), threads, |i| {
        let (own, sum, best) = of_row(rows, next, i);
        let (from, theirs) = log_sum(original.row(i));
        let terms = original.row(i).zip(rows.row(i));
        // A token that the original excludes has no share in it.
        let kl = terms.map(|(p, q)| match (p - from).exp() {
            0.0 => 0.0,
            share => share * ((p - from) - (q - sum)),
        });
        Score {
            kl: kl.sum(),
            agree: u64::from(best == theirs),
            ..own
        }
    })
}

fn of_row(rows: Rows, next: &[u32], i: usize) -> (Score, f64, usize) {
    let (sum, best) = log_sum(rows.row(i));
    let came = rows
        .row(i)
        .nth(next[i] as usize)
        .unwrap_or(f64::NEG_INFINITY);
    let own = Score {
        tokens: 1,
        nll: sum - came,
        ..Score::default()
    };
    (own, sum, best)
}

/// The sum over `0..n`, in parts for threads that are added in order, so that the sum is always the same.
fn spread(n: usize, threads: usize, of: impl Fn(usize) -> Score + Sync) -> Score {
    let part = n.div_ceil(threads.max(1)).max(1);
    let sum = |begin: usize| {
        let mut sum = Score::default();
        (begin..(begin + part).min(n)).for_each(|i| sum.add(&of(i)));
        sum
    };
    let sum = &sum;
    let mut all = Score::default();
    thread::scope(|scope| {
        let begin = |begin: usize| scope.spawn(move || sum(begin));
        let parts: Vec<_> = (0..n).step_by(part).map(begin).collect();
        for part in parts {
            all.add(
                &part
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            );
        }
    });
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(rows: &[&[f32]]) -> Tensor {
        let width = rows[0].len();
        Tensor::from_f32(vec![1, rows.len(), width], &rows.concat())
            .expect("the values fill the shape")
    }

    #[test]
    fn known_distributions_have_their_known_scores() {
        let ln = |v: f64| v.ln() as f32;
        // Probabilities 1/2, 1/4, 1/4 and, shifted by a constant, 1/4, 1/4, 1/2.
        let own = tensor(&[
            &[ln(0.5), ln(0.25), ln(0.25)],
            &[ln(0.25) + 3.0, ln(0.25) + 3.0, ln(0.5) + 3.0],
        ]);
        let other = tensor(&[&[0.0, 0.0, 0.0], &[ln(0.25), ln(0.25), ln(0.5)]]);
        let (own, other) = (
            Rows::of(&own, 2).expect("rows"),
            Rows::of(&other, 2).expect("rows"),
        );
        for threads in [1, 2, 5] {
            let found = compare(own, other, &[1, 2], threads);
            let nll = 4f64.ln() + 2f64.ln();
            let uniform = (1.0 / 3.0) * ((2.0f64 / 3.0).ln() + 2.0 * (4.0f64 / 3.0).ln());
            assert_eq!(found.tokens, 2);
            assert!((found.nll - nll).abs() < 1e-6, "{found:?}");
            assert!((found.kl - uniform).abs() < 1e-6, "{found:?}");
            assert_eq!(found.agree, 2, "the first of equal logits is the largest");
            assert!((found.perplexity() - 8f64.sqrt()).abs() < 1e-6);
        }
        let same = compare(own, own, &[0, 0], 2);
        assert_eq!((same.kl, same.agree), (0.0, 2));
    }

    #[test]
    fn excluded_tokens_have_no_share() {
        let own = tensor(&[&[0.0, f32::NEG_INFINITY]]);
        let found = compare(
            Rows::of(&own, 1).expect("rows"),
            Rows::of(&own, 1).expect("rows"),
            &[0],
            1,
        );
        assert_eq!((found.nll, found.kl), (0.0, 0.0));
    }
}
