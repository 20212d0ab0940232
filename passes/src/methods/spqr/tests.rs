//! SpQR on the reference layer, and on odd ones.

use super::*;
use crate::methods::statistics::Statistics;
use crate::methods::sweep::prepare;
use crate::methods::testing::{decoded, mse, near, random, tl1};
use lapidary_ir::random::SplitMix64;
use std::collections::BTreeSet;

fn settings(outlier_threshold: f64) -> SpqrSettings {
    SpqrSettings {
        outlier_threshold,
        ..SpqrSettings::default()
    }
}

#[test]
fn errors_on_the_reference_layer_are_the_known_ones() {
    let t = tl1();
    for (threshold, golden, share) in [
        (f64::INFINITY, 0.00199, 0.0),
        (0.5, 0.00152, 0.0044),
        (0.2, 0.00120, 0.0165),
        (0.1, 0.00092, 0.040),
    ] {
        let prepared = prepare(&t.stats.hessian, 0.01, false);
        let found = spqr(&t.w, prepared, &settings(threshold)).expect("sound");
        near(t.rel(&found.decode()), golden, 0.1);
        assert!((found.outlier_share() - share).abs() < 0.15 * share + 1e-9);
        near(
            found.bits_per_weight(),
            3.625 + 32.0 * found.outlier_share(),
            1e-12,
        );
    }
}

#[test]
fn planted_outliers_are_found() {
    let t = tl1();
    let (mut w, mut rng, mut planted) = (t.w.clone(), SplitMix64::new(9), BTreeSet::new());
    while planted.len() < 200 {
        planted.insert(rng.below(128 * 256));
    }
    for &at in &planted {
        let v = w.data()[at];
        w.data_mut()[at] = 12.0 * v.signum() * v.abs().max(1.0 / 16.0);
    }
    let prepared = prepare(&t.stats.hessian, 0.01, false);
    let found = spqr(&w, prepared, &settings(0.2)).expect("sound");
    let rows = found.outliers.iter().enumerate();
    let kept: BTreeSet<usize> = rows
        .flat_map(|(r, row)| row.iter().map(move |o| r * 256 + o.column))
        .collect();
    let hit = planted.intersection(&kept).count();
    assert!(hit >= 190, "{hit} of 200");
    assert!(found.outlier_share() < 0.03);
    let prepared = prepare(&t.stats.hessian, 0.01, false);
    let without = spqr(&w, prepared, &settings(f64::INFINITY)).expect("sound");
    let rel = |m: &Matrix| w.sub(m).quadratic(&t.stats.hessian);
    assert!(rel(&found.decode()) < 0.5 * rel(&without.decode()));
}

#[test]
fn the_term_is_the_parts() {
    let t = tl1();
    let prepared = prepare(&t.stats.hessian, 0.01, false);
    let found = spqr(&t.w, prepared, &settings(0.2)).expect("sound");
    let term = found.encoding();
    assert!(mse(&found.decode(), &decoded(&term)) < 1e-12);
    // Besides the formula's: an index of 8 bits less than a column, rows' starts, and the factor 1.
    let count = found.outlier_share() * 128.0 * 256.0;
    let bits = found.bits_per_weight() * 128.0 * 256.0 - 8.0 * count + 129.0 * 32.0 + 16.0;
    near(term.stored_bytes() as f64 * 8.0, bits, 1e-9);
}

#[test]
fn adding_and_replacing_read_the_same() {
    let t = tl1();
    let prepared = prepare(&t.stats.hessian, 0.01, true);
    let found = spqr(&t.w, prepared, &settings(0.1)).expect("sound");
    let mut summed = found.dense();
    for (r, row) in found.additive_outliers().iter().enumerate() {
        row.iter().for_each(|o| summed[(r, o.column)] += o.value);
    }
    let decoded = found.decode().select_columns(&found.order);
    assert!(mse(&decoded, &summed) < 1e-28);
}

#[test]
fn ragged_and_degenerate_layers_are_encoded() {
    for (rows, columns) in [(1, 1), (17, 33), (40, 16)] {
        let x = random(60, columns, 3);
        let h = Statistics::from_inputs(&x).hessian;
        for w in [random(rows, columns, 4), Matrix::zeros(rows, columns)] {
            let found = spqr(&w, prepare(&h, 0.01, true), &settings(0.2)).expect("sound");
            let decoded = found.decode();
            assert!(decoded.is_finite());
            assert!(w.sub(&decoded).square_sum() <= 0.2 * w.square_sum());
        }
    }
    let w = random(2, 4, 1);
    let bad = SpqrSettings {
        bits: 1,
        ..SpqrSettings::default()
    };
    assert!(spqr(&w, prepare(&Matrix::identity(4), 0.0, false), &bad).is_err());
}
