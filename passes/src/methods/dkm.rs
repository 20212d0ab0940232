//! DKM: k-means whose points belong to all centroids at once, more to near ones.
//!
//! The share of a value `w` in centroid `c_k` is `a_k = softmax(-(w - c_k)² / τ)`, and centroids move to `Σ a_k w / Σ a_k` until they
//! stay. In training this has gradients; without it, it is a k-means that is less sure of values between two centroids. Codes
//! are the nearest centroids in the end. Equal values have equal shares, so that those of all weights are those of the distinct
//! ones, of which 16-bit weights have at most 65536 (eDKM's uniquification).
//! Source: Cho et al., "DKM: Differentiable K-Means Clustering Layer for Neural Network Compression", section 3; Cho et al.,
//! "eDKM: An Efficient and Accurate Train-time Weight Clustering for Large Language Models", section 3.

use super::palette::Point;

/// Most rounds; centroids that still move then are taken as they are.
const ROUNDS: usize = 200;

/// Centroids after soft assignment, in rising order, from `centroids` on. `temperature` is τ in units of the weighted mean squared
/// distance of `points` from their nearest starting centroid; with 0, or where that distance is 0, nothing moves.
pub fn soften(points: &[Point], centroids: &[f64], temperature: f64) -> Vec<f64> {
    let mut centroids = centroids.to_vec();
    let total: f64 = points.iter().map(|p| p.weight).sum();
    let nearest = |p: &Point| {
        let squares = centroids.iter().map(|c| (p.value - c).powi(2));
        p.weight * squares.fold(f64::INFINITY, f64::min)
    };
    let tau = temperature * points.iter().map(nearest).sum::<f64>() / total;
    if !(tau > 0.0 && tau.is_finite()) {
        return centroids;
    }
    let reach = points.iter().fold(0.0, |a: f64, p| a.max(p.value.abs()));
    for _ in 0..ROUNDS {
        let moved = step(points, &centroids, tau);
        let pairs = centroids.iter().zip(&moved);
        let farthest = pairs.fold(0.0, |far: f64, (a, b)| far.max((a - b).abs()));
        centroids = moved;
        if farthest <= 1e-9 * reach {
            break;
        }
    }
    centroids.sort_by(f64::total_cmp);
    centroids
}

/// Each centroid as the mean of all points by their shares; one without any stays.
fn step(points: &[Point], centroids: &[f64], tau: f64) -> Vec<f64> {
    let mut sums = vec![(0.0, 0.0); centroids.len()];
    let mut shares = vec![0.0; centroids.len()];
    for p in points {
        let far = centroids.iter().map(|c| (p.value - c).powi(2) / tau);
        shares.iter_mut().zip(far).for_each(|(s, far)| *s = far);
        let least = shares.iter().copied().fold(f64::INFINITY, f64::min);
        shares.iter_mut().for_each(|s| *s = (least - *s).exp());
        let weight = p.weight / shares.iter().sum::<f64>();
        for ((sum, all), share) in sums.iter_mut().zip(&shares) {
            *sum += weight * share * p.value;
            *all += weight * share;
        }
    }
    let mean = |((sum, all), old): (&(f64, f64), &f64)| if *all > 0.0 { sum / all } else { *old };
    sums.iter().zip(centroids).map(mean).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::methods::palette::{distinct, kmeans};
    use crate::methods::testing::random;

    fn far(a: &[f64], b: &[f64]) -> f64 {
        let pairs = a.iter().zip(b);
        pairs.fold(0.0, |far, (a, b)| far.max((a - b).abs()))
    }

    #[test]
    fn cold_assignment_is_that_of_k_means() {
        let points = distinct(random(1, 300, 1).data().iter().map(|&v| (v, 1.0)));
        let exact = kmeans(&points, 8);
        assert!(far(&exact, &soften(&points, &exact, 1e-4)) < 1e-6);
        assert_eq!(soften(&points, &exact, 0.0), exact);
        let few = &points[..5];
        let own: Vec<f64> = few.iter().map(|p| p.value).collect();
        assert_eq!(soften(few, &own, 1.0), own);
    }

    #[test]
    fn hot_assignment_knows_the_mean_alone() {
        let points = distinct([(0.0, 1.0), (1.0, 2.0), (5.0, 1.0)].into_iter());
        let found = soften(&points, &[0.0, 3.0], 1e9);
        assert!(far(&found, &[1.75, 1.75]) < 1e-6, "{found:?}");
    }

    #[test]
    fn centroids_stay_where_soft_assignment_puts_them() {
        let points = distinct(random(1, 400, 2).data().iter().map(|&v| (v, v * v + 0.1)));
        let exact = kmeans(&points, 4);
        let soft = soften(&points, &exact, 0.5);
        assert!(far(&soft, &exact) > 1e-3);
        let cell = |p: &Point| {
            let squares = exact.iter().map(|c| (p.value - c).powi(2));
            p.weight * squares.fold(f64::INFINITY, f64::min)
        };
        let total: f64 = points.iter().map(|p| p.weight).sum();
        let tau = 0.5 * points.iter().map(cell).sum::<f64>() / total;
        for (k, centroid) in soft.iter().enumerate() {
            let share = |p: &Point| {
                let e = |c: f64| (-(p.value - c).powi(2) / tau).exp();
                p.weight * e(soft[k]) / soft.iter().map(|&c| e(c)).sum::<f64>()
            };
            let all: f64 = points.iter().map(share).sum();
            let sum: f64 = points.iter().map(|p| share(p) * p.value).sum();
            assert!((sum / all - centroid).abs() < 1e-5);
        }
    }

    #[test]
    fn equal_values_share_alike() {
        let coarse = random(1, 500, 3).map(|v| (v * 8.0).round() / 8.0);
        let merged = distinct(coarse.data().iter().map(|&v| (v, 1.0)));
        let all: Vec<Point> = coarse
            .data()
            .iter()
            .map(|&value| Point { value, weight: 1.0 })
            .collect();
        assert!(merged.len() < 80);
        let start = kmeans(&merged, 6);
        assert!(far(&soften(&merged, &start, 1.0), &soften(&all, &start, 1.0)) < 1e-9);
    }
}
