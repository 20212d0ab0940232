//! Caches of keys and values that the runtime keeps between runs.
//!
//! ```text
//! after = tensor_scatter(before, x, at)      before is an input that nothing else reads, after an output
//! attention(q, after, ..)                    that nothing but attention reads
//! => append (x, at, cache)                   in place, in the panels that attention reads
//!    attention (q, cache, ..)
//! ```
//! Neither is an input or output of the program then: the cache is a state of it. Where a `round_cache` is between the two, it holds
//! halves, or older tokens are codes, and the cache is the three states of [`crate::schedules::cache::coded`].

use super::attention::plan;
use super::{KernelArg, Lowerer};
use crate::schedules::attention::{Packed, Stored};
use crate::schedules::cache::Append;
use crate::schedules::cache::coded::{AppendCoded, Codes};
use lapidary_abi::attended::{ROWS, SUFFIX};
use lapidary_ir::graph::Def;
use lapidary_ir::kernel::contraction::PANEL;
use lapidary_ir::ops::OpError;
use lapidary_ir::ops::attention::cache::{HALF, Rounding};
use lapidary_ir::{Dim, ElemType, Module, NodeId, ValueId};
use std::collections::{HashMap, HashSet};

/// Numbers of a cache line.
const LINE_NUMBERS: i64 = 16;

/// A cache.
#[derive(Clone, Copy, Debug)]
pub struct Cache {
    /// As it was before the run.
    before: ValueId,
    /// What adds to it.
    scatter: NodeId,
    /// As it is afterwards.
    after: ValueId,
    /// What makes codes of older tokens.
    rounding: Option<(NodeId, Rounding)>,
    /// What it holds.
    what: Packed,
}

impl Cache {
    /// What tokens are stored as.
    pub fn held(&self) -> Held {
        match self.rounding {
            None => Held::Numbers(ElemType::F32),
            Some((_, r)) if r.bits == HALF => Held::Numbers(ElemType::F16),
            Some((_, r)) => Held::Codes(Codes {
                bits: r.bits,
                window: r.window,
            }),
        }
    }
}

/// What tokens are stored as in a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// Panels of numbers of this type.
    Numbers(ElemType),
    /// Codes, but for the first and the newest.
    Codes(Codes),
}

/// How attention finds keys and values that caches hold; none if it cannot with both.
pub fn stored(keys: Held, values: Held) -> Option<Stored> {
    match (keys, values) {
        (Held::Numbers(of), Held::Numbers(other)) => (of == other).then_some(Stored::Cached(of)),
        (Held::Codes(keys), Held::Codes(values)) => {
            (keys.window == values.window).then_some(Stored::Coded { keys, values })
        }
        _ => None,
    }
}

/// The caches of a module, of keys and of values, by the attention that reads them.
#[derive(Clone, Debug, Default)]
pub struct Caches(HashMap<NodeId, [Cache; 2]>);

