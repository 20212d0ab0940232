use super::*;
use lapidary_ir::builder::Builder;
use lapidary_ir::ops::compose::Len;
use lapidary_ir::target::Target;
use lapidary_ir::tensor::Value;
use lapidary_ir::{Constant, ElemType, Tensor, Type, ValueId, eval};
use std::cell::Cell;
use std::time::Duration;

mod codes;
mod cuts;

fn weight(shape: &[usize], seed: u64) -> Tensor {
    let n: usize = shape.iter().product();
    Tensor::from_f64(
        ElemType::F32,
        shape,
        lapidary_ir::random::SplitMix64::new(seed).normals(n),
    )
}

/// A table, a product, a transposed one with a bias, and filters.
fn network() -> Module {
    let (mut m, fresh) = (Module::new("net"), Cell::new(0));
    let ids = m.add_input(Module::TOP, "ids", Type::tensor(ElemType::I64, [3i64]));
    let image = m.add_input(
        Module::TOP,
        "image",
        Type::tensor(ElemType::F32, [1i64, 8, 5, 5]),
    );
    let named =
        |m: &mut Module, name: &str, t: &Tensor| m.add_constant(name, Constant::from_tensor(t));
    let table = named(&mut m, "table", &weight(&[100, 64], 1));
    let w = named(&mut m, "w", &weight(&[64, 48], 2));
    let v = named(&mut m, "v", &weight(&[80, 48], 3));
    let bias = named(&mut m, "bias", &weight(&[80], 4));
    let filters = named(&mut m, "filters", &weight(&[32, 8, 3, 3], 5));
    let mut b = Builder::new(&mut m, Module::TOP, "n", &fresh);
    let x = b.op("gather", &[table, ids]).expect("fits");
    let x = b.op("matmul", &[x, w]).expect("fits");
    let x = b
        .op_with("gemm", &[x, v, bias], [("transB", 1i64.into())])
        .expect("fits");
    let y = b.op("conv", &[image, filters]).expect("fits");
    for (v, name) in [(x, "x"), (y, "y")] {
        m.region_mut(Module::TOP).outputs.push(v);
        m.output_names.push(name.into());
    }
    m
}

fn run(m: &Module) -> Vec<f64> {
    let inputs: Vec<Value> = vec![
        Tensor::ints(&[7, 0, 99]).into(),
        weight(&[1, 8, 5, 5], 6).into(),
    ];
    let out = eval::run(m, inputs).expect("runs");
    out.iter()
        .flat_map(|v| v.as_tensor().and_then(Tensor::to_f64s).expect("numbers"))
        .collect()
}

fn distance(a: &[f64], b: &[f64]) -> f64 {
    let (far, own) = a.iter().zip(b).fold((0.0, 0.0), |(f, o), (x, y)| {
        (f + (x - y).powi(2), o + x * x)
    });
    far / own
}

#[test]
fn budgets_are_kept_and_more_of_it_is_better() {
    let dense = run(&network());
    let mut last = f64::INFINITY;
    for share in [0.1, 0.15, 0.3, 0.6, 1.0] {
        let mut m = network();
        let report =
            compress(&mut m, &Budget::Share(share).into(), &Means::default()).expect("fits");
        assert_eq!(report.weights.len(), 4);
        assert!(
            report.bytes.1 as f64 <= share * report.bytes.0 as f64,
            "{share}"
        );
        let (error, bound) = report.bound.expect("searched");
        assert!(bound <= error + 1e-12 && error <= last + 1e-12);
        last = error;
        // Relative errors of two products in a row add up, roughly.
        let worst = report.weights.iter().map(|w| w.error).fold(0.0, f64::max);
        assert!(distance(&dense, &run(&m)) <= 4.0 * worst + 1e-9, "{share}");
        let sum: u64 = (0..m.value_count())
            .filter_map(|v| m.as_constant(ValueId(v as u32)))
            .map(|c| c.encoding())
            .filter(|e| e.is_compressed())
            .map(|e| e.stored_bytes())
            .sum();
        let said: u64 = report
            .weights
            .iter()
            .filter(|w| w.level.method != "keep")
            .map(|w| w.bytes.1)
            .sum();
        assert_eq!(sum, said);
    }
    assert_eq!(last, 0.0);
}

