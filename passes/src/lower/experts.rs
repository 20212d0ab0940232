//! Layers of experts: which steps are whose, so that the runtime may load and run experts in an order that it chooses.
//!
//! `before => after`: `choose 0, expert 0, add 0, choose 1, expert 1, add 1` becomes `choose 0, choose 1 | expert 0 | expert 1 | add 0,
//! add 1`. The sums stay in order, so results stay the same to the bit.
//!
//! An expert is found by what it works on: tokens that chose it, whose number is a symbol that a step binds. Its steps are those that
//! write nothing but values of that many rows. They form a layer where none of them needs what another expert, or a step between, makes of
//! an expert's results; and where they read weights, without which there is nothing to load.

use super::memory::{mentions, root};
use super::prepare::writes;
use lapidary_abi::Size;
use lapidary_abi::program::{
    Arg, Expert, Mixture, Place, Program, Step, ValueDecl, ValueIndex, ValueType,
};
use lapidary_ir::kernel::Kernel;
use lapidary_ir::ops::Op;
use std::collections::{BTreeSet, HashMap, HashSet};

/// Puts the steps of such layers together, and notes them in the program.
pub fn group(program: &mut Program, kernels: &[Kernel]) {
    let effects = effects(program, kernels);
    let mut order: Vec<usize> = (0..program.body.steps.len()).collect();
    let mut layers: Vec<Vec<Candidate>> = vec![];
    for next in candidates(program, kernels, &effects) {
        if let Some(last) = layers.last_mut() {
            last.push(next);
            if split(last, &effects).is_some() {
                continue;
            }
            let next = last.pop().expect("it was just added");
            layers.push(vec![next]);
        } else {
            layers.push(vec![next]);
        }
    }
    let mut end = 0;
    for layer in layers {
        // Layers one behind the other: what is between two experts of one cannot be part of another.
        let Some(Split {
            first,
            before,
            after,
        }) = split(&layer, &effects)
        else {
            continue;
        };
        if layer.len() < 2 || first < end {
            continue;
        }
        let mut at = first + before.len();
        let mut sorted = before;
        let mut mixture = Mixture::default();
        for candidate in layer {
            let begin = at as u32;
            at += candidate.steps.len();
            mixture.experts.push(Expert {
                begin,
                end: at as u32,
                tokens: Size::Sym(candidate.symbol),
            });
            sorted.extend(candidate.steps);
        }
        sorted.extend(after);
        end = first + sorted.len();
        order[first..end].copy_from_slice(&sorted);
        program.mixtures.push(mixture);
    }
    let mut steps: Vec<Option<Step>> = std::mem::take(&mut program.body.steps)
        .into_iter()
        .map(Some)
        .collect();
    program.body.steps = order.iter().filter_map(|&i| steps[i].take()).collect();
}

/// What may be an expert: the steps that work on as many rows as a symbol says, in order.
struct Candidate {
    symbol: u32,
    steps: Vec<usize>,
}

/// What steps need of each other.
struct Effects {
    /// For each step, the ones before it that it must come after.
    needs: Vec<Vec<usize>>,
    /// It does more than write its results, so that nothing is moved past it.
    fixed: Vec<bool>,
}

/// What a step may read or write.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Thing {
    Value(ValueIndex),
    Symbol(u32),
    State(u32),
    Output(u32),
}

