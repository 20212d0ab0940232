//! What levels cost a run, for budgets of latency.
//!
//! The part of the model that reads a weight is cut out and lowered with each term in the weight's place, as the whole model will be.
//! So a term that is decoded when the model is loaded costs what dense weights do, and one that has a kernel of its own what that
//! kernel does. All that a run does besides takes as long as it did. What other weights take of the caches is as if they got
//! the same.

use super::apply::substitute;
use super::levels::Tried;
use super::sites::Site;
use super::{CompressError, Failure};
use lapidary_ir::{Constant, Module, ValueId};
use std::collections::HashMap;

/// What a run of a module costs.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Predicted nanoseconds.
    pub ns: f64,
    /// Bytes of its weights as they are stored for it.
    pub bytes: u64,
}

/// Says what a module costs that is part of a larger one, which has so many times its weights besides.
pub type Clock<'a> = dyn Fn(&Module, f64) -> Result<Cost, Failure> + 'a;

/// The nodes that read a weight, as a module of their own: what else they read are its inputs, what they make its outputs.
fn part(module: &Module, weight: ValueId) -> Option<(Module, ValueId)> {
    let mut part = Module::new(&module.name);
    let mut known: HashMap<ValueId, ValueId> = HashMap::new();
    copy(module, weight, &mut part, &mut known);
    // What the weight is before it meets anything else.
    let mut inside = vec![weight];
    for &n in &module.top().nodes {
        let node = module.node(n);
        let reads = node.operands.iter().flatten().any(|v| inside.contains(v));
        if !reads || !node.regions.is_empty() {
            continue;
        }
        for &v in node.operands.iter().flatten() {
            copy(module, v, &mut part, &mut known);
        }
        let operands = node.operands.iter().map(|v| v.map(|v| known[&v])).collect();
        let types = node
            .results
            .iter()
            .map(|&v| module.value(v).ty.clone())
            .collect();
        let (name, attrs) = (&node.name, node.attrs.clone());
        let made = part.add_node(Module::TOP, node.op, name, operands, attrs, vec![], types);
        let results = part.node(made).results.clone();
        if matches!(node.op.name, "transpose" | "cast") {
            inside.extend(&node.results);
            known.extend(node.results.iter().copied().zip(results));
        } else {
            for v in results {
                part.output_names.push(format!("y{}", v.0));
                part.region_mut(Module::TOP).outputs.push(v);
            }
        }
    }
    let own = known[&weight];
    (!part.top().outputs.is_empty()).then_some((part, own))
}

/// A constant, or an input for what the model computes elsewhere.
fn copy(module: &Module, v: ValueId, part: &mut Module, known: &mut HashMap<ValueId, ValueId>) {
    known.entry(v).or_insert_with(|| {
        let info = module.value(v);
        match module.as_constant(v) {
            Some(constant) => part.add_constant(&info.name, constant.clone()),
            None => part.add_input(Module::TOP, &info.name, info.ty.clone()),
        }
    });
}

/// What each level costs that was tried with a weight, and whose terms were kept.
pub(super) fn price(
    module: &Module,
    sites: &[Site],
    index: usize,
    tried: &[Tried],
    clock: &Clock,
) -> Result<Vec<Cost>, CompressError> {
    let site = &sites[index];
    let Some((part, weight)) = part(module, site.weight) else {
        // Read in branches and loops alone: how often is not known, nor what it takes.
        let bytes = |t: &Tried| Cost {
            ns: 0.0,
            bytes: t.bytes,
        };
        return Ok(tried.iter().map(bytes).collect());
    };
    let all: usize = sites.iter().map(Site::elements).sum();
    let beside = (all - site.elements()) as f64 / site.elements().max(1) as f64;
    let site = Site {
        weight,
        name: site.name.clone(),
        ..*site
    };
    let cost = |t: &Tried| {
        let mut part = part.clone();
        if let Some(term) = t.term() {
            let term = part.add_constant(&site.name, Constant::new(term.clone()));
            let terms = [(weight, (term, &site))].into();
            substitute(&mut part, &terms).map_err(CompressError::Graph)?;
        }
        clock(&part, beside).map_err(CompressError::Clock)
    };
    tried.iter().map(cost).collect()
}

/// What every level costs of each budget: bytes, and nanoseconds if they are limited.
pub(super) struct Costs(pub Vec<Vec<Vec<f64>>>);

impl Costs {
    /// Of what was tried, and priced where time is limited.
    pub fn new(tried: &[Vec<Tried>], prices: &[Vec<Cost>]) -> Costs {
        let bytes = |t: &Vec<Tried>| t.iter().map(|t| vec![t.bytes as f64]).collect();
        let both = |p: &Vec<Cost>| p.iter().map(|c| vec![c.bytes as f64, c.ns]).collect();
        Costs(match prices {
            [] => tried.iter().map(bytes).collect(),
            _ => prices.iter().map(both).collect(),
        })
    }

    /// Of one budget, the sum over a choice.
    pub fn sum(&self, levels: &[usize], budget: usize) -> f64 {
        let of = |(costs, &level): (&Vec<Vec<f64>>, &usize)| costs[level][budget];
        self.0.iter().zip(levels).map(of).sum()
    }

    /// More bytes than any choice takes.
    pub fn most_bytes(&self) -> f64 {
        let most = |costs: &Vec<Vec<f64>>| costs.iter().map(|c| c[0]).fold(0.0, f64::max);
        self.0.iter().map(most).sum()
    }
}