impl Caches {
    /// Finds them.
    pub fn find(module: &Module) -> Caches {
        let mut users: HashMap<ValueId, Vec<NodeId>> = HashMap::new();
        for r in module.reachable_regions() {
            for &n in &module.region(r).nodes {
                for &v in module.node(n).operands.iter().flatten() {
                    users.entry(v).or_default().push(n);
                }
            }
        }
        let outputs: HashSet<ValueId> = module.top().outputs.iter().copied().collect();
        let cache = |n: NodeId, what: Packed| -> Option<Cache> {
            let read = module
                .node(n)
                .operand(if what == Packed::Keys { 1 } else { 2 })?;
            let rounding = module
                .producer(read)
                .and_then(|r| Some((r, Rounding::find(module, r)?)));
            let (after, reader) = match rounding {
                Some((r, _)) => (module.node(r).operand(0)?, r),
                None => (read, n),
            };
            let heads = module.node(n).int("kv_num_heads").ok();
            let suits = rounding.is_none_or(|(r, rounding)| {
                rounding.along_tokens == (what == Packed::Keys)
                    && Some(rounding.heads) == heads
                    && module.node(r).operand(1) == module.node(n).operand(6)
                    && users.get(&read) == Some(&vec![n])
            });
            let scatter = module.producer(after)?;
            let node = module.node(scatter);
            let before = node.operand(0)?;
            let in_order = node.op.name == "tensor_scatter"
                && node.text("mode") == "linear"
                && matches!(node.int("axis"), Ok(-2 | 1))
                && node.operand(2).is_some();
            let own = matches!(module.value(before).def, Def::Input(Module::TOP, _))
                && users.get(&before) == Some(&vec![scatter])
                && users.get(&after) == Some(&vec![reader])
                && suits
                && outputs.contains(&after)
                && !outputs.contains(&before);
            let rank = module.value(after).ty.shape().map(<[Dim]>::len);
            (in_order && own && rank == Some(3)).then_some(Cache {
                before,
                scatter,
                after,
                rounding,
                what,
            })
        };
        let both = |&n: &NodeId| {
            if module.node(n).op.name != "attention" || plan(module, n, true).is_none() {
                return None;
            }
            let both = [cache(n, Packed::Keys)?, cache(n, Packed::Values)?];
            stored(both[0].held(), both[1].held()).map(|_| (n, both))
        };
        Caches(module.top().nodes.iter().filter_map(both).collect())
    }

    /// An error unless tokens may be taken out of every cache: an attention then sees keys in other places than their tokens had.
    pub fn evictable(&self, module: &Module) -> Result<(), OpError> {
        let refused = |n: NodeId| {
            let node = module.node(n);
            let reason = match self.of(n) {
                _ if node.op.name != "attention" => return None,
                None => "its keys and values are in no caches",
                Some(both) if both.iter().any(|c| c.rounding.is_some()) => {
                    "caches of codes (`--kv`) keep all tokens"
                }
                _ if !node.flag("is_causal")
                    || node.operand(3).is_some()
                    || node.int("left_window_size") != Ok(-1) =>
                {
                    "what it sees depends on how far tokens are apart, such as in windows"
                }
                Some(_) => return None,
            };
            Some(OpError::new(format!("tokens cannot be evicted: {reason}")))
        };
        let regions = module.reachable_regions();
        let mut nodes = regions.into_iter().flat_map(|r| &module.region(r).nodes);
        nodes.find_map(|&n| refused(n)).map_or(Ok(()), Err)
    }

    /// Those that a node reads.
    pub fn of(&self, n: NodeId) -> Option<[Cache; 2]> {
        self.0.get(&n).copied()
    }

    /// True if a value is a cache, before or after the run.
    pub fn holds(&self, v: ValueId) -> bool {
        self.0
            .values()
            .flatten()
            .any(|c| v == c.before || v == c.after)
    }

    /// True if what a node does is done where the cache is attended to: it adds to it, or makes codes.
    pub fn covers(&self, n: NodeId) -> bool {
        let own = |c: &Cache| n == c.scatter || c.rounding.is_some_and(|(r, _)| n == r);
        self.0.values().flatten().any(own)
    }
}

