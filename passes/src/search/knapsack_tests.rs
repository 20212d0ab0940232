//! Tests of the knapsack: against exhaustive search, and on published tables.

use super::*;
use lapidary_ir::random::SplitMix64;

fn choice(error: f64, costs: &[f64]) -> Choice {
    Choice {
        error,
        costs: costs.to_vec(),
    }
}

/// Random items whose errors mostly fall with cost.
fn random_items(seed: u64, items: usize, options: usize, budgets: usize) -> Vec<Vec<Choice>> {
    let mut rng = SplitMix64::new(seed);
    let mut option = |_| {
        let costs: Vec<f64> = (0..budgets).map(|_| rng.below(9) as f64).collect();
        choice(rng.unit(), &costs)
    };
    (0..items)
        .map(|_| (0..options).map(&mut option).collect())
        .collect()
}

/// Least error of all choices that fit.
fn exhaustive(items: &[Vec<Choice>], budgets: &[f64]) -> Option<f64> {
    let mut chosen = vec![0; items.len()];
    let mut best: Option<f64> = None;
    loop {
        let picked = || {
            items
                .iter()
                .zip(&chosen)
                .map(|(item, &k): (&Vec<Choice>, &usize)| &item[k])
        };
        let fits =
            (0..budgets.len()).all(|b| picked().map(|c| c.costs[b]).sum::<f64>() <= budgets[b]);
        let error: f64 = picked().map(|c| c.error).sum();
        if fits && best.is_none_or(|e| error < e) {
            best = Some(error);
        }
        let Some(at) = (0..items.len()).find(|&i| chosen[i] + 1 < items[i].len()) else {
            return best;
        };
        chosen[at] += 1;
        chosen[..at].fill(0);
    }
}

#[test]
fn small_instances_are_solved_exactly() {
    let mut feasible = 0;
    for seed in 0..60 {
        for budgets in [
            &[25.0][..],
            &[14.0],
            &[6.0],
            &[25.0, 20.0],
            &[12.0, 15.0, 20.0],
        ] {
            let items = random_items(seed, 6, 4, budgets.len());
            let found = solve(&items, budgets, Limits::default());
            match exhaustive(&items, budgets) {
                Some(best) => {
                    let found = found.expect("there is a choice");
                    assert!((found.error - best).abs() < 1e-12, "seed {seed}");
                    assert!(found.optimal && found.bound <= found.error);
                    assert!(found.costs.iter().zip(budgets).all(|(c, b)| c <= b));
                    feasible += 1;
                }
                None => assert!(matches!(found, Err(KnapsackError::Budget { .. }))),
            }
        }
    }
    assert!(feasible > 200);
}

#[test]
fn bounds_hold_and_are_close_without_search() {
    for seed in 0..40 {
        let items = random_items(seed, 8, 4, 1);
        let found = solve(&items, &[22.0], Limits { nodes: 0 }).expect("there is a choice");
        let best = exhaustive(&items, &[22.0]).expect("there is a choice");
        assert!(found.bound <= best + 1e-12 && best <= found.error + 1e-12);
    }
    // Many items like those of a model: errors fall by 4 with each bit, sizes are uneven.
    let mut rng = SplitMix64::new(5);
    let items: Vec<Vec<Choice>> = (0..300)
        .map(|_| {
            let (size, scale) = (1.0 + 9.0 * rng.unit(), rng.unit() * rng.unit());
            let option = |k: i32| {
                let bits = 2.0 + 0.2 * f64::from(k);
                choice(scale * 4f64.powf(-bits), &[size * bits])
            };
            (0..30).map(option).collect()
        })
        .collect();
    let all: f64 = items.iter().map(|i| i[0].costs[0]).sum();
    let found = solve(&items, &[2.0 * all], Limits::default()).expect("there is a choice");
    assert!(
        found.error <= found.bound * 1.001,
        "{} {}",
        found.error,
        found.bound
    );
    assert!(found.costs[0] <= 2.0 * all);
}

#[test]
fn thousands_of_items_are_no_obstacle() {
    let mut rng = SplitMix64::new(8);
    let items: Vec<Vec<Choice>> = (0..20_000)
        .map(|_| {
            (0..3)
                .map(|k| choice(rng.unit() / f64::from(k + 1), &[f64::from(k)]))
                .collect()
        })
        .collect();
    // A budget on the middle level of all: the greedy fill has few steps to make.
    let found = solve(&items, &[20_000.0], Limits::default()).expect("there is a choice");
    assert!(found.costs[0] <= 20_000.0 && found.error <= found.bound * 1.001);
}

#[test]
fn more_budget_is_never_worse() {
    let items = random_items(3, 12, 5, 1);
    let mut last = f64::INFINITY;
    for budget in 12..60 {
        if let Ok(found) = solve(&items, &[f64::from(budget)], Limits::default()) {
            assert!(found.error <= last + 1e-12);
            last = found.error;
        }
    }
    let free: f64 = items
        .iter()
        .map(|i| i.iter().map(|c| c.error).fold(f64::INFINITY, f64::min))
        .sum();
    assert!((last - free).abs() < 1e-12);
}

#[test]
fn beaten_options_are_left_out() {
    let options = [
        choice(1.0, &[1.0]),
        choice(2.0, &[1.0]),
        choice(0.5, &[3.0]),
        choice(0.7, &[4.0]),
        choice(1.0, &[1.0]),
    ];
    assert_eq!(pareto(&options), [0, 2]);
}

