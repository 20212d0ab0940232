//! Times every compression method on a random layer whose inputs are correlated.
//!
//! `cargo run --release -p lapidary-passes --example method_times -- [outputs] [inputs] [bits] [method]`; 4096, 4096, 4
//! and all methods if left out. The Hessian is given, as it is after calibration: its time is not counted.

use lapidary_ir::random::SplitMix64;
use lapidary_passes::methods::matrix::Matrix;
use lapidary_passes::methods::statistics::Statistics;
use lapidary_passes::methods::{Layer, METHODS, Settings};
use std::time::Instant;

fn main() {
    let only = std::env::args().nth(4);
    let mut args = std::env::args().skip(1).map(|a| a.parse::<usize>().ok());
    let mut next = |default| args.next().flatten().unwrap_or(default);
    let (outputs, inputs, bits) = (next(4096), next(4096), next(4));
    let mut rng = SplitMix64::new(1);
    let mut random =
        |rows, cols| Matrix::new(rows, cols, rng.normals(rows * cols)).expect("lengths agree");
    let weight = random(outputs, inputs).map(|v| v / (inputs as f64).sqrt());
    let mut x = random(inputs + inputs / 4, inputs);
    for r in 0..x.rows() {
        let row = x.row_mut(r);
        (1..inputs).for_each(|i| row[i] += 0.9 * row[i - 1]);
    }
    let statistics = Statistics::from_inputs(&x);
    let layer = Layer::new(&weight, Some(&statistics)).expect("a sound layer");
    // Computed once, before the first method.
    layer.energy();
    println!("{outputs} x {inputs}, {} threads", threads());
    let asked = |name: &str| only.as_ref().is_none_or(|only| only == name);
    for method in METHODS.iter().filter(|m| asked(m.name)) {
        let settings = Settings {
            bits: (bits as u32).clamp(*method.bits.start(), *method.bits.end()),
            ..Settings::default()
        };
        let (start, busy) = (Instant::now(), processor_seconds());
        match (method.propose)(&layer, &settings) {
            Ok(c) => println!(
                "{:12} {:7.2} s  {:7.2} s of processors  error {:.6}  {:.3} bits per weight",
                method.name,
                start.elapsed().as_secs_f64(),
                processor_seconds() - busy,
                c.error,
                c.encoding.bits_per_weight()
            ),
            Err(e) => println!("{:12} {e}", method.name),
        }
    }
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get())
}

/// Time that all threads of this process took so far, by Linux's clock ticks of 10 ms; 0 elsewhere.
fn processor_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace();
    let ticks = fields
        .skip(11)
        .take(2)
        .filter_map(|f| f.parse::<f64>().ok());
    ticks.sum::<f64>() / 100.0
}