/// The launch that adds to a cache, for heads of this size; its parts, as attention reads them.
pub fn append(
    low: &mut Lowerer,
    cache: &Cache,
    heads: i64,
    size: i64,
) -> Result<Vec<ValueId>, OpError> {
    let node = low.facts.module.node(cache.scatter).clone();
    let (x, at) = (node.need(1)?, node.need(2)?);
    let of_cache = low.facts.shape(cache.after)?;
    let of_x = low.facts.shape(x)?;
    let [batch, capacity] = [&of_cache[0], &of_cache[1]];
    let name = low.facts.module.value(cache.before).name.clone();
    let num = super::attention::num;
    let width = Dim::from(i64::from(PANEL));
    let (count, panel) = (Dim::from(heads), Dim::from(size));
    // Columns of values are in panels of their own.
    let columns = &count * panel.ceil_div(&width);
    let (states, kernel, tokens) = match cache.held() {
        Held::Numbers(elem) => {
            let shape = match cache.what {
                Packed::Keys => [count, capacity.floor_div(&width), panel * width],
                Packed::Values => [columns, capacity.clone(), width],
            };
            let kernel = Append {
                batch: num(batch),
                heads,
                size,
                tokens: num(&of_x[1]),
                capacity: num(capacity),
                what: cache.what,
                elem,
            };
            let own = vec![(String::new(), elem, shape)];
            (own, kernel.kernel(), of_x[1].clone())
        }
        Held::Codes(form) => {
            let [slots, bytes, two] = [form.slots(), form.group_bytes(), 2].map(Dim::from);
            // Rows of groups, and groups of a row.
            let (recent, rows, groups) = match cache.what {
                Packed::Keys => (
                    [count.clone(), slots.clone(), &panel * &width],
                    [count, capacity.floor_div(&width)],
                    panel,
                ),
                Packed::Values => (
                    [columns.clone(), &slots * &width, width],
                    [columns, capacity.clone()],
                    Dim::from(1i64),
                ),
            };
            let of_groups = |each: &Dim| {
                let [a, b] = rows.clone();
                [a, b, &groups * each]
            };
            let kernel = AppendCoded {
                batch: num(batch),
                heads,
                size,
                tokens: num(&of_x[1]),
                capacity: num(capacity),
                what: cache.what,
                form,
            };
            let parts = vec![
                (".recent".to_owned(), ElemType::F32, recent),
                (".codes".to_owned(), ElemType::U8, of_groups(&bytes)),
                (".steps".to_owned(), ElemType::F16, of_groups(&two)),
            ];
            (parts, kernel.kernel(), slots)
        }
    };
    let mut state = |(part, elem, shape): (String, ElemType, [Dim; 3])| {
        let mut dims = vec![batch.clone()];
        dims.extend(shape);
        low.state(&format!("{name}{part}"), elem, dims)
    };
    let states: Vec<ValueId> = states.into_iter().map(&mut state).collect();
    let mut args: Vec<KernelArg> = [x, at].map(KernelArg::Value).into();
    args.extend(states.iter().copied().map(KernelArg::Value));
    args.extend(super::attention::unknown([batch, &of_x[1], capacity]));
    let grid = batch * &Dim::from(heads) * tokens;
    let moved = batch * &Dim::from(heads) * &of_x[1] * Dim::from(size);
    // Each number of a key goes to a cache line of its own, those of a value follow each other.
    let per_number = match cache.what {
        Packed::Keys => LINE_NUMBERS,
        Packed::Values => 1,
    };
    let grain = super::attention::grain(size * per_number);
    low.launch(kernel, &args, &grid, grain, &moved)?;
    Ok(states)
}

/// The state beside a cache of keys that counts the attention its tokens get: [`lapidary_abi::attended`].
pub fn attended(low: &mut Lowerer, keys: &Cache, heads: i64) -> Result<ValueId, OpError> {
    let of_cache = low.facts.shape(keys.after)?;
    let name = low.facts.module.value(keys.before).name.clone();
    let [heads, rows] = [Dim::from(heads), Dim::from(ROWS as i64)];
    let dims = vec![of_cache[0].clone(), heads, rows, of_cache[1].clone()];
    Ok(low.state(&format!("{name}{SUFFIX}"), ElemType::F32, dims))
}

#[cfg(test)]
mod tests {
    use crate::lower::checks::numbers;
    use crate::lower::testing::run_from;
    use crate::lower::{Options, lower};
    use lapidary_ir::builder::Builder;
    use lapidary_ir::ops::compose::Len;
    use lapidary_ir::target::Target;
    use lapidary_ir::tensor::Value;
    use lapidary_ir::types::Type;
    use lapidary_ir::{Attr, Dim, ElemType, Module, Tensor, eval};
    use std::cell::Cell;

    const HEADS: usize = 4;

