//! The time that a layer of experts takes whose weights are loaded while others are computed: a queue of loads, and products that begin
//! when what they need is in memory.
//!
//! It is a flow shop of two machines, of which the second takes jobs in the order in which the first gives them. Where memory has no
//! limit, Johnson's rule is best; the order that programs use ([`Order::Hebf`]) is the same where all experts take equally long to load.

use lapidary_abi::experts::{Order, Unit, leaving};
use std::cmp::Ordering;

/// What one expert is in a layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Expert {
    /// Tokens that chose it.
    pub tokens: u64,
    /// Bytes of each plane of its codes, or of each of its weights, in the order in which it needs them.
    pub planes: Vec<u64>,
    /// How many of them its tokens need.
    pub needed: usize,
    /// How many are in memory before.
    pub held: usize,
    /// Time of its products.
    pub compute: f64,
}

/// What loads and computes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Machine {
    /// Bytes that are loaded in a unit of time.
    pub rate: f64,
    /// Bytes of weights that memory holds.
    pub memory: u64,
}

/// How loads are ordered.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Policy {
    /// As programs order them.
    Order(Order),
    /// By Johnson's rule: what is loaded faster than computed first, from the fastest to load on; then the rest, down to the fastest to
    /// compute. It needs times, which programs do not have.
    Johnson,
}

/// A layer's time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Simulated {
    /// Until the last product, and the last load.
    pub total: f64,
    /// For how long products waited for weights.
    pub stall: f64,
    /// Time of loads.
    pub loading: f64,
    /// The most bytes of weights in memory.
    pub peak: u64,
}

/// Simulates a layer; `None` if memory has no room for what must be in it together.
pub fn simulate(experts: &[Expert], machine: Machine, policy: Policy) -> Option<Simulated> {
    let mut order: Vec<usize> = (0..experts.len()).collect();
    let unit = |e: usize| unit(experts, e, 0);
    match policy {
        Policy::Order(by) => order.sort_by_key(|&e| by.key(&unit(e))),
        Policy::Johnson => order.sort_by(|&a, &b| johnson(&experts[a], &experts[b], machine.rate)),
    }
    in_order(experts, machine, &order)
}

fn unit(experts: &[Expert], expert: usize, plane: usize) -> Unit {
    Unit {
        expert,
        plane,
        tokens: experts[expert].tokens,
    }
}

impl Expert {
    /// Bytes that must be loaded.
    fn missing(&self) -> u64 {
        let needed = self.planes.iter().take(self.needed);
        match self.tokens {
            0 => 0,
            _ => needed.skip(self.held).sum(),
        }
    }
}

fn johnson(a: &Expert, b: &Expert, rate: f64) -> Ordering {
    let load = |e: &Expert| e.missing() as f64 / rate;
    let loads_faster = |e: &Expert| load(e) <= e.compute;
    match (loads_faster(a), loads_faster(b)) {
        (true, true) => load(a).total_cmp(&load(b)),
        (true, false) => Ordering::Less,
        (false, true) => Ordering::Greater,
        (false, false) => b.compute.total_cmp(&a.compute),
    }
}

/// Simulates a layer whose experts are loaded in this order.
fn in_order(experts: &[Expert], machine: Machine, order: &[usize]) -> Option<Simulated> {
    let mut lanes = Lanes {
        experts,
        held: experts.iter().map(|e| e.held.min(e.planes.len())).collect(),
        finished: experts
            .iter()
            .map(|e| (e.tokens == 0).then_some(0.0))
            .collect(),
        bytes: 0,
        computed: 0.0,
        busy: 0.0,
    };
    lanes.bytes = (experts.iter().zip(&lanes.held))
        .map(|(e, &held)| e.planes[..held].iter().sum::<u64>())
        .sum();
    let (mut peak, mut loaded, mut loading) = (lanes.bytes, 0.0f64, 0.0);
    if peak > machine.memory {
        return None;
    }
    let chosen = order.iter().copied().filter(|&e| experts[e].tokens > 0);
    let (present, missing): (Vec<usize>, Vec<usize>) =
        chosen.partition(|&e| experts[e].needed <= experts[e].held);
    present.into_iter().for_each(|e| lanes.compute(e, 0.0));
    for e in missing {
        for plane in experts[e].held..experts[e].needed {
            let bytes = *experts[e].planes.get(plane)?;
            while lanes.bytes + bytes > machine.memory {
                if !lanes.let_go(loaded) {
                    loaded = lanes.next_finished(loaded)?;
                }
            }
            lanes.bytes += bytes;
            lanes.held[e] += 1;
            peak = peak.max(lanes.bytes);
            let time = bytes as f64 / machine.rate;
            loaded += time;
            loading += time;
        }
        lanes.compute(e, loaded);
    }
    Some(Simulated {
        total: lanes.computed.max(loaded),
        stall: lanes.computed - lanes.busy,
        loading,
        peak,
    })
}

