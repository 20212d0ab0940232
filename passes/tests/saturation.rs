//! Deep networks, written out as exporters do: every layer is recognised, and work grows with depth as it must.

use lapidary_ir::builder::Builder;
use lapidary_ir::ops::OpError;
use lapidary_ir::target::Target;
use lapidary_ir::{ElemType, Module, Tensor, Type, ValueId};
use lapidary_passes::egraph::{Options, Report, saturate};
use lapidary_passes::fold::{Limits, fold_constants};
use lapidary_passes::rules;
use std::cell::Cell;
use std::time::{Duration, Instant};

/// Positions.
const SEQ: i64 = 16;
/// Numbers of a position.
const WIDTH: i64 = 96;
const HEADS: i64 = 4;
/// Numbers of a position in the hidden layer.
const HIDDEN: i64 = 128;

type Made = Result<ValueId, OpError>;

/// One layer after another on `x`.
struct Layers<'m> {
    b: Builder<'m>,
    seed: u64,
}

impl Layers<'_> {
    /// Weights that differ from each other.
    fn weights(&mut self, shape: &[usize]) -> ValueId {
        self.seed += 1;
        let n = shape.iter().product::<usize>() as u64;
        let values =
            (0..n).map(|i| ((i * 7919 + self.seed * 104_729) % 1000) as f64 / 5000.0 - 0.1);
        self.b.constant(&Tensor::from_f64(
            ElemType::F32,
            shape.to_vec(),
            values.collect(),
        ))
    }

    fn number(&mut self, v: f64) -> ValueId {
        self.b.scalar(ElemType::F32, v)
    }

    fn linear(&mut self, x: ValueId, from: i64, to: i64) -> Made {
        let (w, bias) = (
            self.weights(&[from as usize, to as usize]),
            self.weights(&[to as usize]),
        );
        let y = self.b.op("matmul", &[x, w])?;
        self.b.op("add", &[y, bias])
    }

    fn layer_norm(&mut self, x: ValueId) -> Made {
        let mean = self.b.reduce("reduce_mean", x, &[-1], true)?;
        let d = self.b.op("sub", &[x, mean])?;
        let two = self.number(2.0);
        let square = self.b.op("pow", &[d, two])?;
        let variance = self.b.reduce("reduce_mean", square, &[-1], true)?;
        let eps = self.number(1e-5);
        let sum = self.b.op("add", &[variance, eps])?;
        let root = self.b.op("sqrt", &[sum])?;
        let normal = self.b.op("div", &[d, root])?;
        let (gamma, beta) = (
            self.weights(&[WIDTH as usize]),
            self.weights(&[WIDTH as usize]),
        );
        let scaled = self.b.op("mul", &[normal, gamma])?;
        self.b.op("add", &[scaled, beta])
    }

    fn rms_norm(&mut self, x: ValueId) -> Made {
        let two = self.number(2.0);
        let square = self.b.op("pow", &[x, two])?;
        let mean = self.b.reduce("reduce_mean", square, &[-1], true)?;
        let eps = self.number(1e-6);
        let sum = self.b.op("add", &[mean, eps])?;
        let root = self.b.op("sqrt", &[sum])?;
        let one = self.number(1.0);
        let inverse = self.b.op("div", &[one, root])?;
        let normal = self.b.op("mul", &[x, inverse])?;
        let gamma = self.weights(&[WIDTH as usize]);
        self.b.op("mul", &[gamma, normal])
    }

    fn heads(&mut self, x: ValueId, heads: i64) -> Made {
        let shape = self.b.ints(&[1, SEQ, heads, WIDTH / HEADS]);
        let x = self.b.op("reshape", &[x, shape])?;
        self.b.transpose(x, &[0, 2, 1, 3])
    }

    fn rotated(&mut self, x: ValueId, (cos, sin): (ValueId, ValueId)) -> Made {
        let half = WIDTH / HEADS / 2;
        let (low, high) = (
            self.b.slice(x, 3, 0, half)?,
            self.b.slice(x, 3, half, i64::MAX)?,
        );
        let high = self.b.op("neg", &[high])?;
        let turned = self.b.concat(&[high, low], -1)?;
        let (straight, across) = (
            self.b.op("mul", &[x, cos])?,
            self.b.op("mul", &[turned, sin])?,
        );
        self.b.op("add", &[straight, across])
    }

    fn repeated(&mut self, x: ValueId) -> Made {
        let few = HEADS / 2;
        let wide = self.b.unsqueeze(x, &[2])?;
        let to = self.b.ints(&[1, few, 2, SEQ, WIDTH / HEADS]);
        let wide = self.b.op("expand", &[wide, to])?;
        let shape = self.b.ints(&[1, HEADS, SEQ, WIDTH / HEADS]);
        self.b.op("reshape", &[wide, shape])
    }

    fn attended(&mut self, q: ValueId, k: ValueId, v: ValueId, mask: ValueId) -> Made {
        let k = self.b.transpose(k, &[0, 1, 3, 2])?;
        let s = self.b.op("matmul", &[q, k])?;
        let root = self.number(((WIDTH / HEADS) as f64).sqrt());
        let s = self.b.op("div", &[s, root])?;
        let s = self.b.op("add", &[s, mask])?;
        let p = self
            .b
            .op_with("softmax", &[s], [("axis", (-1i64).into())])?;
        let y = self.b.op("matmul", &[p, v])?;
        let y = self.b.transpose(y, &[0, 2, 1, 3])?;
        let shape = self.b.ints(&[1, SEQ, WIDTH]);
        self.b.op("reshape", &[y, shape])
    }

    /// GPT-2's layer: norms before, GELU.
    fn gpt(&mut self, x: ValueId, mask: ValueId) -> Made {
        let n = self.layer_norm(x)?;
        let (q, k, v) = (
            self.linear(n, WIDTH, WIDTH)?,
            self.linear(n, WIDTH, WIDTH)?,
            self.linear(n, WIDTH, WIDTH)?,
        );
        let (q, k, v) = (
            self.heads(q, HEADS)?,
            self.heads(k, HEADS)?,
            self.heads(v, HEADS)?,
        );
        let y = self.attended(q, k, v, mask)?;
        let y = self.linear(y, WIDTH, WIDTH)?;
        let x = self.b.op("add", &[y, x])?;
        let n = self.layer_norm(x)?;
        let u = self.linear(n, WIDTH, HIDDEN)?;
        let (root, one, half) = (self.number(2f64.sqrt()), self.number(1.0), self.number(0.5));
        let e = self.b.op("div", &[u, root])?;
        let e = self.b.op("erf", &[e])?;
        let e = self.b.op("add", &[e, one])?;
        let g = self.b.op("mul", &[u, e])?;
        let g = self.b.op("mul", &[g, half])?;
        let y = self.linear(g, HIDDEN, WIDTH)?;
        self.b.op("add", &[x, y])
    }

    /// Llama's layer: rotary embeddings, grouped heads, a gate.
    fn llama(&mut self, x: ValueId, mask: ValueId, angles: (ValueId, ValueId)) -> Made {
        let n = self.rms_norm(x)?;
        let few = WIDTH / 2;
        let (q, k, v) = (
            self.linear(n, WIDTH, WIDTH)?,
            self.linear(n, WIDTH, few)?,
            self.linear(n, WIDTH, few)?,
        );
        let (q, k, v) = (
            self.heads(q, HEADS)?,
            self.heads(k, HEADS / 2)?,
            self.heads(v, HEADS / 2)?,
        );
        let (q, k) = (self.rotated(q, angles)?, self.rotated(k, angles)?);
        let (k, v) = (self.repeated(k)?, self.repeated(v)?);
        let y = self.attended(q, k, v, mask)?;
        let y = self.linear(y, WIDTH, WIDTH)?;
        let x = self.b.op("add", &[x, y])?;
        let n = self.rms_norm(x)?;
        let (gate, up) = (
            self.linear(n, WIDTH, HIDDEN)?,
            self.linear(n, WIDTH, HIDDEN)?,
        );
        let s = self.b.op("sigmoid", &[gate])?;
        let g = self.b.op("mul", &[gate, s])?;
        let g = self.b.op("mul", &[g, up])?;
        let y = self.linear(g, HIDDEN, WIDTH)?;
        self.b.op("add", &[x, y])
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Gpt,
    Llama,
}