    /// Attention of new tokens to all there were, two sequences, two heads of keys for four of queries.
    fn module(size: usize, attrs: &[(&str, Attr)]) -> Module {
        let mut m = Module::new("steps");
        let input = |m: &mut Module, name: &str, elem, rows: Option<&str>, width: usize| {
            let mut dims = vec![Dim::from(2i64)];
            dims.extend(rows.map(Dim::sym));
            dims.extend(rows.map(|_| Dim::from(width)));
            m.add_input(Module::TOP, name, Type::tensor(elem, dims))
        };
        let f = ElemType::F32;
        let q = input(&mut m, "q", f, Some("seq"), HEADS * size);
        let k = input(&mut m, "k", f, Some("seq"), 2 * size);
        let v = input(&mut m, "v", f, Some("seq"), 2 * size);
        let past = input(&mut m, "past", ElemType::I64, None, 0);
        let keys = input(&mut m, "keys", f, Some("capacity"), 2 * size);
        let values = input(&mut m, "values", f, Some("capacity"), 2 * size);
        let fresh = Cell::new(0);
        let mut b = Builder::new(&mut m, Module::TOP, "", &fresh);
        let new = b.lens(&[Len::Of(q, 1)]).expect("a length");
        let filled = b.op("add", &[past, new]).expect("a sum");
        let keys = b.op("tensor_scatter", &[keys, k, past]).expect("keys");
        let values = b.op("tensor_scatter", &[values, v, past]).expect("values");
        let mut all = vec![
            ("q_num_heads", Attr::Int(HEADS as i64)),
            ("kv_num_heads", Attr::Int(2)),
        ];
        all.extend(attrs.iter().cloned());
        let operands = [
            Some(q),
            Some(keys),
            Some(values),
            None,
            None,
            None,
            Some(filled),
        ];
        let y = b.multi("attention", &operands, &all, 1).expect("attention")[0];
        m.region_mut(Module::TOP).outputs = vec![keys, values, y];
        m.output_names = ["keys", "values", "y"].map(str::to_owned).into();
        m
    }

    #[test]
    fn states_hold_what_caches_would() {
        check_states(None);
    }

    #[test]
    fn caches_of_codes_and_of_halves_hold_what_was_rounded() {
        for bits in [[16, 16], [8, 8], [4, 2], [2, 4]] {
            check_states(Some(bits));
        }
    }

    /// Steps of the program and of the graph, with keys and values of so many bits, agree.
    fn check_states(kv: Option<[i64; 2]>) {
        let causal = ("is_causal", Attr::Int(1));
        let cases: &[(usize, &[(&str, Attr)])] = &[
            (8, std::slice::from_ref(&causal)),
            (40, &[]),
            (
                32,
                &[
                    causal.clone(),
                    ("left_window_size", Attr::Int(3)),
                    ("softcap", Attr::Float(2.0)),
                ],
            ),
        ];
        for (size, attrs) in cases {
            let mut module = module(*size, attrs);
            let causal = attrs.iter().any(|(name, _)| *name == "is_causal");
            if kv.is_some() && !causal {
                continue;
            }
            let options = Options {
                caches: true,
                kv,
                ..Options::default()
            };
            let lowered =
                lower(&module, &Target::x86_64(), &options).unwrap_or_else(|e| panic!("{e}"));
            if let Some(bits) = kv {
                crate::lower::kv::round(&mut module, bits).expect("rounded");
            }
            let names: Vec<&str> = lowered
                .program
                .inputs
                .iter()
                .map(|p| p.name.as_str())
                .collect();
            assert_eq!(names, ["q", "k", "v", "past"]);
            assert_eq!(
                (lowered.program.outputs.len(), lowered.program.states.len()),
                (
                    1,
                    match kv {
                        None | Some([16, 16]) => 2,
                        Some(_) => 6,
                    }
                )
            );
            const ROOM: usize = 192;
            let empty = || Value::from(numbers(&[2, ROOM, 2 * size], 0));
            let (mut caches, mut states) = ([empty(), empty()], vec![]);
            // Sequences go on from places of their own, over the border of a panel.
            let steps = [
                ([0, 0], 5),
                ([5, 3], 1),
                ([29, 30], 6),
                ([35, 34], 1),
                // Over several panels at once, back again a little, and token by token over a border.
                ([36, 35], 91),
                ([127, 126], 1),
                ([128, 127], 1),
                ([100, 105], 3),
                ([103, 108], 60),
                ([163, 168], 1),
            ];
            for (i, (past, n)) in steps.into_iter().enumerate() {
                // The places between have been filled by a run that is not compared.
                let steps = if i == 2 {
                    vec![([6, 4], 26), (past, n)]
                } else {
                    vec![(past, n)]
                };
                for (past, n) in steps {
                    let of =
                        |width: usize, seed| Value::from(numbers(&[2, n, width], seed + i as u64));
                    let given = vec![
                        of(HEADS * size, 10),
                        of(2 * size, 20),
                        of(2 * size, 30),
                        Tensor::ints(&past).into(),
                    ];
                    let all = [given.clone(), caches.to_vec()].concat();
                    let mut want = eval::run(&module, all).unwrap_or_else(|e| panic!("{e}"));
                    let y = want.pop().expect("three outputs");
                    caches = want.try_into().expect("two caches");
                    let symbols = [("capacity", ROOM as i64)];
                    let got = run_from(&lowered, &given, &symbols, &mut states)
                        .unwrap_or_else(|e| panic!("{e}"));
                    let numbers =
                        |v: &Value| v.as_tensor().and_then(Tensor::to_f64s).expect("numbers");
                    for (g, w) in numbers(&got[0]).into_iter().zip(numbers(&y)) {
                        assert!(
                            (g - w).abs() <= 1e-4 * (1.0 + w.abs()),
                            "size {size}, run {i}: {g}, not {w}"
                        );
                    }
                }
            }
        }
    }

