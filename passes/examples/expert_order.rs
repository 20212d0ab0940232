//! Simulates layers of experts whose weights are loaded while others are computed, in three orders.
//!
//! `cargo run --release -p lapidary-passes --example expert_order -- [experts] [choices] [load] [compute] [held]`: how many experts a layer
//! has; how many times a batch's tokens choose one, by Zipf's law; the time to load an expert, and to compute a token in it; experts that
//! memory holds. 8, 128, 16, 1 and 8 if left out. Prints the mean time and stall of 1000 layers.

use lapidary_abi::experts::Order;
use lapidary_ir::random::SplitMix64;
use lapidary_passes::predict::experts::{Expert, Machine, Policy, simulate};

fn main() {
    let mut args = std::env::args().skip(1).map(|a| a.parse::<usize>().ok());
    let mut next = |default| args.next().flatten().unwrap_or(default);
    let (count, choices) = (next(8).max(1), next(128));
    let (load, compute, held) = (next(16) as u64, next(1) as f64, next(8) as u64);
    // The weights that products of an expert read one after another.
    const WEIGHTS: usize = 3;
    let machine = Machine {
        rate: WEIGHTS as f64,
        memory: held * load * WEIGHTS as u64,
    };
    let policies = [
        ("FIFO", Policy::Order(Order::Fifo)),
        ("Johnson", Policy::Johnson),
        ("HEBF", Policy::Order(Order::Hebf)),
    ];
    println!("| order | time | stall |\n| --- | ---: | ---: |");
    for (name, policy) in policies {
        let (mut rng, mut time, mut stall) = (SplitMix64::new(1), 0.0, 0.0);
        for _ in 0..1000 {
            let mut rank: Vec<usize> = (1..=count).collect();
            (1..count).for_each(|i| rank.swap(i, rng.below(i + 1)));
            let sum: f64 = rank.iter().map(|&r| 1.0 / r as f64).sum();
            let layer: Vec<Expert> = rank
                .iter()
                .map(|&r| {
                    let tokens = (choices as f64 / r as f64 / sum).round() as u64;
                    Expert {
                        tokens,
                        planes: vec![load; WEIGHTS],
                        needed: WEIGHTS,
                        held: 0,
                        compute: tokens as f64 * compute,
                    }
                })
                .collect();
            match simulate(&layer, machine, policy) {
                Some(found) => (time, stall) = (time + found.total, stall + found.stall),
                None => return eprintln!("memory does not hold one expert"),
            }
        }
        println!("| {name} | {:.1} | {:.1} |", time / 1e3, stall / 1e3);
    }
}