fn network(kind: Kind, depth: usize) -> Module {
    let mut module = Module::new("deep");
    let mut x = module.add_input(
        Module::TOP,
        "x",
        Type::tensor(ElemType::F32, [1, SEQ, WIDTH]),
    );
    let angles = module.add_input(
        Module::TOP,
        "angles",
        Type::tensor(ElemType::F32, [1, SEQ, WIDTH / HEADS / 2]),
    );
    let fresh = Cell::new(0);
    let b = Builder::new(&mut module, Module::TOP, "layer", &fresh);
    let mut layers = Layers { b, seed: 0 };
    let write = |layers: &mut Layers, x: &mut ValueId| -> Result<(), OpError> {
        let both = layers.b.concat(&[angles, angles], -1)?;
        let (cos, sin) = (layers.b.op("cos", &[both])?, layers.b.op("sin", &[both])?);
        let tables = (
            layers.b.unsqueeze(cos, &[1])?,
            layers.b.unsqueeze(sin, &[1])?,
        );
        let square = (SEQ * SEQ) as usize;
        let seen = |i: usize| i % SEQ as usize <= i / SEQ as usize;
        let mask = (0..square).map(|i| if seen(i) { 0.0 } else { f64::from(f32::MIN) });
        let mask = Tensor::from_f64(
            ElemType::F32,
            [1, 1, SEQ as usize, SEQ as usize],
            mask.collect(),
        );
        let mask = layers.b.constant(&mask);
        for _ in 0..depth {
            *x = match kind {
                Kind::Gpt => layers.gpt(*x, mask)?,
                Kind::Llama => layers.llama(*x, mask, tables)?,
            };
        }
        Ok(())
    };
    write(&mut layers, &mut x).expect("layers are well typed");
    module.region_mut(Module::TOP).outputs = vec![x];
    module.output_names = vec!["y".into()];
    module
}