    /// What the attention of a module gives, and its probabilities, `[2,HEADS,queries,room]`, with numbers that are added to scores.
    fn with_probabilities(module: &Module, given: Vec<Value>, bias: Tensor) -> Vec<Tensor> {
        let mut m = module.clone();
        let shape = bias.shape().to_vec();
        let mask = m.add_input(Module::TOP, "bias", Type::tensor(ElemType::F32, shape));
        let n = m.producer(m.top().outputs[2]).expect("attention");
        let mut operands = m.node(n).operands.clone();
        operands[3] = Some(mask);
        let own = m.node(n).attrs.clone();
        let mut attrs: Vec<(&str, Attr)> =
            own.iter().map(|(k, v)| (k.as_str(), v.clone())).collect();
        attrs.push(("qk_matmul_output_mode", Attr::Int(3)));
        let fresh = Cell::new(lapidary_ir::infer::first_fresh(module));
        let mut b = Builder::new(&mut m, Module::TOP, "", &fresh);
        let all = b
            .multi("attention", &operands, &attrs, 4)
            .expect("attention");
        let caches = m.top().outputs[..2].to_vec();
        m.region_mut(Module::TOP).outputs = [caches, vec![all[0], all[3]]].concat();
        m.output_names = ["keys", "values", "y", "p"].map(str::to_owned).into();
        let given = [given, vec![bias.into()]].concat();
        let found = eval::run(&m, given).unwrap_or_else(|e| panic!("{e}"));
        let tensor = |v: Value| v.as_tensor().cloned().expect("a tensor");
        found.into_iter().map(tensor).collect()
    }