/// What is in memory, and what is computed.
struct Lanes<'e> {
    experts: &'e [Expert],
    /// Planes in memory, the first ones.
    held: Vec<usize>,
    /// When an expert is not needed any more, as far as it is known.
    finished: Vec<Option<f64>>,
    /// Bytes in memory.
    bytes: u64,
    /// When the last product ends.
    computed: f64,
    /// Time of products so far.
    busy: f64,
}

impl Lanes<'_> {
    /// An expert has what it needs: it is the next to be computed.
    fn compute(&mut self, expert: usize, ready: f64) {
        let time = self.experts[expert].compute;
        self.computed = self.computed.max(ready) + time;
        self.busy += time;
        self.finished[expert] = Some(self.computed);
    }

    /// Lets go of a plane that nobody needs at this time; false if there is none.
    fn let_go(&mut self, now: f64) -> bool {
        let free = |&e: &usize| {
            let unneeded = self.held[e] > self.experts[e].needed;
            self.held[e] > 0 && (unneeded || self.finished[e].is_some_and(|end| end <= now))
        };
        let last = |e: usize| unit(self.experts, e, self.held[e] - 1);
        let first = (0..self.experts.len())
            .filter(free)
            .min_by_key(|&e| leaving(&last(e)));
        if let Some(e) = first {
            self.held[e] -= 1;
            self.bytes -= self.experts[e].planes[self.held[e]];
        }
        first.is_some()
    }

    /// When, after this time, the next expert ends that has something in memory.
    fn next_finished(&self, now: f64) -> Option<f64> {
        let ends = self.finished.iter().zip(&self.held);
        ends.filter_map(|(end, &held)| end.filter(|&end| held > 0 && end > now))
            .min_by(f64::total_cmp)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lapidary_ir::random::SplitMix64;

    const HEBF: Policy = Policy::Order(Order::Hebf);
    const FIFO: Policy = Policy::Order(Order::Fifo);
    const UNLIMITED: Machine = Machine {
        rate: 1.0,
        memory: u64::MAX,
    };

    /// An expert of equal planes, whose products take as long as it has tokens.
    fn expert(tokens: u64, planes: usize, bytes: u64) -> Expert {
        Expert {
            tokens,
            planes: vec![bytes; planes],
            needed: planes,
            held: 0,
            compute: tokens as f64,
        }
    }

    /// How many of a batch's tokens choose each of so many experts: the n-th most popular one is chosen n times as seldom as the first.
    fn zipf(rng: &mut SplitMix64, experts: usize, tokens: usize) -> Vec<u64> {
        let mut rank: Vec<usize> = (1..=experts).collect();
        (1..experts).for_each(|i| rank.swap(i, rng.below(i + 1)));
        let sum: f64 = rank.iter().map(|&r| 1.0 / r as f64).sum();
        let mut counts = vec![0; experts];
        for _ in 0..tokens {
            let mut at = rng.unit() * sum;
            let chosen = rank.iter().position(|&r| {
                at -= 1.0 / r as f64;
                at < 0.0
            });
            counts[chosen.unwrap_or(experts - 1)] += 1;
        }
        counts
    }

    /// Experts of planes and times by chance, some of them in part in memory.
    fn any(rng: &mut SplitMix64) -> Vec<Expert> {
        let count = 1 + rng.below(7);
        zipf(rng, count, 40)
            .into_iter()
            .map(|tokens| {
                let planes: Vec<u64> = (0..1 + rng.below(4))
                    .map(|_| 1 + rng.below(9) as u64)
                    .collect();
                Expert {
                    tokens,
                    needed: 1 + rng.below(planes.len()),
                    held: rng.below(planes.len() + 1),
                    compute: rng.below(20) as f64,
                    planes,
                }
            })
            .collect()
    }

    fn permutations(n: usize) -> Vec<Vec<usize>> {
        if n == 0 {
            return vec![vec![]];
        }
        let with_last = |p: Vec<usize>| {
            (0..n).map(move |at| {
                let mut p = p.clone();
                p.insert(at, n - 1);
                p
            })
        };
        permutations(n - 1)
            .into_iter()
            .flat_map(with_last)
            .collect()
    }

    #[test]
    fn loads_hide_behind_products() {
        // Loads end at 4, 8, 12; the hot expert's products last until 14, or begin at 12.
        let layer = [expert(1, 2, 2), expert(2, 2, 2), expert(10, 2, 2)];
        let hebf = simulate(&layer, UNLIMITED, HEBF).expect("it fits");
        assert_eq!((hebf.total, hebf.stall, hebf.loading), (17.0, 4.0, 12.0));
        let fifo = simulate(&layer, UNLIMITED, FIFO).expect("it fits");
        assert_eq!((fifo.total, fifo.stall, fifo.peak), (22.0, 9.0, 12));
    }

    #[test]
    fn what_is_computed_leaves_for_what_comes() {
        let layer = [expert(3, 2, 2), expert(9, 2, 2), expert(1, 2, 2)];
        let machine = Machine {
            memory: 8,
            ..UNLIMITED
        };
        // Expert 1 is computed from 4 to 13, and only then there is room for expert 2, whose loads last until 17.
        let hebf = simulate(&layer, machine, HEBF).expect("it fits");
        assert_eq!((hebf.total, hebf.peak), (18.0, 8));
        let small = Machine {
            memory: 3,
            ..UNLIMITED
        };
        assert_eq!(simulate(&layer, small, HEBF), None);
    }

    #[test]
    fn no_layer_is_faster_than_its_lanes_or_larger_than_memory() {
        let mut rng = SplitMix64::new(1);
        let mut limited = 0;
        for _ in 0..2000 {
            let layer = any(&mut rng);
            let all: u64 = layer.iter().flat_map(|e| &e.planes).sum();
            let memory = 1 + rng.below(all as usize) as u64;
            let products = layer.iter().filter(|e| e.tokens > 0);
            let products: f64 = products.map(|e| e.compute).sum();
            let loads: u64 = layer.iter().map(Expert::missing).sum();
            for policy in [HEBF, FIFO, Policy::Johnson] {
                let free = simulate(&layer, UNLIMITED, policy).expect("it fits");
                let within = simulate(
                    &layer,
                    Machine {
                        memory,
                        ..UNLIMITED
                    },
                    policy,
                );
                for found in within.iter().chain([&free]) {
                    assert_eq!(found.loading, loads as f64);
                    assert!(found.total >= found.loading.max(products), "{layer:?}");
                    assert!(found.stall >= 0.0 && found.total >= products + found.stall);
                }
                if let Some(within) = within {
                    assert!(
                        within.peak <= memory && within.total >= free.total,
                        "{layer:?}"
                    );
                    limited += u32::from(within.total > free.total);
                }
            }
        }
        assert!(limited > 100, "the limit has mattered {limited} times");
    }

    #[test]
    fn hottest_first_is_best_where_loads_are_equal() {
        let mut rng = SplitMix64::new(2);
        let mut gains = 0;
        for _ in 0..200 {
            let (count, planes) = (2 + rng.below(5), 1 + rng.below(3));
            let bytes = 1 + rng.below(6) as u64;
            let layer: Vec<Expert> = zipf(&mut rng, count, 20)
                .into_iter()
                .map(|tokens| expert(tokens, planes, bytes))
                .collect();
            let best = permutations(count)
                .iter()
                .map(|order| in_order(&layer, UNLIMITED, order).expect("it fits").total)
                .fold(f64::INFINITY, f64::min);
            let of = |policy| simulate(&layer, UNLIMITED, policy).expect("it fits").total;
            assert_eq!(of(HEBF), best, "{layer:?}");
            assert_eq!(of(Policy::Johnson), best, "{layer:?}");
            gains += u32::from(of(FIFO) > best);
        }
        assert!(gains > 100, "the order has mattered {gains} times");
    }

    #[test]
    fn johnsons_rule_is_best_without_a_limit() {
        let mut rng = SplitMix64::new(3);
        for _ in 0..100 {
            let mut layer = any(&mut rng);
            layer.truncate(6);
            // What is in memory is computed first, whatever the order.
            layer.iter_mut().for_each(|e| e.held = 0);
            let best = permutations(layer.len())
                .iter()
                .map(|order| in_order(&layer, UNLIMITED, order).expect("it fits").total)
                .fold(f64::INFINITY, f64::min);
            let found = simulate(&layer, UNLIMITED, Policy::Johnson).expect("it fits");
            assert_eq!(found.total, best, "{layer:?}");
        }
    }

    #[test]
    fn hottest_first_is_no_slower_than_fifo_on_skewed_loads() {
        let mut rng = SplitMix64::new(4);
        // Memory for all experts, and for three of them.
        for memory in [u64::MAX, 3 * 4 * 4] {
            let machine = Machine { memory, rate: 1.0 };
            let mut sums = [0.0; 2];
            for _ in 0..300 {
                let layer: Vec<Expert> = zipf(&mut rng, 8, 128)
                    .into_iter()
                    .map(|tokens| expert(tokens, 4, 4))
                    .collect();
                let of = |policy| simulate(&layer, machine, policy).expect("it fits").stall;
                let (hebf, fifo) = (of(HEBF), of(FIFO));
                assert!(memory < u64::MAX || hebf <= fifo, "{layer:?}");
                sums = [sums[0] + hebf, sums[1] + fifo];
            }
            assert!(sums[0] < 0.9 * sums[1], "{sums:?}");
        }
    }
}