fn optimized(kind: Kind, depth: usize) -> (Module, Report, Duration) {
    let mut module = network(kind, depth);
    fold_constants(&mut module, Limits::default());
    let all: Vec<_> = rules::all().collect();
    let start = Instant::now();
    let report = saturate(&mut module, &Target::x86_64(), &Options::default(), &all);
    (module, report, start.elapsed())
}

fn count(module: &Module, op: &str) -> usize {
    let nodes = module.top().nodes.iter();
    nodes.filter(|&&n| module.node(n).op.name == op).count()
}

#[test]
fn no_layer_is_cut_in_the_middle_of_a_pattern() {
    for (kind, depth) in [
        (Kind::Gpt, 1),
        (Kind::Gpt, 5),
        (Kind::Llama, 1),
        (Kind::Llama, 5),
    ] {
        let (module, report, _) = optimized(kind, depth);
        let left: Vec<&str> = module
            .top()
            .nodes
            .iter()
            .map(|&n| module.node(n).op.name)
            .collect();
        let none = [
            "reduce_mean",
            "sqrt",
            "softmax",
            "matmul",
            "erf",
            "sigmoid",
            "expand",
            "neg",
            "div",
            "pow",
        ];
        for op in none {
            assert_eq!(
                count(&module, op),
                0,
                "{op} is left among {left:?}: {report:?}"
            );
        }
        assert_eq!(count(&module, "attention"), depth, "{left:?}");
        match kind {
            Kind::Gpt => {
                assert_eq!(count(&module, "layer_normalization"), 2 * depth);
                // Two norms, four products of the attention, two of the feed-forward layer.
                let products = count(&module, "fused_linear");
                assert_eq!(
                    (count(&module, "transpose"), products),
                    (0, 6 * depth),
                    "{left:?}"
                );
            }
            Kind::Llama => {
                assert_eq!(count(&module, "rms_normalization"), 2 * depth);
                assert_eq!(count(&module, "rotary_embedding"), 2 * depth, "{left:?}");
            }
        }
        let causal = report.fired.contains_key("attention-causal-mask");
        assert!(causal, "{report:?}");
    }
}

#[test]
fn work_grows_with_depth_and_no_faster() {
    for kind in [Kind::Gpt, Kind::Llama] {
        let runs: Vec<(usize, Report, Duration)> = [4, 16, 64]
            .map(|depth| {
                let (_, report, time) = optimized(kind, depth);
                (depth, report, time)
            })
            .into();
        for (depth, report, time) in &runs {
            let Report {
                blocks,
                distinct,
                largest,
                ..
            } = report;
            println!(
                "{depth} layers: {blocks} blocks, {distinct} solved, {largest} e-nodes at most, {:.1} ms",
                time.as_secs_f64() * 1e3
            );
        }
        // Equal layers are solved once: what is left for each is to be found equal and be rewritten.
        assert_eq!(runs[1].1.distinct, runs[2].1.distinct);
        assert_eq!(runs[1].1.largest, runs[2].1.largest);
        let blocks = |i: usize| runs[i].1.blocks as f64;
        assert!(
            blocks(2) / blocks(1) < 4.5,
            "{} and {}",
            blocks(1),
            blocks(2)
        );
        // The time itself is not exact on a busy machine: quadratic growth would be a factor of 16.
        let ratio = runs[2].2.as_secs_f64() / runs[1].2.as_secs_f64();
        assert!(
            ratio < 10.0,
            "four times as deep takes {ratio:.1} times as long"
        );
    }
}

#[test]
fn equal_expressions_are_computed_once() {
    let mut module = Module::new("common");
    let x = module.add_input(Module::TOP, "x", Type::tensor(ElemType::F32, [8i64]));
    let fresh = Cell::new(0);
    let mut b = Builder::new(&mut module, Module::TOP, "n", &fresh);
    let make = |b: &mut Builder| -> Made {
        let e = b.op("exp", &[x])?;
        b.op("log", &[e])
    };
    let (p, q) = (make(&mut b).expect("typed"), make(&mut b).expect("typed"));
    let y = b.op("mul", &[p, q]).expect("typed");
    module.region_mut(Module::TOP).outputs = vec![y];
    let all: Vec<_> = rules::all().collect();
    saturate(&mut module, &Target::x86_64(), &Options::default(), &all);
    assert_eq!((count(&module, "exp"), count(&module, "log")), (1, 1));
}