#[test]
fn packed_weights_are_not_decoded_when_a_model_is_loaded() {
    let (mut original, fresh) = (Module::new("net"), Cell::new(0));
    let x = Type::tensor(ElemType::F32, [2i64, 256]);
    let x = original.add_input(Module::TOP, "x", x);
    let [v, w] = [([256, 192], 1), ([192, 256], 2)].map(|(shape, seed)| {
        let constant = Constant::from_tensor(&weight(&shape, seed));
        original.add_constant(&format!("w{seed}"), constant)
    });
    let mut b = Builder::new(&mut original, Module::TOP, "n", &fresh);
    let y = b.op("matmul", &[x, v]).expect("fits");
    let y = b.op("matmul", &[y, w]).expect("fits");
    original.region_mut(Module::TOP).outputs.push(y);
    original.output_names.push("y".into());
    let steps = |levels: Option<&dyn Fn(&Weight) -> Vec<Level>>, bits: f64| {
        let mut m = original.clone();
        let means = Means {
            levels,
            ..Means::default()
        };
        let report = compress(&mut m, &Budget::Bits(bits).into(), &means).expect("fits");
        let changed = report.weights.iter().all(|w| !w.level.keeps());
        assert!(changed, "{bits}: every weight is compressed");
        let (target, options) = (Target::x86_64(), crate::lower::Options::default());
        let lowered = crate::lower::lower(&m, &target, &options).expect("lowers");
        lowered.program.prepare.steps.len()
    };
    // All widths, and what is chosen otherwise.
    for bits in [8.5, 6.5, 5.5, 4.4, 3.3, 2.8] {
        assert_eq!(steps(Some(&packed), bits), 0, "{bits}");
    }
    assert!(steps(None, 3.3) > 0);
}

/// As checkpoints are imported: `matmul(x, cast(transpose(W of bf16)))`, and rows of the same table.
#[test]
fn numbers_of_small_types_are_not_rounded_twice() {
    let (mut m, fresh) = (Module::new("net"), Cell::new(0));
    let ids = m.add_input(Module::TOP, "ids", Type::tensor(ElemType::I64, [3i64]));
    let w = weight(&[96, 64], 1).floats().expect("floats").to_vec();
    let w = m.add_constant(
        "w",
        Constant::from_tensor(&Tensor::from_f64(ElemType::BF16, [96, 64], w)),
    );
    let mut b = Builder::new(&mut m, Module::TOP, "n", &fresh);
    let x = b.op("gather", &[w, ids]).expect("fits");
    let x = b.cast(x, ElemType::F32).expect("fits");
    let t = b.transpose(w, &[1, 0]).expect("fits");
    let t = b.cast(t, ElemType::F32).expect("fits");
    let y = b.op("matmul", &[x, t]).expect("fits");
    m.region_mut(Module::TOP).outputs.push(y);
    m.output_names.push("y".into());
    let before = m.clone();
    let report = compress(&mut m, &Budget::Bits(8.5).into(), &Means::default()).expect("fits");
    assert_eq!(
        (report.weights.len(), report.weights[0].bytes.0),
        (1, 2 * 96 * 64)
    );
    assert!(m.top().nodes.iter().all(|&n| m.node(n).op.name != "cast"));
    let of = |m: &Module| {
        let out = eval::run(m, vec![Tensor::ints(&[7, 0, 95]).into()]).expect("runs");
        out[0]
            .as_tensor()
            .and_then(Tensor::to_f64s)
            .expect("numbers")
    };
    assert!(distance(&of(&before), &of(&m)) < 1e-3);
}

#[test]
fn a_recipe_repeats_a_build() {
    let (mut a, mut b) = (network(), network());
    let report = compress(&mut a, &Budget::Bits(3.5).into(), &Means::default()).expect("fits");
    let text = toml::to_string(&report.recipe()).expect("writes");
    let recipe: Recipe = toml::from_str(&text).expect("reads back");
    let again = follow(&mut b, &recipe, &Means::default()).expect("fits");
    assert_eq!(recipe, again.recipe());
    assert_eq!(run(&a), run(&b));
}