fn effects(program: &Program, kernels: &[Kernel]) -> Effects {
    let mut writer: HashMap<Thing, usize> = HashMap::new();
    let mut readers: HashMap<Thing, Vec<usize>> = HashMap::new();
    let (mut needs, mut fixed) = (vec![], vec![]);
    for (i, step) in program.body.steps.iter().enumerate() {
        let mut need = BTreeSet::new();
        let thing = |v: ValueIndex| match program.values[root(program, v) as usize].place {
            Place::State(n) => Thing::State(n),
            Place::Output(n) => Thing::Output(n),
            _ => Thing::Value(root(program, v)),
        };
        let mut read: Vec<Thing> = mentions(step).into_iter().map(thing).collect();
        for v in mentions(step) {
            dims(&program.values[v as usize], &mut |s| {
                read.push(Thing::Symbol(s));
            });
        }
        let mut written = vec![];
        writes(step, kernels, &mut |v| written.push(thing(v)));
        match step {
            Step::Launch {
                grid, args, flops, ..
            } => {
                let sizes = args.iter().filter_map(|a| match a {
                    Arg::Size(s) => Some(s),
                    Arg::Buffer(_) => None,
                });
                for size in sizes.chain([grid, flops]) {
                    symbols(size, &mut |s| read.push(Thing::Symbol(s)));
                }
            }
            Step::BindDim { symbol, .. } | Step::BindElement { symbol, .. } => {
                written.push(Thing::Symbol(*symbol));
            }
            _ => {}
        }
        for thing in &read {
            need.extend(writer.get(thing));
        }
        for thing in &written {
            need.extend(writer.get(thing));
            need.extend(readers.remove(thing).unwrap_or_default());
        }
        for &thing in &written {
            writer.insert(thing, i);
        }
        for thing in read {
            readers.entry(thing).or_default().push(i);
        }
        need.remove(&i);
        needs.push(need.into_iter().collect());
        fixed.push(match step {
            Step::Launch { .. } | Step::BindDim { .. } | Step::BindElement { .. } => false,
            Step::Call { op, .. } => !Op::named(op).is_some_and(|op| op.pure),
            _ => true,
        });
    }
    Effects { needs, fixed }
}

/// Symbols that steps bind and whose own steps read weights, in the order in which they are bound.
fn candidates(program: &Program, kernels: &[Kernel], effects: &Effects) -> Vec<Candidate> {
    let mut bound: HashSet<u32> = HashSet::new();
    let mut found: Vec<Candidate> = vec![];
    let symbols_of = |v: ValueIndex, bound: &HashSet<u32>, into: &mut BTreeSet<u32>| {
        dims(&program.values[v as usize], &mut |s| {
            if bound.contains(&s) {
                into.insert(s);
            }
        });
    };
    for (i, step) in program.body.steps.iter().enumerate() {
        if let Step::BindDim { symbol, .. } = step {
            if bound.insert(*symbol) {
                found.push(Candidate {
                    symbol: *symbol,
                    steps: vec![],
                });
            }
            continue;
        }
        let mut all = BTreeSet::new();
        for v in mentions(step) {
            symbols_of(v, &bound, &mut all);
        }
        let mut own = true;
        writes(step, kernels, &mut |v| {
            let mut of = BTreeSet::new();
            symbols_of(v, &bound, &mut of);
            own &= !of.is_empty();
        });
        if let (Some(&symbol), 1, true, false) = (all.first(), all.len(), own, effects.fixed[i])
            && !matches!(step, Step::BindElement { .. })
        {
            let of = found.iter_mut().find(|c| c.symbol == symbol);
            of.expect("a bound symbol is a candidate").steps.push(i);
        }
    }
    let reads_weights = |&i: &usize| {
        let mentioned = mentions(&program.body.steps[i]);
        mentioned.iter().any(|&v| {
            let place = &program.values[root(program, v) as usize].place;
            matches!(place, Place::Weights { bytes, .. } if *bytes > 0)
        })
    };
    found.retain(|c| c.steps.iter().any(reads_weights));
    found
}

/// Where the steps between the first and the last of a layer go that belong to no expert.
struct Split {
    first: usize,
    before: Vec<usize>,
    after: Vec<usize>,
}

