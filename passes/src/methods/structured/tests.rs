//! Groups that are removed against groups that are silenced, on small programs.

use super::cut::{CutError, cut, silence};
use super::fold::cut_with_means;
use super::groups::{Dependencies, Group, Member};
use crate::methods::matrix::Matrix;
use crate::methods::statistics::Statistics;
use crate::methods::testing::{near, random};
use lapidary_ir::builder::Builder;
use lapidary_ir::infer::infer_module;
use lapidary_ir::ops::compose::Len;
use lapidary_ir::tensor::Value;
use lapidary_ir::{Attr, Constant, ElemType, Module, Tensor, Type, ValueId, eval};
use std::cell::Cell;

/// A module that is being written, with random weights.
struct Net {
    module: Module,
    fresh: Cell<u32>,
    seed: u64,
}

impl Net {
    fn new(inputs: &[&[i64]]) -> (Net, Vec<ValueId>) {
        let mut module = Module::new("net");
        let input = |(i, shape): (usize, &&[i64])| {
            let ty = Type::tensor(ElemType::F64, shape.iter().copied());
            module.add_input(Module::TOP, &format!("x{i}"), ty)
        };
        let inputs = inputs.iter().enumerate().map(input).collect();
        let net = Net {
            module,
            fresh: Cell::new(0),
            seed: 0,
        };
        (net, inputs)
    }

    fn weight(&mut self, name: &str, shape: &[usize]) -> ValueId {
        self.seed += 1;
        let values = random(1, shape.iter().product(), self.seed).data().to_vec();
        let tensor = Tensor::from_f64(ElemType::F64, shape, values);
        self.module
            .add_constant(name, Constant::from_tensor(&tensor))
    }

    fn ops<T>(&mut self, write: impl FnOnce(&mut Builder) -> T) -> T {
        write(&mut Builder::new(
            &mut self.module,
            Module::TOP,
            "n",
            &self.fresh,
        ))
    }

    fn op(&mut self, name: &str, operands: &[ValueId]) -> ValueId {
        self.ops(|b| b.op(name, operands).expect("fits"))
    }