#[test]
fn malformed_items_are_refused() {
    let good = vec![choice(1.0, &[1.0])];
    let limits = Limits::default();
    assert_eq!(
        solve(&[good.clone(), vec![]], &[2.0], limits),
        Err(KnapsackError::NoOption(1))
    );
    for bad in [
        choice(f64::NAN, &[1.0]),
        choice(1.0, &[]),
        choice(1.0, &[-1.0]),
    ] {
        let found = solve(&[vec![bad]], &[2.0], limits);
        assert!(matches!(found, Err(KnapsackError::Malformed(0, 1))));
    }
    let empty = solve(&[], &[2.0], limits).expect("nothing to choose");
    assert!(empty.optimal && empty.chosen.is_empty());
    let exact = solve(&[good], &[1.0], limits).expect("it fits to the last bit");
    assert_eq!(exact.chosen, [0]);
}

/// Traces, squared rounding errors at 8 and 4 bits, parameters, bit operations and latencies of ResNet-18's layers, as
/// published with HAWQ-V3.
mod resnet18 {
    pub const TRACE: [f64; 19] = [
        0.06857826, 0.03162379, 0.03298575, 0.01205663, 0.02222431, 0.00596336, 0.06931772,
        0.00807129, 0.00372905, 0.00530698, 0.00209011, 0.00737569, 0.00210454, 0.00151197,
        0.00158041, 0.00078146, 0.00451841, 0.00098745, 0.00072944,
    ];
    pub const ERROR8: [f64; 19] = [
        0.0235, 0.0125, 0.0102, 0.0082, 0.0145, 0.0344, 0.0023, 0.0287, 0.0148, 0.0333, 0.0682,
        0.0027, 0.0448, 0.0336, 0.0576, 0.1130, 0.0102, 0.0947, 0.0532,
    ];
    pub const ERROR4: [f64; 19] = [
        6.7430, 3.9691, 3.3281, 2.6796, 4.7277, 10.5966, 0.6827, 9.0942, 4.8857, 10.7599, 21.7546,
        0.8603, 14.5324, 10.9651, 18.7706, 36.4044, 3.1572, 29.6994, 17.4016,
    ];
    pub const PARAMETERS: [f64; 19] = [
        36864., 36864., 36864., 36864., 73728., 147456., 8192., 147456., 147456., 294912., 589824.,
        32768., 589824., 589824., 1179648., 2359296., 131072., 2359296., 2359296.,
    ];
    pub const OPERATIONS: [f64; 19] = [
        115605504., 115605504., 115605504., 115605504., 57802752., 115605504., 6422528.,
        115605504., 115605504., 57802752., 115605504., 6422528., 115605504., 115605504., 57802752.,
        115605504., 6422528., 115605504., 115605504.,
    ];
    pub const LATENCY4: [f64; 19] = [
        0.21094404, 0.21092674, 0.21104113, 0.21086851, 0.13642465, 0.19167506, 0.02532183,
        0.19148203, 0.19142914, 0.11395316, 0.20556011, 0.01917474, 0.20566918, 0.20566509,
        0.13185102, 0.22287786, 0.01790088, 0.22304611, 0.22286099,
    ];
    pub const LATENCY8: [f64; 19] = [
        0.36189111, 0.36211718, 0.31141909, 0.30454471, 0.19184896, 0.38948934, 0.0334169,
        0.38904905, 0.3892859, 0.19134735, 0.34307431, 0.02802354, 0.34313329, 0.34310756,
        0.21117103, 0.37376585, 0.02896843, 0.37398187, 0.37405185,
    ];
    /// Layers that must take the same width.
    pub const TIED: [(usize, usize); 3] = [(4, 6), (9, 11), (14, 16)];
}

#[test]
fn published_bit_widths_of_resnet18_are_reproduced() {
    use resnet18::*;
    let cost = |name: &str, bits: f64, l: usize| match name {
        "size" => PARAMETERS[l] / 1048576.0 * bits / 8.0,
        "bops" => OPERATIONS[l] / 1e6 * bits * bits / 1024.0,
        _ if bits == 4.0 => LATENCY4[l],
        _ => LATENCY8[l],
    };
    for (name, golden, gain) in [
        ("size", "8888888888888884844", -1.233207),
        ("bops", "8884888848884444444", -1.092024),
        ("latency", "8888848848884484844", -1.105039),
    ] {
        let layers: Vec<Vec<Choice>> = (0..19)
            .map(|l| {
                vec![
                    choice(TRACE[l] * ERROR4[l], &[cost(name, 4.0, l)]),
                    choice(TRACE[l] * ERROR8[l], &[cost(name, 8.0, l)]),
                ]
            })
            .collect();
        let total = |bits| (0..19).map(|l| cost(name, bits, l)).sum::<f64>();
        let budget = (total(4.0) + total(8.0)) / 2.0;
        let members: Vec<Vec<usize>> = (0..19)
            .filter(|l| TIED.iter().all(|t| t.1 != *l))
            .map(|l| match TIED.iter().find(|t| t.0 == l) {
                Some(t) => vec![t.0, t.1],
                None => vec![l],
            })
            .collect();
        let items: Vec<Vec<Choice>> = members
            .iter()
            .map(|m| tie(&m.iter().map(|&l| &layers[l][..]).collect::<Vec<_>>()))
            .collect();
        let found = solve(&items, &[budget], Limits::default()).expect("the middle fits");
        let mut bits = [0; 19];
        for (m, k) in members.iter().zip(&found.chosen) {
            m.iter().for_each(|&l| bits[l] = 4 + 4 * k);
        }
        let string: String = bits.iter().map(|b| b.to_string()).collect();
        assert_eq!(string, golden, "{name}");
        let all4: f64 = (0..19).map(|l| TRACE[l] * ERROR4[l]).sum();
        assert!((found.error - all4 - gain).abs() < 1e-6, "{name}");
        assert!(found.optimal);
    }
}