/// `None` if the experts cannot be run in any order.
fn split(layer: &[Candidate], effects: &Effects) -> Option<Split> {
    let first = layer.iter().filter_map(|c| c.steps.first()).min()?;
    let last = layer.iter().filter_map(|c| c.steps.last()).max()?;
    let mut owner: Vec<Option<usize>> = vec![None; last + 1 - first];
    for (expert, candidate) in layer.iter().enumerate() {
        for &i in &candidate.steps {
            owner[i - first] = Some(expert);
        }
    }
    // What no expert owns and needs a result of one.
    let mut behind = vec![false; owner.len()];
    let (mut before, mut after) = (vec![], vec![]);
    for i in *first..=*last {
        if effects.fixed[i] {
            return None;
        }
        let at = i - first;
        for need in effects.needs[i]
            .iter()
            .filter_map(|n| n.checked_sub(*first))
        {
            match owner[at] {
                Some(_) if behind[need] => return None,
                Some(expert) if owner[need].is_some_and(|other| other != expert) => return None,
                Some(_) => {}
                None => behind[at] |= behind[need] || owner[need].is_some(),
            }
        }
        match owner[at] {
            Some(_) => {}
            None if behind[at] => after.push(i),
            None => before.push(i),
        }
    }
    Some(Split {
        first: *first,
        before,
        after,
    })
}

/// Every symbol in the dimensions of a value.
fn dims(decl: &ValueDecl, f: &mut dyn FnMut(u32)) {
    if let ValueType::Tensor {
        dims: Some(dims), ..
    } = &decl.ty
    {
        dims.iter().for_each(|d| symbols(d, f));
    }
}