#[test]
fn a_recipe_may_keep_weights() {
    let recipe = "[[weight]]\nname = 'w'\nmethod = 'keep'\n[[weight]]\nname = '*'\nmethod = 'rtn'";
    let recipe: Recipe = toml::from_str(recipe).expect("reads");
    let report = follow(&mut network(), &recipe, &Means::default()).expect("fits");
    for w in &report.weights {
        assert_eq!(w.bytes.0 == w.bytes.1, w.name == "w", "{}", w.name);
    }
}

/// Groups of 4-bit codes of which half are left out whole (GQSA), two of four weights, and plain shares.
#[test]
fn recipes_say_what_is_pruned() {
    let samples = images();
    let follow = |settings: &str| {
        let text = format!("[[weight]]\nname = 'w'\n{settings}");
        let recipe: Recipe = toml::from_str(&text).expect("reads");
        let mut m = classifier();
        let report = follow(&mut m, &recipe, &on(&samples))?;
        let term = report.weights[1].encoding.clone();
        let of = |v: u32| m.as_constant(ValueId(v)).map(|c| c.encoding().clone());
        let found = (0..m.value_count() as u32).filter_map(of);
        let found = found
            .into_iter()
            .find(|e| e.is_compressed())
            .expect("a term");
        let values = found
            .decode()
            .expect("decodes")
            .floats()
            .expect("floats")
            .to_vec();
        Ok::<_, CompressError>((term, values))
    };
    let gqsa = "method = 'sparsegpt'\nbits = 4\ngroup = 16\nblock = 16\nsparsity = 0.5";
    let (term, values) = follow(gqsa).expect("fits");
    assert!(term.contains("sparse") && term.contains("affine"), "{term}");
    let gone = values.chunks(16).filter(|g| g.iter().all(|&v| v == 0.0));
    assert_eq!(gone.count(), values.len() / 32);
    let (_, values) = follow("method = 'wanda'\nbits = 16\nn_of_m = [2, 4]").expect("fits");
    let kept = |g: &[f64]| g.iter().filter(|&&v| v != 0.0).count();
    assert!(values.chunks(4).all(|g| kept(g) == 2));
    let (_, values) = follow("method = 'magnitude'\nbits = 16\nsparsity = 0.75").expect("fits");
    assert_eq!(kept(&values), values.len() / 4);
    for wrong in [
        "sparsity = 2.0",
        "sparsity = nan",
        "n_of_m = [4, 2]",
        "n_of_m = [0, 0]",
        "n_of_m = [1, 1000]",
    ] {
        let refused = follow(&format!("method = 'wanda'\nbits = 4\n{wrong}"));
        assert!(
            matches!(refused, Err(CompressError::Method { .. })),
            "{wrong}"
        );
    }
}

#[test]
fn what_cannot_be_met_is_said() {
    assert!(matches!(
        compress(
            &mut network(),
            &Budget::Share(0.01).into(),
            &Means::default()
        ),
        Err(CompressError::Budget { .. })
    ));
    let unknown = Recipe {
        weights: vec![Entry {
            name: "*".into(),
            level: Level {
                method: "magic".into(),
                bits: 4,
                group: 0,
                ..Level::default()
            },
        }],
        ..Recipe::default()
    };
    assert!(matches!(
        follow(&mut network(), &unknown, &Means::default()),
        Err(CompressError::Unknown(..))
    ));
    assert!(matches!(
        compress(
            &mut Module::new("empty"),
            &Budget::Bits(4.0).into(),
            &Means::default()
        ),
        Err(CompressError::NoWeights)
    ));
}

fn on(samples: &Evaluated) -> Means<'_> {
    Means {
        data: Some(samples),
        ..Means::default()
    }
}

/// Samples that the reference evaluator runs.
struct Evaluated(Vec<Vec<Value>>);

struct Ready<'s> {
    module: Module,
    samples: &'s [Vec<Value>],
    extras: Vec<Value>,
}

