//! Layers of experts: the steps of each, and what weights they read.

use super::{Decl, Op, bad};
use crate::error::RunError;
use lapidary_abi::Size;
use lapidary_abi::program::{self, Arg, Place, ValueIndex};

/// A layer of experts, which may be run in any order.
pub struct Mixture {
    pub experts: Vec<Expert>,
}

/// The steps of one expert.
pub struct Expert {
    pub ops: Vec<Op>,
    /// How many tokens chose it.
    pub tokens: Size,
    /// The weights that its steps read, in the order in which they do.
    pub weights: Vec<Part>,
}

/// Where a weight is in the weights blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    pub offset: u64,
    pub bytes: u64,
}

/// Puts the steps of each layer into one.
pub fn gather(
    ops: Vec<Op>,
    mixtures: &[program::Mixture],
    values: &[Decl],
) -> Result<Vec<Op>, RunError> {
    let count = ops.len();
    let mut left = ops.into_iter();
    let (mut out, mut at) = (Vec::with_capacity(count), 0);
    for mixture in mixtures {
        let mut experts = Vec::with_capacity(mixture.experts.len());
        for expert in &mixture.experts {
            let (begin, end) = (expert.begin as usize, expert.end as usize);
            let follows = experts.is_empty() || begin == at;
            if !follows || begin < at || end < begin || end > count {
                return bad("the steps of an expert are out of range");
            }
            out.extend(left.by_ref().take(begin - at));
            let ops: Vec<Op> = left.by_ref().take(end - begin).collect();
            at = end;
            experts.push(Expert {
                weights: weights(&ops, values),
                tokens: expert.tokens.clone(),
                ops,
            });
        }
        out.push(Op::Experts(Mixture { experts }));
    }
    out.extend(left);
    Ok(out)
}

fn weights(ops: &[Op], values: &[Decl]) -> Vec<Part> {
    let mut parts: Vec<Part> = vec![];
    let mut note = |v: ValueIndex| {
        if let Place::Weights { offset, bytes } = values[v as usize].place {
            let part = Part { offset, bytes };
            if bytes > 0 && !parts.contains(&part) {
                parts.push(part);
            }
        }
    };
    for op in ops {
        match op {
            Op::Launch { args, .. } => args.iter().for_each(|a| {
                if let Arg::Buffer(v) = a {
                    note(*v);
                }
            }),
            Op::Call { operands, .. } => operands.iter().flatten().for_each(|&v| note(v)),
            _ => {}
        }
    }
    parts
}