fn symbols(size: &Size, f: &mut dyn FnMut(u32)) {
    match size {
        Size::Const(_) => {}
        Size::Sym(s) => f(*s),
        Size::Add(a, b)
        | Size::Mul(a, b)
        | Size::FloorDiv(a, b)
        | Size::Mod(a, b)
        | Size::Min(a, b)
        | Size::Max(a, b) => {
            symbols(a, f);
            symbols(b, f);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::lower::testing::run;
    use crate::lower::{Lowered, Options, lower};
    use lapidary_abi::program::{Block, Expert, Step};
    use lapidary_ir::builder::Builder;
    use lapidary_ir::ops::OpError;
    use lapidary_ir::target::Target;
    use lapidary_ir::tensor::Value;
    use lapidary_ir::{Dim, ElemType, Module, Tensor, Type, ValueId, eval};
    use std::cell::Cell;

    const EXPERTS: usize = 3;
    const WIDTH: usize = 32;

    /// `x` after so many layers of experts, each of which gets the tokens whose score is above zero. What an expert gives is added to
    /// what the ones before gave; with `in_turn`, an expert works on that sum.
    fn layers(count: usize, in_turn: bool) -> (Module, Lowered) {
        let (mut m, fresh) = (Module::new("t"), Cell::new(0));
        let shape = |n: usize| [Dim::sym("tokens"), Dim::from(n as i64)];
        let x = m.add_input(Module::TOP, "x", Type::tensor(ElemType::F32, shape(WIDTH)));
        let scores = m.add_input(
            Module::TOP,
            "scores",
            Type::tensor(ElemType::F32, shape(EXPERTS)),
        );
        let mut b = Builder::new(&mut m, Module::TOP, "n", &fresh);
        let mut seed = 0.0;
        let mut expert = |b: &mut Builder, x, sum, e: i64| -> Result<ValueId, OpError> {
            seed += 1.0;
            let weight: Vec<f64> = (0..WIDTH * WIDTH)
                .map(|i| (i as f64 * 0.37 + seed).sin())
                .collect();
            let weight = b.constant(&Tensor::from_f64(ElemType::F32, [WIDTH, WIDTH], weight));
            let score = b.slice(scores, 1, e, e + 1)?;
            let score = b.squeeze(score, &[1])?;
            let zero = b.lit(score, 0.0)?;
            let chosen = b.op("greater", &[score, zero])?;
            let places = b.op("non_zero", &[chosen])?;
            let places = b.transpose(places, &[1, 0])?;
            let rows = b.squeeze(places, &[1])?;
            let own = b.op_with("gather", &[x, rows], [("axis", 0i64.into())])?;
            let y = b.op("matmul", &[own, weight])?;
            let y = b.op("tanh", &[y])?;
            let y = b.op("matmul", &[y, weight])?;
            b.op_with(
                "scatter_nd",
                &[sum, places, y],
                [("reduction", "add".into())],
            )
        };
        let mut sum = x;
        for _ in 0..count {
            let x = sum;
            for e in 0..EXPERTS {
                let of = if in_turn { sum } else { x };
                sum = expert(&mut b, of, sum, e as i64).expect("fits");
            }
        }
        m.region_mut(Module::TOP).outputs.push(sum);
        m.output_names.push("y".into());
        let lowered = lower(&m, &Target::x86_64(), &Options::default()).expect("lowers");
        (m, lowered)
    }

    /// Tokens, and scores by which some choose two experts, some one, and none the last.
    fn inputs() -> Vec<Value> {
        const TOKENS: usize = 5;
        let of = |shape: [usize; 2], f: &dyn Fn(usize) -> f64| {
            let values = (0..shape[0] * shape[1]).map(f).collect();
            Value::Tensor(Tensor::from_f64(ElemType::F32, shape, values))
        };
        let score = |i: usize| match (i / EXPERTS, i % EXPERTS) {
            (_, 2) => -1.0,
            (token, e) => f64::from(u8::from(token % 2 == e || token == 4)),
        };
        vec![
            of([TOKENS, WIDTH], &|i| (i as f64 * 0.7).cos()),
            of([TOKENS, EXPERTS], &score),
        ]
    }

    /// The program with each layer's experts in this order.
    fn permuted(mut lowered: Lowered, order: [usize; EXPERTS]) -> Lowered {
        let body: Block = lowered.program.body.clone();
        for mixture in &lowered.program.mixtures {
            let steps = |e: &Expert| e.begin as usize..e.end as usize;
            let [first, .., last] = &mixture.experts[..] else {
                panic!("a layer of several experts")
            };
            let moved: Vec<Step> = order
                .iter()
                .flat_map(|&e| body.steps[steps(&mixture.experts[e])].to_vec())
                .collect();
            let whole = first.begin as usize..last.end as usize;
            lowered.program.body.steps.splice(whole, moved);
        }
        lowered
    }

    #[test]
    fn experts_give_the_same_in_any_order() {
        let (module, lowered) = layers(2, false);
        assert_eq!(lowered.program.mixtures.len(), 2);
        for mixture in &lowered.program.mixtures {
            assert_eq!(mixture.experts.len(), EXPERTS);
            for pair in mixture.experts.windows(2) {
                assert_eq!(pair[0].end, pair[1].begin);
            }
            for expert in &mixture.experts {
                let steps = &lowered.program.body.steps;
                let steps = &steps[expert.begin as usize..expert.end as usize];
                let launches = steps.iter().filter(|s| matches!(s, Step::Launch { .. }));
                assert!(launches.count() >= 3, "{steps:?}");
                // What only an expert uses does not outlive it.
                let is_free = |s: &&Step| matches!(s, Step::Free { .. });
                assert!(steps.iter().filter(is_free).count() >= 2, "{steps:?}");
            }
        }
        let inputs = inputs();
        let found = run(&lowered, &inputs).expect("runs");
        let want = eval::run(&module, inputs.clone()).expect("runs");
        let numbers = |v: &[Value]| match &v[0] {
            Value::Tensor(t) => t.to_f64s().expect("numbers"),
            other => panic!("{other:?}"),
        };
        for (f, w) in numbers(&found).iter().zip(numbers(&want)) {
            assert!((f - w).abs() <= 1e-4 + 1e-4 * w.abs(), "{f} {w}");
        }
        for order in [[0, 2, 1], [2, 1, 0], [1, 0, 2]] {
            let again = run(&permuted(layers(2, false).1, order), &inputs).expect("runs");
            assert_eq!(numbers(&again), numbers(&found), "{order:?}");
        }
    }

    #[test]
    fn experts_that_need_each_other_are_no_layer() {
        let (_, lowered) = layers(1, true);
        assert_eq!(lowered.program.mixtures, []);
    }
}