impl Samples for Evaluated {
    fn count(&self) -> usize {
        self.0.len()
    }

    fn key(&self) -> u64 {
        self.0.len() as u64
    }

    fn prepare(&self, module: Module) -> Result<Box<dyn Program + '_>, Failure> {
        let own = self.0[0].len();
        let zeros = |&v: &ValueId| {
            let shape = module.value(v).ty.shape().expect("a shape").to_vec();
            let dims: Vec<usize> = shape
                .iter()
                .map(|d| d.as_const().expect("known") as usize)
                .collect();
            Tensor::from_f64(
                ElemType::F32,
                dims.clone(),
                vec![0.0; dims.iter().product()],
            )
            .into()
        };
        let extras = module.top().inputs[own..].iter().map(zeros).collect();
        Ok(Box::new(Ready {
            module,
            samples: &self.0,
            extras,
        }))
    }
}

impl Program for Ready<'_> {
    fn set(&mut self, index: usize, values: &[f32]) -> Result<(), Failure> {
        let shape = self.extras[index]
            .as_tensor()
            .expect("a tensor")
            .shape()
            .to_vec();
        let values = values.iter().map(|&v| f64::from(v)).collect();
        self.extras[index] = Tensor::from_f64(ElemType::F32, shape, values).into();
        Ok(())
    }

    fn run(
        &mut self,
        sample: usize,
        see: &mut dyn FnMut(usize, &[f32]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let inputs = self.samples[sample].iter().chain(&self.extras).cloned();
        let outputs = eval::run(&self.module, inputs.collect()).map_err(|e| e.to_string())?;
        for (i, v) in outputs.iter().enumerate() {
            let values = v.as_tensor().and_then(Tensor::to_f64s).expect("numbers");
            see(i, &values.iter().map(|&v| v as f32).collect::<Vec<f32>>())?;
        }
        Ok(())
    }
}

/// Filters, then two products, the first of inputs of very different sizes; four classes.
fn classifier() -> Module {
    let (mut m, fresh) = (Module::new("net"), Cell::new(0));
    let image = m.add_input(
        Module::TOP,
        "image",
        Type::tensor(ElemType::F32, [4i64, 8, 6, 6]),
    );
    let named =
        |m: &mut Module, name: &str, t: &Tensor| m.add_constant(name, Constant::from_tensor(t));
    let filters = named(&mut m, "filters", &weight(&[32, 8, 3, 3], 5));
    let sizes: Vec<f64> = (0..32).map(|i| 0.05 * 1.3f64.powi(i % 16)).collect();
    let sizes = m.add_constant(
        "",
        Constant::from_tensor(&Tensor::from_f64(ElemType::F32, [32], sizes)),
    );
    let w = named(&mut m, "w", &weight(&[32, 96], 2));
    let v = named(&mut m, "v", &weight(&[96, 24], 3));
    let mut b = Builder::new(&mut m, Module::TOP, "n", &fresh);
    let strides = [("strides", vec![2i64, 2].into())];
    let x = b.op_with("conv", &[image, filters], strides).expect("fits");
    let x = b.reduce("reduce_mean", x, &[2, 3], false).expect("fits");
    let x = b.op("mul", &[x, sizes]).expect("fits");
    let x = b.op("matmul", &[x, w]).expect("fits");
    let x = b.op("tanh", &[x]).expect("fits");
    let y = b.op("matmul", &[x, v]).expect("fits");
    let tenth = b.lit(y, 0.1).expect("fits");
    let y = b.op("mul", &[y, tenth]).expect("fits");
    m.region_mut(Module::TOP).outputs.push(y);
    m.output_names.push("logits".into());
    m
}

fn images() -> Evaluated {
    Evaluated(
        (0..6)
            .map(|k| vec![weight(&[4, 8, 6, 6], 50 + k).into()])
            .collect(),
    )
}

