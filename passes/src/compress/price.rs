//! What levels cost a run, for budgets of latency.
//!
//! The part of the model that reads a weight is cut out and lowered with each term in the weight's place, as the whole model will be.
//! So a term that is decoded when the model is loaded costs what dense weights do, and one that has a kernel of its own what that
//! kernel does. All that a run does besides takes as long as it did. What other weights take of the caches is as if they got
//! the same.

use super::apply::substitute;
use super::levels::Tried;
use super::sites::Site;
use super::{CompressError, Failure, Goal, Means};
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

/// What each level costs that was tried with a weight, and whose candidate was kept.
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

/// A limit of time.
pub(super) struct Time<'a> {
    /// Most nanoseconds.
    pub asked: f64,
    /// What predicts.
    pub clock: &'a Clock<'a>,
    /// Nanoseconds of the original.
    pub whole: f64,
}

impl<'a> Time<'a> {
    /// What a goal says of time, if anything.
    pub fn of(
        module: &Module,
        goal: &Goal,
        means: &Means<'a>,
    ) -> Result<Option<Self>, CompressError> {
        let Some(asked) = goal.latency_ns else {
            return Ok(None);
        };
        let none = || CompressError::Clock("there is no machine to predict for".into());
        let clock = means.clock.ok_or_else(none)?;
        (means.progress)("predict");
        let mut time = Time {
            asked,
            clock,
            whole: 0.0,
        };
        time.whole = time.of_run(module)?;
        Ok(Some(time))
    }

    /// Nanoseconds of a run of the whole model.
    pub fn of_run(&self, module: &Module) -> Result<f64, CompressError> {
        let cost = (self.clock)(module, 0.0).map_err(CompressError::Clock)?;
        Ok(cost.ns)
    }

    /// What the weights may take; the rest of a run takes what it takes with all of them as they are.
    pub fn left(&self, costs: &Costs) -> f64 {
        let original = |c: &Vec<Vec<f64>>| c.first().and_then(|c| c.get(1)).copied();
        let own: f64 = costs.0.iter().filter_map(original).sum();
        self.asked - (self.whole - own).max(0.0)
    }
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

    /// What the most expensive choice takes of each budget, of each on its own.
    pub fn most(&self) -> Vec<f64> {
        let budgets = self.0.iter().flatten().next().map_or(1, Vec::len);
        let most = |b: usize| {
            let of = |costs: &Vec<Vec<f64>>| costs.iter().map(|c| c[b]).fold(0.0, f64::max);
            self.0.iter().map(of).sum()
        };
        (0..budgets).map(most).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::levels::{Kept, Keys, try_all};
    use super::super::sites::find;
    use super::super::work::Memory;
    use super::super::{Budget, Goal, Level, Means, Recipe, compress, follow};
    use super::*;
    use crate::lower::{Options, lower};
    use crate::predict::{Setting, predict};
    use lapidary_ir::builder::Builder;
    use lapidary_ir::target::Target;
    use lapidary_ir::{ElemType, Tensor, Type};
    use std::cell::Cell;
    use std::collections::BTreeMap;

    /// As the command's, without rewriting.
    fn clock(module: &Module, beside: f64) -> Result<Cost, Failure> {
        let (target, dims) = (Target::x86_64(), BTreeMap::new());
        let lowered = lower(module, &target, &Options::default())?;
        let setting = Setting {
            target: &target,
            dims: &dims,
            beside,
        };
        Ok(Cost {
            ns: predict(&lowered.program, &lowered.kernels, &setting).ns(),
            bytes: lowered.program.weights_bytes,
        })
    }

    fn means() -> Means<'static> {
        Means {
            clock: Some(&clock),
            ..Means::default()
        }
    }

    /// Three layers for so many rows.
    fn network(rows: i64) -> Module {
        let (mut m, fresh) = (Module::new("net"), Cell::new(0));
        let mut x = m.add_input(Module::TOP, "x", Type::tensor(ElemType::F32, [rows, 96]));
        for layer in 0..3 {
            let values = lapidary_ir::random::SplitMix64::new(layer).normals(96 * 96);
            let w = Tensor::from_f64(ElemType::F32, [96, 96], values);
            let w = m.add_constant(&format!("w{layer}"), Constant::from_tensor(&w));
            let mut b = Builder::new(&mut m, Module::TOP, "n", &fresh);
            x = b.op("matmul", &[x, w]).expect("fits");
            x = b.op("relu", &[x]).expect("fits");
        }
        m.region_mut(Module::TOP).outputs.push(x);
        m.output_names.push("y".into());
        m
    }

    fn goal(latency_ns: f64, budget: Option<Budget>) -> Goal {
        Goal {
            budget,
            latency_ns: Some(latency_ns),
            ..Goal::default()
        }
    }