    #[test]
    fn attention_is_counted_and_tokens_have_a_bias() {
        use lapidary_abi::attended::{BIAS, DECAY, LOCAL, QUERIES, ROWS, TOTAL};
        const ROOM: usize = 96;
        let causal = ("is_causal", Attr::Int(1));
        for attrs in [
            vec![causal.clone()],
            vec![causal, ("softcap", Attr::Float(2.0))],
        ] {
            let size = 40;
            let module = module(size, &attrs);
            let options = Options {
                caches: true,
                evictable: true,
                ..Options::default()
            };
            let lowered =
                lower(&module, &Target::x86_64(), &options).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(lowered.program.states.len(), 3);
            let mut caches: Vec<Value> = vec![numbers(&[2, ROOM, 2 * size], 0).into(); 2];
            // Two sequences, two heads: what is expected, and what is added to a score.
            let mut want = vec![0.0; 4 * ROWS * ROOM];
            for head in 0..4 {
                want[(head * ROWS + BIAS) * ROOM + 3] = 0.5 + head as f64;
            }
            let first = Tensor::from_f64(ElemType::F32, [2, 2, ROWS, ROOM], want.clone());
            let mut states = vec![
                Tensor::zeros(ElemType::F32, [2, 2, ROOM / 32, size * 32]).into(),
                Tensor::zeros(ElemType::F32, [2, 4, ROOM, 32]).into(),
                first.into(),
            ];
            for (i, (past, n)) in [([0, 0], 5), ([5, 3], 1), ([6, 4], 30), ([36, 34], 40)]
                .into_iter()
                .enumerate()
            {
                let of = |width: usize, seed| Value::from(numbers(&[2, n, width], seed + i as u64));
                let given = vec![
                    of(HEADS * size, 10),
                    of(2 * size, 20),
                    of(2 * size, 30),
                    Tensor::ints(&past).into(),
                ];
                let added: Vec<f64> = (0..2 * HEADS)
                    .flat_map(|head| {
                        let at = (head / 2 * ROWS + BIAS) * ROOM;
                        want[at..at + ROOM].to_vec()
                    })
                    .collect();
                let added = Tensor::from_f64(ElemType::F32, [2, HEADS, 1, ROOM], added);
                let all = [given.clone(), caches.clone()].concat();
                let mut found = with_probabilities(&module, all, added);
                let p = found
                    .pop()
                    .and_then(|p| p.to_f64s())
                    .expect("probabilities");
                let y = found.pop().and_then(|y| y.to_f64s()).expect("results");
                caches = found.into_iter().map(Value::from).collect();
                for head in 0..4 {
                    for query in 0..n {
                        let row = |r: usize, t: usize| (head * ROWS + r) * ROOM + t;
                        for t in 0..ROOM {
                            let of = |own: usize| p[((2 * head + own) * n + query) * ROOM + t];
                            let sum = of(0) + of(1);
                            want[row(TOTAL, t)] += sum;
                            want[row(LOCAL, t)] = want[row(LOCAL, t)] * f64::from(DECAY) + sum;
                            let seen = t as i64 <= past[head / 2] + query as i64;
                            want[row(QUERIES, t)] += f64::from(u8::from(seen));
                        }
                    }
                }
                let symbols = [("capacity", ROOM as i64)];
                let got = run_from(&lowered, &given, &symbols, &mut states)
                    .unwrap_or_else(|e| panic!("{e}"));
                let all = |v: &Value| v.as_tensor().and_then(Tensor::to_f64s).expect("numbers");
                let pairs = all(&got[0]).into_iter().zip(y);
                for (g, w) in pairs.chain(all(&states[2]).into_iter().zip(want.iter().copied())) {
                    assert!(
                        (g - w).abs() <= 2e-4 * (1.0 + w.abs()),
                        "run {i}: {g}, not {w}"
                    );
                }
            }
        }
    }

    #[test]
    fn tokens_of_windows_or_codes_cannot_be_evicted() {
        let refused = |attrs: &[(&str, Attr)], kv| {
            let options = Options {
                caches: true,
                evictable: true,
                kv,
                ..Options::default()
            };
            let found = lower(&module(8, attrs), &Target::x86_64(), &options);
            found.expect_err("no lowering").to_string()
        };
        let causal = ("is_causal", Attr::Int(1));
        let near = ("left_window_size", Attr::Int(3));
        assert!(refused(&[causal.clone(), near], None).contains("windows"));
        assert!(refused(&[causal], Some([4, 4])).contains("--kv"));
    }

    #[test]
    fn caches_that_are_used_otherwise_stay_inputs() {
        let mut module = module(8, &[]);
        // The caller gets the keys as they were, too.
        let keys = module.top().inputs[4];
        module.region_mut(Module::TOP).outputs.push(keys);
        let options = Options {
            caches: true,
            ..Options::default()
        };
        let error = lower(&module, &Target::x86_64(), &options).expect_err("no lowering");
        assert!(error.to_string().contains("tensor_scatter"), "{error}");
    }
}
