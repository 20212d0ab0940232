//! QuIP# on the reference layer, and its parts.

use super::*;
use crate::methods::testing::{decoded, mse, random, tl1};
use crate::methods::{Layer, Settings};

#[test]
fn turning_back_gives_the_weight() {
    for (rows, columns) in [(5, 12), (24, 40), (128, 256)] {
        let w = random(rows, columns, 1);
        let sides = Sides::new(rows, columns, 2);
        let turned = sides.turn(&w);
        assert_eq!(turned.cols() % DIM, 0);
        assert!((turned.square_sum() / w.square_sum() - 1.0).abs() < 1e-12);
        assert!(sides.turn_back(&turned).sub(&w).square_sum() < 1e-20);
    }
}

/// What a layer loses is the same before and after both are turned.
#[test]
fn the_turned_hessian_measures_the_turned_weight() {
    let t = tl1();
    let sides = Sides::new(128, 256, 4);
    let turned = sides
        .turn(&t.w)
        .quadratic(&sides.turn_hessian(&t.stats.hessian));
    assert!((turned / t.layer().energy() - 1.0).abs() < 1e-9);
}

/// The codes of a layer with and without its Hessian.
fn both(grid: &Grid) -> (Sides, QuipParts, QuipParts) {
    let t = tl1();
    let sides = Sides::new(128, 256, 0);
    let turned = sides.turn(&t.w);
    let prepared = prepare(&sides.turn_hessian(&t.stats.hessian), DAMPING, false);
    let plain = quip(&turned, None, grid, ElemType::F16);
    let fed = quip(&turned, Some(&prepared), grid, ElemType::F16);
    (sides, plain, fed)
}

#[test]
fn feedback_gains_and_so_do_bits() {
    let t = tl1();
    let mut last = f64::INFINITY;
    for (bits, normal) in [(2, 0.0916), (3, 0.0298), (4, 0.00875)] {
        let grid = Grid::of(bits).expect("known");
        let (sides, plain, fed) = both(&grid);
        let lost = mse(&t.w, &sides.turn_back(&plain.decode_turned(&grid)));
        let rel = |p: &QuipParts| t.rel(&sides.turn_back(&p.decode_turned(&grid)));
        assert!((lost / normal - 1.0).abs() < 0.1, "{bits}: {lost}");
        assert!(rel(&fed) < 0.5 * rel(&plain), "{bits}");
        assert!(rel(&fed) < 0.5 * last);
        last = rel(&fed);
    }
}

/// The sweep is LDLQ: with `h = L^T D L` of blocks, a run is rounded with the errors of the runs before it times `L`.
#[test]
fn the_sweep_is_block_feedback() {
    let (w, grid) = (random(6, 24, 8), Grid::of(2).expect("known"));
    let x = crate::methods::testing::correlated(24, 100, 9);
    let prepared = prepare(&x.gram(), DAMPING, false);
    let fed = quip(&w, Some(&prepared), &grid, ElemType::F16);
    let mut h = x.gram();
    (0..24).for_each(|i| h[(i, i)] += prepared.damping);
    // Errors e of the first n columns ask for -e h_ab h_bb^-1 in those behind: the best reaction.
    let mut values = Matrix::zeros(6, 24);
    for n in (0..24).step_by(DIM) {
        let behind = crate::methods::testing::inverse(&h.block(n..24, n..24));
        let errors = w.block(0..6, 0..n).sub(&values.block(0..6, 0..n));
        let reaction = errors.mul(&h.block(0..n, n..24)).mul(&behind);
        for r in 0..6 {
            let run = std::array::from_fn(|i| (w[(r, n + i)] + reaction[(r, i)]) / fed.scale);
            let found = grid.vector(grid.round(&run));
            (0..DIM).for_each(|i| values[(r, n + i)] = found[i] * fed.scale);
        }
    }
    assert!(values.sub(&fed.decode_turned(&grid)).square_sum() < 1e-20);
}

#[test]
fn an_identity_hessian_takes_the_nearest_vectors() {
    let (w, grid) = (random(9, 32, 5), Grid::of(3).expect("known"));
    let prepared = prepare(&Matrix::identity(32), 0.0, false);
    let plain = quip(&w, None, &grid, ElemType::F16);
    assert_eq!(quip(&w, Some(&prepared), &grid, ElemType::F16), plain);
}

#[test]
fn terms_are_the_parts_turned_back_and_of_their_bits() {
    for (rows, columns) in [(5, 12), (48, 64)] {
        let w = random(rows, columns, 6);
        let layer = Layer::new(&w, None).expect("sound");
        for bits in 2..=4 {
            let settings = Settings {
                bits,
                seed: 3,
                ..Settings::default()
            };
            let found = (QUIP.propose)(&layer, &settings).expect("a candidate");
            let sides = Sides::new(rows, columns, 3);
            let grid = Grid::of(bits).expect("known");
            let parts = quip(&sides.turn(&w), None, &grid, ElemType::F16);
            let want = sides.turn_back(&parts.decode_turned(&grid));
            assert!(mse(&want, &decoded(&found.encoding)) < 1e-10);
            let codes = (rows * columns.next_multiple_of(8)) as u64 * u64::from(bits) / 8;
            // Tables and signs beside the codes.
            assert!(
                (codes..codes + 10_000).contains(&found.bytes),
                "{}",
                found.bytes
            );
        }
    }
    let settings = Settings {
        bits: 5,
        ..Settings::default()
    };
    assert!((QUIP.propose)(&tl1().layer(), &settings).is_err());
}

#[test]
fn turning_spreads_outliers() {
    let mut w = random(32, 64, 4);
    (0..32).for_each(|r| w[(r, 9)] *= 30.0);
    let grid = Grid::of(2).expect("known");
    let straight = quip(&w, None, &grid, ElemType::F16).decode_turned(&grid);
    let sides = Sides::new(32, 64, 1);
    let turned =
        sides.turn_back(&quip(&sides.turn(&w), None, &grid, ElemType::F16).decode_turned(&grid));
    assert!(mse(&w, &turned) < 0.5 * mse(&w, &straight));
}
