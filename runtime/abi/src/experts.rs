//! In which order the weights of a layer's experts are loaded, and in which they leave again: hottest expert, then bit, first (HEBF).
//!
//! What many tokens wait for comes first, since its products take the longest and then hide the loads behind them. For loads of equal
//! length this is Johnson's rule, which no order is better than; for others, and within a limit on memory, it is a heuristic.
//!
//! Source: "D²MoE: Dual Routing and Dynamic Scheduling for Efficient On-Device MoE-based LLM Serving" (arXiv 2504.15299).

use std::cmp::Reverse;

/// What is loaded at once: one plane of an expert's codes or, where its codes are not in planes, one of its weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unit {
    /// The expert, by its number in the layer.
    pub expert: usize,
    /// Its place in the order in which the expert needs its units: planes from the highest bits down.
    pub plane: usize,
    /// How many tokens chose the expert.
    pub tokens: u64,
}

/// An order of units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// By tokens, the most first, then by planes.
    Hebf,
    /// By experts' numbers, then by planes.
    Fifo,
}

impl Order {
    /// The order's name in options.
    pub fn named(name: &str) -> Option<Order> {
        match name {
            "hebf" => Some(Order::Hebf),
            "fifo" => Some(Order::Fifo),
            _ => None,
        }
    }

    /// Units are loaded from the least key on.
    pub fn key(self, unit: &Unit) -> impl Ord + use<> {
        let hottest = match self {
            Order::Hebf => unit.tokens,
            Order::Fifo => 0,
        };
        (Reverse(hottest), unit.expert, unit.plane)
    }
}

/// Units leave memory from the least key on: of the coldest experts the lowest bits.
pub fn leaving(unit: &Unit) -> impl Ord + use<> {
    (unit.tokens, Reverse(unit.plane), Reverse(unit.expert))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two units of each of three experts, as `(expert, plane)` in an order.
    fn sorted<K: Ord>(key: impl Fn(&Unit) -> K) -> Vec<(usize, usize)> {
        let unit = |n: usize| Unit {
            expert: n / 2,
            plane: n % 2,
            tokens: [3, 7, 3][n / 2],
        };
        let mut units: Vec<Unit> = (0..6).map(unit).collect();
        units.sort_by_key(key);
        units.iter().map(|u| (u.expert, u.plane)).collect()
    }

    #[test]
    fn hot_experts_come_first_and_leave_last() {
        let hebf = sorted(|u| Order::Hebf.key(u));
        assert_eq!(hebf, [(1, 0), (1, 1), (0, 0), (0, 1), (2, 0), (2, 1)]);
        let fifo = sorted(|u| Order::Fifo.key(u));
        assert_eq!(fifo, [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]);
        assert_eq!(
            sorted(leaving),
            [(2, 1), (0, 1), (2, 0), (0, 0), (1, 1), (1, 0)]
        );
    }
}