    fn with(
        &mut self,
        name: &str,
        operands: &[ValueId],
        attrs: &[(&'static str, Attr)],
    ) -> ValueId {
        self.ops(|b| {
            b.op_with(name, operands, attrs.iter().cloned())
                .expect("fits")
        })
    }

    fn reshape(&mut self, x: ValueId, shape: &[i64]) -> ValueId {
        let lens: Vec<Len> = shape.iter().map(|&n| Len::N(n)).collect();
        self.ops(|b| b.reshape(x, &lens).expect("fits"))
    }

    fn linear(&mut self, x: ValueId, name: &str, shape: [usize; 2]) -> ValueId {
        let w = self.weight(name, &shape);
        self.op("matmul", &[x, w])
    }

    fn done(mut self, outputs: &[ValueId]) -> Module {
        for (i, &y) in outputs.iter().enumerate() {
            self.module.region_mut(Module::TOP).outputs.push(y);
            self.module.output_names.push(format!("y{i}"));
        }
        infer_module(&mut self.module);
        self.module
    }
}

fn run(module: &Module) -> Vec<f64> {
    let input = |&v: &ValueId| {
        let shape = module.value(v).ty.shape().expect("a tensor").to_vec();
        let shape: Vec<usize> = shape
            .iter()
            .map(|d| d.as_const().expect("known") as usize)
            .collect();
        let values = random(1, shape.iter().product(), 99).data().to_vec();
        Value::Tensor(Tensor::from_f64(ElemType::F64, shape, values))
    };
    let inputs = module.top().inputs.iter().map(input).collect();
    let outputs = eval::run(module, inputs).expect("evaluates");
    let tensors = outputs
        .iter()
        .map(|v| v.as_tensor().expect("a tensor").to_f64s());
    tensors.flat_map(|t| t.expect("numbers")).collect()
}

/// Removes every `step`-th of the groups with a slice of this constant and axis; the result must be what the program
/// with zeros in their place gives. Returns how many there were.
#[track_caller]
fn check(module: &Module, name: &str, axis: usize, step: usize) -> usize {
    let found = Dependencies::of(module);
    let of = |g: &&Group| {
        let mut members = g.members.iter();
        members.any(|m| m.axis == axis && module.value(m.value).name == name)
    };
    let all: Vec<&Group> = found.groups().iter().filter(of).collect();
    let some: Vec<&Group> = all.iter().copied().step_by(step).collect();
    let (mut smaller, mut silent) = (module.clone(), module.clone());
    cut(&mut smaller, &found, &some).expect("can be removed");
    silence(&mut silent, &some).expect("can be silenced");
    let (a, b, whole) = (run(&smaller), run(&silent), run(module));
    assert_eq!(a.len(), b.len());
    let far = a
        .iter()
        .zip(&b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f64::max);
    assert!(far < 1e-9, "{name}: {far}");
    if !some.is_empty() {
        assert!(
            whole.iter().zip(&a).any(|(a, b)| (a - b).abs() > 1e-6),
            "{name} had no part"
        );
    }
    all.len()
}

/// Two residual blocks with a norm: a gated one of 12 neurons, and attention by plain ops, 4 heads of 3, whose keys and
/// values have 2 heads.
fn transformer() -> Module {
    let (mut n, x) = Net::new(&[&[2, 5, 8]]);
    let gain = n.weight("norm", &[8]);
    let h = n.with(
        "rms_normalization",
        &[x[0], gain],
        &[("axis", Attr::Int(-1))],
    );
    let (gate, up) = (n.linear(h, "gate", [8, 12]), n.linear(h, "up", [8, 12]));
    let gate = n.op("swish", &[gate]);
    let h = n.op("mul", &[gate, up]);
    let h = n.linear(h, "down", [12, 8]);
    let x = n.op("add", &[x[0], h]);
    let split = |n: &mut Net, name: &str, heads: usize| {
        let v = n.linear(x, name, [8, heads * 3]);
        let v = n.reshape(v, &[2, 5, heads as i64, 3]);
        n.with("transpose", &[v], &[("perm", Attr::Ints(vec![0, 2, 1, 3]))])
    };
    let q = split(&mut n, "q", 4);
    let shared = |n: &mut Net, name: &str| {
        let v = split(n, name, 2);
        let v = n.ops(|b| b.unsqueeze(v, &[2]).expect("fits"));
        let v = n.ops(|b| b.expand(v, &[2, 2, 2, 5, 3].map(Len::N)).expect("fits"));
        n.reshape(v, &[2, 4, 5, 3])
    };
    let (k, v) = (shared(&mut n, "k"), shared(&mut n, "v"));
    let k = n.with("transpose", &[k], &[("perm", Attr::Ints(vec![0, 1, 3, 2]))]);
    let s = n.op("matmul", &[q, k]);
    let s = n.with("softmax", &[s], &[("axis", Attr::Int(-1))]);
    let h = n.op("matmul", &[s, v]);
    let h = n.with("transpose", &[h], &[("perm", Attr::Ints(vec![0, 2, 1, 3]))]);
    let h = n.reshape(h, &[2, 5, 12]);
    let h = n.linear(h, "o", [12, 8]);
    let y = n.op("add", &[x, h]);
    n.done(&[y])
}

#[test]
fn neurons_of_a_gated_block_go_with_both_rows_and_their_column() {
    let m = transformer();
    assert_eq!(check(&m, "gate", 1, 3), 12);
    let found = Dependencies::of(&m);
    let names = |g: &Group| -> Vec<(String, usize, usize)> {
        let member = |m_: &Member| (m.value(m_.value).name.clone(), m_.axis, m_.indices.len());
        g.members.iter().map(member).collect()
    };
    let of = |name: &str| {
        let all = found.groups().iter().map(names);
        all.filter(|n| n.iter().any(|m| m.0 == name))
            .collect::<Vec<_>>()
    };
    let want = [("gate", 1, 1), ("up", 1, 1), ("down", 0, 1)];
    let want: Vec<_> = want.iter().map(|w| (w.0.to_owned(), w.1, w.2)).collect();
    assert!(of("up").iter().all(|n| *n == want));
    // The residual stream ends in an input and an output, and a norm needs it whole.
    assert!(of("norm").is_empty());
}

#[test]
fn a_head_of_keys_goes_with_all_its_queries() {
    let m = transformer();
    assert_eq!(check(&m, "o", 0, 2), 2);
    let found = Dependencies::of(&m);
    let place = |name: &str| {
        (0..m.value_count() as u32)
            .map(ValueId)
            .find(|&v| m.value(v).name == name)
    };
    let (q, k, o) = (
        place("q").expect("named"),
        place("k").expect("named"),
        place("o").expect("named"),
    );
    let heads: Vec<&Group> = found
        .groups()
        .iter()
        .filter(|g| !g.indices(o, 0).is_empty())
        .collect();
    assert_eq!(heads[1].indices(q, 1), [6, 7, 8, 9, 10, 11]);
    assert_eq!(heads[1].indices(k, 1), [3, 4, 5]);
    assert_eq!(heads[1].indices(o, 0), [6, 7, 8, 9, 10, 11]);
}

#[test]
fn heads_of_the_attention_op_are_whole() {
    let (mut n, x) = Net::new(&[&[1, 4, 8], &[4, 2], &[4, 2]]);
    let (q, k) = (n.linear(x[0], "q", [8, 16]), n.linear(x[0], "k", [8, 8]));
    let v = n.linear(x[0], "v", [8, 8]);
    let turn = |n: &mut Net, v, heads| {
        let caches: Vec<ValueId> = (1..3)
            .map(|i| n.ops(|b| b.unsqueeze(x[i], &[0]).expect("fits")))
            .collect();
        let heads = [("num_heads", Attr::Int(heads))];
        n.with("rotary_embedding", &[v, caches[0], caches[1]], &heads)
    };
    let (q, k) = (turn(&mut n, q, 4), turn(&mut n, k, 2));
    let heads = [
        ("q_num_heads", Attr::Int(4)),
        ("kv_num_heads", Attr::Int(2)),
    ];
    let y = n.with("attention", &[q, k, v], &heads);
    let y = n.linear(y, "o", [16, 8]);
    let m = n.done(&[y]);
    assert_eq!(check(&m, "o", 0, 2), 2);
}

#[test]
fn channels_of_images_go_through_norms_pools_and_concatenations() {
    let (mut n, x) = Net::new(&[&[1, 3, 6, 6]]);
    let conv = |n: &mut Net, x, name: &str, shape: &[usize], group: i64| {
        let (w, bias) = (n.weight(name, shape), n.weight("bias", &shape[..1]));
        let attrs = [
            ("group", Attr::Int(group)),
            ("pads", Attr::Ints(vec![1; 4])),
        ];
        n.with("conv", &[x, w, bias], &attrs)
    };
    let a = conv(&mut n, x[0], "a", &[6, 3, 3, 3], 1);
    let mut norm = vec![a];
    for name in ["gamma", "beta", "mean"] {
        norm.push(n.weight(name, &[6]));
    }
    let var = Tensor::from_f64(ElemType::F64, [6], vec![1.0, 2.0, 0.5, 1.5, 3.0, 1.0]);
    norm.push(n.module.add_constant("var", Constant::from_tensor(&var)));
    let a = n.op("batch_normalization", &norm);
    let a = n.op("relu", &[a]);
    let deep = conv(&mut n, a, "deep", &[6, 1, 3, 3], 6);
    let b = conv(&mut n, x[0], "b", &[4, 3, 3, 3], 1);
    let both = n.with("concat", &[deep, b, a], &[("axis", Attr::Int(1))]);
    let c = conv(&mut n, both, "c", &[5, 16, 3, 3], 1);
    let c = n.op("global_average_pool", &[c]);
    let y = n.reshape(c, &[1, 5]);
    let y = n.linear(y, "out", [5, 2]);
    let m = n.done(&[y]);
    // A channel of `a` is one of `deep`, and two of what `c` reads.
    assert_eq!(check(&m, "a", 0, 2), 6);
    assert_eq!(check(&m, "b", 0, 3), 4);
    assert_eq!(check(&m, "out", 0, 2), 5);
    // Images of the input are read whole.
    assert_eq!(check(&m, "a", 1, 1), 0);
}

#[test]
fn pieces_of_a_fused_projection_shrink_with_their_lengths() {
    let (mut n, x) = Net::new(&[&[3, 8]]);
    let fused = n.linear(x[0], "fused", [8, 10]);
    let lengths = n.ops(|b| b.ints(&[6, 4]));
    let parts = n.ops(|b| {
        let axis = [("axis".to_owned(), Attr::Int(1))].into();
        b.node("split", vec![Some(fused), Some(lengths)], axis, 2)
            .expect("fits")
    });
    let a = n.op("relu", &[parts[0]]);
    let (a, b) = (n.linear(a, "a", [6, 5]), n.linear(parts[1], "b", [4, 5]));
    let y = n.op("add", &[a, b]);
    let m = n.done(&[y]);
    assert_eq!(check(&m, "fused", 1, 2), 10);
    assert_eq!(check(&m, "a", 0, 2), 6);
    let found = Dependencies::of(&m);
    let all: Vec<&Group> = found.groups().iter().collect();
    let before = m.clone();
    let mut module = m;
    let empty = cut(&mut module, &found, &all);
    assert!(matches!(empty, Err(CutError::Empty(..))));
    assert_eq!(module.first_difference(&before), None);
}

#[test]
fn what_no_rule_is_known_of_is_left_alone() {
    let (mut n, x) = Net::new(&[&[3, 8]]);
    let a = n.linear(x[0], "a", [8, 6]);
    let one = n.ops(|b| b.ints(&[1]));
    let a = n.with("cumsum", &[a, one], &[]);
    let y = n.linear(a, "b", [6, 2]);
    let m = n.done(&[y]);
    assert!(Dependencies::of(&m).groups().is_empty());
}

#[test]
fn means_of_what_goes_move_to_the_bias() {
    // One linear layer behind a sigmoid, whose values have means far from 0.
    let (mut n, x) = Net::new(&[&[40, 6]]);
    let h = n.linear(x[0], "first", [6, 8]);
    let h = n.op("sigmoid", &[h]);
    let turned = n.weight("second", &[5, 8]);
    let w = n.with("transpose", &[turned], &[("perm", Attr::Ints(vec![1, 0]))]);
    let y = n.op("matmul", &[h, w]);
    let m = n.done(&[y]);
    let hidden = {
        let mut m = m.clone();
        m.region_mut(Module::TOP).outputs[0] = h;
        Matrix::new(40, 8, run(&m)).expect("as many")
    };
    let statistics = Statistics::from_inputs(&hidden);
    let found = Dependencies::of(&m);
    let gone: Vec<&Group> = found.groups().iter().skip(2).step_by(3).collect();
    let places: Vec<usize> = gone
        .iter()
        .flat_map(|g| g.indices(turned, 1))
        .copied()
        .collect();
    assert_eq!(places, [2, 5]);
    let (mut bare, mut folded) = (m.clone(), m.clone());
    cut(&mut bare, &found, &gone).expect("can be removed");
    let mean = |v: ValueId| (v == h).then(|| statistics.mean.clone());
    cut_with_means(&mut folded, &found, &gone, &mean).expect("can be removed");
    let whole = run(&m);
    let error = |m: &Module| {
        let pairs = run(m).into_iter().zip(&whole).map(|(a, b)| (a - b).powi(2));
        pairs.sum::<f64>() / 40.0
    };
    let weight = m
        .as_constant(turned)
        .expect("a constant")
        .encoding()
        .decode();
    let weight = weight.expect("decodes").to_f64s().expect("numbers");
    let lost = Matrix::from_fn(5, 8, |r, c| {
        if places.contains(&c) {
            weight[r * 8 + c]
        } else {
            0.0
        }
    });
    near(
        error(&bare),
        lost.quadratic(&statistics.second_moment()),
        1e-9,
    );
    near(
        error(&folded),
        lost.quadratic(&statistics.covariance()),
        1e-9,
    );
    assert!(error(&folded) < 0.5 * error(&bare));
}