/// Mean divergence of the predictions of `b` from those of `a`, computed plainly.
fn divergence(a: &Module, b: &Module, samples: &Evaluated) -> f64 {
    let predictions = |m: &Module, s: &Vec<Value>| -> Vec<Vec<f64>> {
        let out = eval::run(m, s.clone()).expect("runs");
        let y = out[0]
            .as_tensor()
            .and_then(Tensor::to_f64s)
            .expect("numbers");
        let of = |row: &[f64]| {
            let sum: f64 = row.iter().map(|v| v.exp()).sum();
            row.iter().map(|v| v.exp() / sum).collect()
        };
        y.chunks(24).map(of).collect()
    };
    let (mut sum, mut n) = (0.0, 0.0);
    for s in &samples.0 {
        for (p, q) in predictions(a, s).iter().zip(predictions(b, s)) {
            sum += p.iter().zip(&q).map(|(p, q)| p * (p / q).ln()).sum::<f64>();
            n += 1.0;
        }
    }
    sum / n
}

#[test]
fn data_makes_choices_better_and_the_measured_loss_is_the_loss() {
    let (original, samples) = (classifier(), images());
    for bits in [3.0, 4.0, 6.0] {
        let goal: Goal = Budget::Bits(bits).into();
        let (mut blind, mut seeing) = (original.clone(), original.clone());
        compress(&mut blind, &goal, &Means::default()).expect("fits");
        let report = compress(&mut seeing, &goal, &on(&samples)).expect("fits");
        let bytes: u64 = report.weights.iter().map(|w| w.bytes.1).sum();
        let elements: usize = report.weights.iter().map(|w| w.shape[0] * w.shape[1]).sum();
        assert!(8.0 * bytes as f64 <= bits * elements as f64);
        let measured = report.measured.expect("data");
        assert_eq!(
            (measured.distance, measured.samples),
            (Distance::Divergence, (6, 6))
        );
        let own = divergence(&original, &seeing, &samples);
        assert!(
            (measured.difference.loss / own - 1.0).abs() < 1e-2,
            "{measured:?} {own}"
        );
        let without = divergence(&original, &blind, &samples);
        assert!(
            own < without,
            "{bits}: {own} {without} {:?}",
            report.weights
        );
        // With the same data a recipe gives the same.
        let mut again = original.clone();
        follow(&mut again, &report.recipe(), &on(&samples)).expect("fits");
        assert_eq!(divergence(&seeing, &again, &samples), 0.0);
    }
}

#[test]
fn methods_that_look_at_inputs_say_that_they_need_them() {
    let recipe: Recipe = toml::from_str("[[weight]]\nname = '*'\nmethod = 'gptq'").expect("reads");
    let refused = follow(&mut classifier(), &recipe, &Means::default());
    assert!(matches!(
        refused,
        Err(CompressError::Method {
            error: MethodError::NeedsStatistics,
            ..
        })
    ));
    let samples = images();
    follow(&mut classifier(), &recipe, &on(&samples)).expect("fits");
}

/// One product, whose results are not called predictions.
fn regression() -> Module {
    let (mut m, fresh) = (Module::new("net"), Cell::new(0));
    let image = Type::tensor(ElemType::F32, [4i64, 8, 6, 6]);
    let image = m.add_input(Module::TOP, "image", image);
    let w = m.add_constant("w", Constant::from_tensor(&weight(&[288, 96], 7)));
    let mut b = Builder::new(&mut m, Module::TOP, "n", &fresh);
    let x = b.reshape(image, &[4, 288].map(Len::N)).expect("fits");
    let y = b.op("matmul", &[x, w]).expect("fits");
    m.region_mut(Module::TOP).outputs.push(y);
    m.output_names.push("y".into());
    m
}