    #[test]
    fn runs_are_as_fast_as_asked_and_slower_ones_nearer() {
        let whole = clock(&network(64), 0.0).expect("predicts").ns;
        let mut last = f64::INFINITY;
        for share in [0.5, 0.7, 0.9, 1.01] {
            let mut m = network(64);
            let report = compress(&mut m, &goal(share * whole, None), &means()).expect("fits");
            let (before, after) = report.latency_ns.expect("limited");
            assert_eq!(before, whole);
            assert!(after <= share * whole, "{share}: {after} of {whole}");
            assert_eq!(after, clock(&m, 0.0).expect("predicts").ns);
            let (error, bound) = report.bound.expect("searched");
            assert!(
                bound <= error + 1e-12 && error < last,
                "{share}: {error} {last}"
            );
            last = error;
            // The recipe leads to the same program.
            let mut again = network(64);
            follow(&mut again, &report.recipe(), &Means::default()).expect("follows");
            assert_eq!(clock(&again, 0.0).expect("predicts").ns, after);
        }
        assert_eq!(last, 0.0);
    }

    #[test]
    fn bytes_and_time_are_both_kept() {
        let before = clock(&network(64), 0.0).expect("predicts");
        let with = |budget, share: f64| {
            let mut m = network(64);
            let report = compress(&mut m, &goal(share * before.ns, budget), &means());
            report.map(|r| (r, clock(&m, 0.0).expect("predicts")))
        };
        let small = Some(Budget::Share(0.3));
        let (report, cost) = with(small, 0.6).expect("fits");
        assert!(cost.ns <= 0.6 * before.ns && cost.bytes as f64 <= 0.3 * before.bytes as f64);
        assert!(report.bytes.1 as f64 <= 0.3 * report.bytes.0 as f64);
        // Other sizes are shown without the limit of time: more bytes, less error.
        assert!(report.front.len() > 4);
        assert!(
            report
                .front
                .windows(2)
                .all(|p| p[0].0 <= p[1].0 && p[0].1 >= p[1].1)
        );
        // Each alone allows no larger error than both.
        let error = |budget, share| {
            with(budget, share)
                .expect("fits")
                .0
                .bound
                .expect("searched")
                .0
        };
        let both = report.bound.expect("searched").0;
        assert!(error(None, 0.6) <= both + 1e-12 && error(small, 10.0) <= both + 1e-12);
    }

    #[test]
    fn what_cannot_be_is_said_with_what_could() {
        let fails = |goal: &Goal, means: &Means| {
            compress(&mut network(64), goal, means).expect_err("too fast")
        };
        let e = fails(&goal(1.0, None), &means());
        let CompressError::Latency {
            least_ns,
            in_bytes: false,
            ..
        } = e
        else {
            panic!("{e}")
        };
        // What is said to be the least is nearly possible.
        assert!(compress(&mut network(64), &goal(1.1 * least_ns, None), &means()).is_ok());
        let e = fails(&goal(1.0, Some(Budget::Share(0.5))), &means());
        assert!(
            matches!(e, CompressError::Latency { in_bytes: true, .. }),
            "{e}"
        );
        let e = fails(&goal(1e9, Some(Budget::Bytes(10))), &means());
        assert!(matches!(e, CompressError::Budget { .. }), "{e}");
        let e = fails(&goal(1e9, None), &Means::default());
        assert!(matches!(e, CompressError::Clock(_)), "{e}");
    }

    /// Levels that are decoded when a model is loaded take the time of dense weights, and others that of their kernels.
    #[test]
    fn prices_are_those_of_the_programs_that_are_made() {
        let module = network(64);
        let sites = find(&module);
        let levels = [
            Level::keep(),
            Level {
                method: "palette".into(),
                bits: 3,
                ..Level::default()
            },
            Level {
                bits: 4,
                group: 32,
                ..Level::default()
            },
            Level {
                method: "magnitude".into(),
                bits: 16,
                sparsity: 0.9,
                ..Level::default()
            },
        ];
        let memory = Memory::default();
        let kept = Kept {
            store: &memory,
            keys: Keys::ByWeight,
        };
        let tried = try_all(&module, &sites[1], &levels, None, Some(kept)).expect("made");
        let prices = price(&module, &sites, 1, &tried, &clock).expect("priced");
        let [keep, decoded, packed, sparse] = [0, 1, 2, 3].map(|i| prices[i].ns);
        assert!((decoded / keep - 1.0).abs() < 0.02, "{decoded} {keep}");
        assert!(
            packed > keep && sparse < 0.5 * keep,
            "{packed} {sparse} {keep}"
        );
        // The parts' differences are the whole's.
        let before = clock(&module, 0.0).expect("predicts").ns;
        for (level, price) in levels.into_iter().zip(&prices) {
            let mut changed = module.clone();
            let name = sites[1].name.clone();
            let weights = vec![super::super::Entry { name, level }];
            let recipe = Recipe {
                weights,
                ..Recipe::default()
            };
            follow(&mut changed, &recipe, &Means::default()).expect("follows");
            let after = clock(&changed, 0.0).expect("predicts").ns;
            assert!(
                ((after - before) - (price.ns - keep)).abs() < 0.05 * keep,
                "{after} {before}"
            );
        }
    }
}
