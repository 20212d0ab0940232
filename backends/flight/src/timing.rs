//! Predicts how long a stream takes: the six queues under their tokens, each instruction with a duration of its own.

use crate::isa::{CLASSES, Instruction, LD, MISC, MISC_OPS, MM, MV, ST, decode, mask_bit};

/// What durations are computed from.
#[derive(Clone, Debug)]
pub struct Rates {
    /// Clock in MHz.
    pub clock_mhz: f64,
    /// Bytes per second of the memory.
    pub bandwidth: f64,
    /// Fraction of it that a load reaches.
    pub efficiency: f64,
    /// Products per cycle of class MV.
    pub mv_products: f64,
    /// Products per cycle of class MM.
    pub mm_products: f64,
    /// Numbers per cycle of the special function unit.
    pub lanes: f64,
}

impl Rates {
    /// FlightLLM's units, as its repository has them for the VHK158, at a clock in MHz beside a memory of so many bytes per second.
    pub fn flight(clock_mhz: f64, bandwidth: f64) -> Rates {
        Rates {
            clock_mhz,
            bandwidth,
            efficiency: 0.7,
            mv_products: 1024.0,
            mm_products: 4096.0,
            lanes: 16.0,
        }
    }

    /// Every assumption, for people.
    pub fn assumptions(&self) -> String {
        format!(
            "clock {} MHz; memory {:.1} GB/s, of which a load reaches {}, whatever its length and channel, without latency; \
             {} products per cycle of MV and {} of MM, zeros of sparse blocks included; {} numbers per cycle of MISC, or as many products of queries, keys and values, twice for \
             norms and softmax; an instruction is issued in no time; correction factor 1",
            self.clock_mhz,
            self.bandwidth / 1e9,
            self.efficiency,
            self.mv_products,
            self.mm_products,
            self.lanes
        )
    }

    /// Seconds that an instruction takes. `heads` and `dim`: of queries, and numbers of each.
    fn duration(&self, made: &Instruction, heads: usize, dim: usize) -> f64 {
        let k = made.get("k") as f64 * 16.0;
        let cycles = match made.class {
            LD | ST => {
                let rounds =
                    (made.get("count0") + 1) * (made.get("count1") + 1) * (made.get("count2") + 1);
                let bytes = (made.get("length") * 16 * rounds) as f64;
                return bytes / (self.bandwidth * self.efficiency);
            }
            MV => k * 16.0 / self.mv_products,
            MM => k * 256.0 / self.mm_products,
            MISC => {
                let numbers = match MISC_OPS[made.get("op")] {
                    "rms_norm" => 2.0 * k,
                    "softmax" => 2.0 * k * heads as f64,
                    "score" | "mix" => k * (heads * dim) as f64,
                    _ => k,
                };
                numbers / self.lanes
            }
            _ => 0.0,
        };
        cycles.ceil() / (self.clock_mhz * 1e6)
    }
}

/// What is predicted of a stream.
#[derive(Clone, Debug)]
pub struct Prediction {
    /// Seconds.
    pub seconds: f64,
    /// Seconds that each class is busy.
    pub busy: [f64; 6],
    /// Instructions of each class.
    pub count: [usize; 6],
}

impl Prediction {
    /// A line for each class that has instructions.
    pub fn text(&self) -> String {
        let line = |class: usize| {
            let share = self.busy[class] / self.seconds * 100.0;
            format!(
                "{:4} {:7} instructions, busy {share:.1} %\n",
                CLASSES[class].name, self.count[class]
            )
        };
        let lines: String = (0..6)
            .filter(|class| self.count[*class] > 0)
            .map(line)
            .collect();
        format!(
            "{lines}{:.1} us, {:.0} tokens/s\n",
            self.seconds * 1e6,
            1.0 / self.seconds
        )
    }
}

/// Predicts a stream. `heads` and `dim`: heads of queries of the network, and numbers of each.
///
/// # Errors
/// What is there is no stream, or its queues wait for each other.
pub fn predict(
    words: &[u32],
    rates: &Rates,
    heads: usize,
    dim: usize,
) -> Result<Prediction, String> {
    let stream = decode(words)?;
    let mut queues: [Vec<&Instruction>; 6] = Default::default();
    stream.iter().for_each(|made| queues[made.class].push(made));
    let mut tokens: [[std::collections::VecDeque<f64>; 6]; 6] = Default::default();
    let (mut next, mut free, mut busy) = ([0; 6], [0f64; 6], [0f64; 6]);
    loop {
        let mut moved = false;
        for class in 0..6 {
            while let Some(made) = queues[class].get(next[class]) {
                let of = |mask: &str, other: usize| {
                    mask_bit(class, other).is_some_and(|b| made.get(mask) >> b & 1 == 1)
                };
                if (0..6).any(|o| of("wait", o) && tokens[o][class].is_empty()) {
                    break;
                }
                let mut start = free[class];
                for other in (0..6).filter(|o| of("wait", *o)) {
                    start = tokens[other][class]
                        .pop_front()
                        .map_or(start, |at| start.max(at));
                }
                let duration = rates.duration(made, heads, dim);
                free[class] = start + duration;
                busy[class] += duration;
                (0..6)
                    .filter(|o| of("release", *o))
                    .for_each(|o| tokens[class][o].push_back(free[class]));
                next[class] += 1;
                moved = true;
            }
        }
        if !moved {
            break;
        }
    }
    match (0..6).all(|class| next[class] == queues[class].len()) {
        true => Ok(Prediction {
            seconds: free.into_iter().fold(0.0, f64::max),
            busy,
            count: next,
        }),
        false => Err("deadlock: queues wait for each other".to_owned()),
    }
}