#[test]
fn errors_are_limited_with_few_bytes() {
    let samples = images();
    let goal = |max_error, budget| Goal {
        budget,
        max_error: Some(max_error),
        ..Goal::default()
    };
    // Of weights, and of results that are no predictions.
    for data in [None, Some(&samples)] {
        let means = Means {
            data: data.map(|s| s as &dyn Samples),
            ..Means::default()
        };
        let mut last = u64::MAX;
        for limit in [1e-5, 1e-3, 1e-1] {
            let report = compress(&mut regression(), &goal(limit, None), &means).expect("fits");
            let found = report.measured.map(|m| m.difference.loss);
            let found = found.or(report.bound.map(|b| b.0));
            assert!(found.is_some_and(|e| e <= limit), "{limit}: {found:?}");
            assert!(report.bytes.1 < last, "{limit}");
            last = report.bytes.1;
        }
        let both = goal(1e-9, Some(Budget::Bits(3.0)));
        let refused = compress(&mut regression(), &both, &means);
        assert!(matches!(refused, Err(CompressError::Limit(_))));
    }
    // Predictions have a divergence.
    let refused = compress(&mut classifier(), &goal(1e-3, None), &on(&samples));
    assert!(matches!(refused, Err(CompressError::NoMeasure(_))));
}

#[test]
fn more_time_finds_nothing_worse() {
    let samples = images();
    let loss = |search_time| {
        let means = Means {
            search_time,
            ..on(&samples)
        };
        let goal: Goal = Budget::Bits(2.5).into();
        let report = compress(&mut classifier(), &goal, &means).expect("fits");
        report.measured.expect("data").difference.loss
    };
    let (once, again) = (loss(None), loss(Some(Duration::from_millis(300))));
    assert!(again <= once, "{again} {once}");
}

#[test]
fn limits_are_kept_with_few_bytes() {
    let (original, samples) = (classifier(), images());
    let mut last = u64::MAX;
    for limit in [1e-5, 1e-3, 1e-1] {
        let goal = Goal {
            max_divergence: Some(limit),
            ..Goal::default()
        };
        let mut m = original.clone();
        let report = compress(&mut m, &goal, &on(&samples)).expect("fits");
        assert!(report.measured.expect("data").difference.loss <= limit);
        assert!(divergence(&original, &m, &samples) <= 1.01 * limit);
        assert!(report.bytes.1 < last, "{limit}");
        last = report.bytes.1;
    }
    let near = Goal {
        min_agreement: Some(1.0),
        ..Goal::default()
    };
    let report = compress(&mut original.clone(), &near, &on(&samples)).expect("fits");
    assert_eq!(
        report.measured.expect("data").difference.agreement,
        Some(1.0)
    );
    let both = Goal {
        budget: Some(Budget::Bits(3.0)),
        max_divergence: Some(1e-9),
        ..Goal::default()
    };
    let mut m = original.clone();
    let refused = compress(&mut m, &both, &on(&samples));
    assert!(
        matches!(refused, Err(CompressError::Limit(_))),
        "{refused:?}"
    );
    assert_eq!(m, original, "what fails changes nothing");
    assert!(matches!(
        compress(&mut m, &near, &Means::default()),
        Err(CompressError::NoMeasure(_))
    ));
}

/// A store that counts what it is asked for, and may forget.
#[derive(Default)]
struct Counting {
    kept: std::cell::RefCell<std::collections::BTreeMap<String, bytes::Bytes>>,
    puts: Cell<usize>,
}

impl Store for Counting {
    fn get(&self, name: &str) -> Option<bytes::Bytes> {
        self.kept.borrow().get(name).cloned()
    }

    fn put(&self, name: &str, parts: &[&[u8]]) -> Result<(), Failure> {
        self.puts.set(self.puts.get() + 1);
        self.kept
            .borrow_mut()
            .insert(name.to_owned(), parts.concat().into());
        Ok(())
    }

    fn remove(&self, name: &str) {
        self.kept.borrow_mut().remove(name);
    }
}

#[test]
fn work_is_done_once_whoever_does_it() {
    let (original, samples) = (classifier(), images());
    let goal: Goal = Budget::Bits(3.5).into();
    let run = |means: &Means| {
        let mut m = original.clone();
        let report = compress(&mut m, &goal, means).expect("fits");
        (lapidary_ir::text::print(&m), report.bound)
    };
    for data in [None, Some(&samples)] {
        let data = data.map(|s| s as &dyn Samples);
        let alone = run(&Means {
            data,
            ..Means::default()
        });
        let store = Counting::default();
        let means = Means {
            data,
            store: Some(&store),
            ..Means::default()
        };
        // As many machines would: in any order, one of them twice.
        prepare(&original, &means).expect("runs");
        assert_eq!(missing(&original, &means).expect("reads"), [0, 1, 2]);
        let names: Vec<String> = weights(&original).into_iter().map(|w| w.name).collect();
        assert_eq!(names, ["filters", "w", "v"]);
        for i in [2, 0, 2, 1] {
            job(&original, i, &means).expect("runs");
        }
        assert!(matches!(
            job(&original, 3, &means),
            Err(CompressError::Job(3, 3))
        ));
        assert!(missing(&original, &means).expect("reads").is_empty());
        let puts = store.puts.get();
        assert_eq!(run(&means), alone);
        assert_eq!(store.puts.get(), puts, "nothing was left to do");
        // What is damaged or gone is made again, and is the same.
        let names: Vec<String> = store.kept.borrow().keys().cloned().collect();
        for (k, name) in names.iter().enumerate() {
            let mut kept = store.kept.borrow_mut();
            match k % 3 {
                0 => drop(kept.remove(name)),
                1 => drop(kept.insert(name.clone(), bytes::Bytes::from_static(b"fn"))),
                _ => (),
            }
        }
        assert_eq!(run(&means), alone);
        assert!(store.puts.get() > puts);
    }
}

/// Blocks with a residual stream, kept in 16 bits between two of them, and a gate that depends on no weight.
fn residual() -> Module {
    let (mut m, fresh) = (Module::new("net"), Cell::new(0));
    let x = m.add_input(Module::TOP, "x", Type::tensor(ElemType::F32, [4i64, 48]));
    let weights: Vec<ValueId> = (0..6)
        .map(|k| {
            let shape = if k % 2 == 0 { [48, 64] } else { [64, 48] };
            let w = weight(&shape, 10 + k).floats().expect("floats").to_vec();
            let w = w.iter().map(|v| 0.1 * v).collect();
            let w = Tensor::from_f64(ElemType::F32, shape, w);
            m.add_constant(&format!("w{k}"), Constant::from_tensor(&w))
        })
        .collect();
    let mut b = Builder::new(&mut m, Module::TOP, "n", &fresh);
    let gate = b.op("sigmoid", &[x]).expect("fits");
    let mut stream = x;
    for pair in weights.chunks(2) {
        let y = b.op("mul", &[stream, gate]).expect("fits");
        let y = b.op("matmul", &[y, pair[0]]).expect("fits");
        let y = b.op("tanh", &[y]).expect("fits");
        let y = b.op("matmul", &[y, pair[1]]).expect("fits");
        let y = b.op("add", &[stream, y]).expect("fits");
        let y = b.cast(y, ElemType::F16).expect("fits");
        stream = b.cast(y, ElemType::F32).expect("fits");
    }
    m.region_mut(Module::TOP).outputs.push(stream);
    m.output_names.push("logits".into());
    m
}

#[test]
fn a_model_observed_piece_by_piece_says_the_same() {
    let original = residual();
    let samples = Evaluated(
        (0..5)
            .map(|k| vec![weight(&[4, 48], 70 + k).into()])
            .collect(),
    );
    let run = |pass_bytes: u64| {
        let store = Counting::default();
        let means = Means {
            scratch: Some(&store),
            pass_bytes,
            ..on(&samples)
        };
        let mut m = original.clone();
        let report = compress(&mut m, &Budget::Bits(3.0).into(), &means).expect("fits");
        let left = store.kept.borrow();
        assert!(left.keys().all(|name| !name.ends_with("cut")), "{left:?}");
        let cuts = store.puts.get() - left.len();
        (lapidary_ir::text::print(&m), report.bound, cuts)
    };
    let (whole, pieces, single) = (run(1 << 29), run(40_000), run(1));
    assert_eq!((&whole.0, whole.1), (&pieces.0, pieces.1));
    assert_eq!((&whole.0, whole.1), (&single.0, single.1));
    assert_eq!(whole.2, 0);
    assert!(pieces.2 > 0 && single.2 > pieces.2);
}
