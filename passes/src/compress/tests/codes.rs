//! Recipes that write values between weights as codes.

use super::*;
use crate::compress::{Activations, Coded, Scope};
use lapidary_ir::ops::OpError;
use lapidary_ir::random::SplitMix64;

/// A block of an encoder on 6 tokens of 16 numbers, the last of which are masked, with a head of 5 classes. Some inputs are far
/// larger than others.
fn encoder() -> Module {
    let (mut m, fresh) = (Module::new("net"), Cell::new(0));
    let x = m.add_input(Module::TOP, "x", Type::tensor(ElemType::F32, [6i64, 16]));
    let mut b = Builder::new(&mut m, Module::TOP, "n", &fresh);
    let y = block(&mut b, x).expect("fits");
    m.region_mut(Module::TOP).outputs.push(y);
    m.output_names.push("logits".into());
    m
}

fn block(b: &mut Builder, x: ValueId) -> Result<ValueId, OpError> {
    let mut seed = 100;
    let mut w = |b: &mut Builder, shape: &[usize], size: f64| {
        seed += 1;
        let t = weight(shape, seed);
        let values = t
            .to_f64s()
            .expect("numbers")
            .into_iter()
            .map(|v| v * size)
            .collect();
        b.constant(&Tensor::from_f64(ElemType::F32, shape, values))
    };
    let norm = |b: &mut Builder, x: ValueId, size: f64| {
        // A few channels stick out, as they do in trained models.
        let gain = (0..16)
            .map(|i| if i % 7 == 3 { 12.0 * size } else { size })
            .collect();
        let gain = b.constant(&Tensor::from_f64(ElemType::F32, [16], gain));
        let offset = (0..16).map(|i| 0.1 * f64::from(i) - 0.8).collect();
        let offset = b.constant(&Tensor::from_f64(ElemType::F32, [16], offset));
        Ok::<_, OpError>(
            b.node(
                "layer_normalization",
                vec![Some(x), Some(gain), Some(offset)],
                Default::default(),
                1,
            )?[0],
        )
    };
    let h = norm(b, x, 1.0)?;
    let mut parts = vec![];
    for _ in 0..3 {
        let w = w(b, &[16, 16], 0.1);
        parts.push(b.op("matmul", &[h, w])?);
    }
    let keys = b.transpose(parts[1], &[1, 0])?;
    let scores = b.op("matmul", &[parts[0], keys])?;
    let mask = (0..36)
        .map(|i| if i % 6 == 5 { -1e9 } else { 0.0 })
        .collect();
    let mask = b.constant(&Tensor::from_f64(ElemType::F32, [6, 6], mask));
    let scores = b.op("add", &[scores, mask])?;
    let shares = b.op_with("softmax", &[scores], [("axis", (-1i64).into())])?;
    let mixed = b.op("matmul", &[shares, parts[2]])?;
    let out = w(b, &[16, 16], 0.2);
    let mixed = b.op("matmul", &[mixed, out])?;
    let x = b.op("add", &[x, mixed])?;
    let h = norm(b, x, 1.0)?;
    let (up, down) = (w(b, &[16, 32], 0.1), w(b, &[32, 16], 0.2));
    let h = b.op("matmul", &[h, up])?;
    let h = b.op("gelu", &[h])?;
    let h = b.op("matmul", &[h, down])?;
    let x = b.op("add", &[x, h])?;
    let h = norm(b, x, 1.0)?;
    let head = w(b, &[16, 5], 0.05);
    b.op("matmul", &[h, head])
}

fn samples(shape: &[usize]) -> Evaluated {
    Evaluated((0..6).map(|i| vec![weight(shape, 7 + i).into()]).collect())
}

fn encoded(m: &mut Module, asked: Activations, data: &Evaluated) -> Coded {
    let means = Means {
        data: Some(data),
        ..Means::default()
    };
    let recipe = Recipe {
        activations: Some(asked),
        ..Recipe::default()
    };
    let report = follow(m, &recipe, &means).expect("encodes");
    assert_eq!(report.recipe().activations, recipe.activations);
    assert!(lapidary_ir::verify::errors(m).is_empty());
    report.activations.expect("asked for").1
}

fn count(m: &Module, op: &str) -> usize {
    m.top()
        .nodes
        .iter()
        .filter(|&&n| m.node(n).op.name == op)
        .count()
}

#[test]
fn products_with_weights_read_codes() {
    let mut m = encoder();
    let coded = encoded(&mut m, Activations::int8(), &samples(&[6, 16]));
    assert_eq!((coded.values, coded.products, coded.integers), (5, 7, 0));
    assert!(coded.left.is_empty());
    // Weights and values; the attention's own products read floats.
    assert_eq!(
        (count(&m, "quantize_linear"), count(&m, "dequantize_linear")),
        (5, 12)
    );
    let difference = coded.measured.expect("compared").difference;
    assert!(difference.loss < 2e-3, "{difference:?}");
    assert!(difference.agreement > Some(0.95), "{difference:?}");
    // What sticks out costs more where nothing is moved into the weights.
    let mut rough = encoder();
    let plain = encoded(&mut rough, Activations::default(), &samples(&[6, 16]));
    let plain = plain.measured.expect("compared").difference;
    assert!(
        difference.loss < plain.loss,
        "{} {}",
        difference.loss,
        plain.loss
    );
}

#[test]
fn all_operations_read_codes_and_compute_with_integers() {
    let mut m = encoder();
    let coded = encoded(&mut m, Activations::bct(), &samples(&[6, 16]));
    assert_eq!((coded.products, coded.integers), (7, 4));
    assert_eq!(
        (
            count(&m, "integer_softmax"),
            count(&m, "integer_layer_norm")
        ),
        (1, 3)
    );
    assert_eq!(count(&m, "softmax") + count(&m, "layer_normalization"), 0);
    for &n in &m.top().nodes {
        let node = m.node(n);
        if node.op.name == "quantize_linear" {
            let scale = m
                .as_constant(node.operand(1).expect("a scale"))
                .expect("known");
            let scale = scale.decode().expect("plain").to_f64s().expect("numbers")[0];
            assert_eq!(scale.log2().fract(), 0.0, "{scale}");
        }
    }
    let difference = coded.measured.expect("compared").difference;
    assert!(difference.loss < 0.05, "{difference:?}");
    // The same codes with floats between them are about as near.
    let mut floats = encoder();
    let asked = Activations {
        integers: false,
        ..Activations::bct()
    };
    let coded = encoded(&mut floats, asked, &samples(&[6, 16]));
    assert_eq!(
        (
            coded.integers,
            count(&floats, "softmax"),
            count(&floats, "layer_normalization")
        ),
        (0, 1, 3)
    );
    let floats = coded.measured.expect("compared").difference;
    assert!(
        difference.loss < 3.0 * floats.loss + 1e-3,
        "{} {}",
        difference.loss,
        floats.loss
    );
}

#[test]
fn images_stay_codes_between_convolutions() {
    let (mut m, fresh) = (Module::new("net"), Cell::new(0));
    let x = m.add_input(
        Module::TOP,
        "x",
        Type::tensor(ElemType::F32, [1i64, 3, 8, 8]),
    );
    let mut b = Builder::new(&mut m, Module::TOP, "n", &fresh);
    let y = (|| {
        let w: Vec<ValueId> = [([4, 3, 3, 3], 1), ([6, 3, 3, 3], 2), ([5, 10, 3, 3], 3)]
            .iter()
            .map(|(shape, seed)| b.constant(&weight(shape, *seed)))
            .collect();
        let parts = [b.op("conv", &[x, w[0]])?, b.op("conv", &[x, w[1]])?];
        let parts = [b.op("relu", &[parts[0]])?, b.op("relu", &[parts[1]])?];
        let both = b.concat(&parts, 1)?;
        let pooled = b.op_with(
            "max_pool",
            &[both],
            [("kernel_shape", lapidary_ir::Attr::Ints(vec![2, 2]))],
        )?;
        b.op("conv", &[pooled, w[2]])
    })();
    m.region_mut(Module::TOP).outputs.push(y.expect("fits"));
    m.output_names.push("y".into());
    let coded = encoded(&mut m, Activations::int8(), &samples(&[1, 3, 8, 8]));
    assert_eq!((coded.values, coded.products), (3, 3));
    // Both parts have one range, so that codes are concatenated and pooled.
    let mut scales = std::collections::BTreeSet::new();
    for &n in &m.top().nodes {
        let node = m.node(n);
        if node.op.name == "quantize_linear"
            && node.operand(0).is_some_and(|v| m.producer(v).is_some())
        {
            let scale = m
                .as_constant(node.operand(1).expect("a scale"))
                .expect("known")
                .decode()
                .expect("plain");
            scales.insert(scale.to_f64s().expect("numbers")[0].to_bits());
        }
    }
    assert_eq!(scales.len(), 1);
    assert!(coded.measured.expect("compared").difference.loss < 1e-3);
}

#[test]
fn what_is_added_to_an_image_is_codes() {
    let (mut m, fresh) = (Module::new("net"), Cell::new(0));
    let ty = Type::tensor(ElemType::F32, [1i64, 4, 6, 6]);
    let x = m.add_input(Module::TOP, "x", ty);
    let mut b = Builder::new(&mut m, Module::TOP, "n", &fresh);
    let w: Vec<ValueId> = (1..4)
        .map(|seed| b.constant(&weight(&[4, 4, 1, 1], seed)))
        .collect();
    let y = (|| {
        let first = b.op("conv", &[x, w[0]])?;
        let first = b.op("relu", &[first])?;
        let second = b.op("conv", &[first, w[1]])?;
        let sum = b.op("add", &[second, first])?;
        let sum = b.op("relu", &[sum])?;
        b.op("conv", &[sum, w[2]])
    })();
    m.region_mut(Module::TOP).outputs.push(y.expect("fits"));
    m.output_names.push("y".into());
    // The input, both results of the first convolutions, and the sum.
    let coded = encoded(&mut m, Activations::int8(), &samples(&[1, 4, 6, 6]));
    assert_eq!((coded.values, coded.products), (4, 3));
    assert!(coded.measured.expect("compared").difference.loss < 1e-3);
}

#[test]
fn numbers_without_a_range_stay_floats() {
    let (mut m, fresh) = (Module::new("net"), Cell::new(0));
    let x = m.add_input(Module::TOP, "x", Type::tensor(ElemType::F32, [4i64, 8]));
    let mut b = Builder::new(&mut m, Module::TOP, "n", &fresh);
    let (w, v) = (
        b.constant(&weight(&[8, 8], 1)),
        b.constant(&weight(&[8, 8], 2)),
    );
    let log = b.op("log", &[x]).expect("fits");
    // What only moves elements stands between.
    let log = b.transpose(log, &[1, 0]).expect("fits");
    let log = b.transpose(log, &[1, 0]).expect("fits");
    let y = b.op("matmul", &[log, w]).expect("fits");
    let z = b.op("matmul", &[x, v]).expect("fits");
    for (v, name) in [(z, "z"), (y, "y")] {
        m.region_mut(Module::TOP).outputs.push(v);
        m.output_names.push(name.into());
    }
    let asked = Activations::default();
    let coded = encoded(&mut m, asked, &samples(&[4, 8]));
    // Some inputs are below 0.
    assert_eq!((coded.values, coded.products, coded.left.len()), (1, 1, 1));
}

#[test]
fn what_cannot_be_codes_is_said() {
    let data = samples(&[6, 16]);
    let tried = |asked: Activations, data: Option<&Evaluated>, mut m: Module| {
        let means = Means {
            data: data.map(|d| d as &dyn Samples),
            ..Means::default()
        };
        let recipe = Recipe {
            activations: Some(asked),
            ..Recipe::default()
        };
        let before = m.clone();
        let error = follow(&mut m, &recipe, &means).expect_err("cannot be");
        assert!(before.same_program(&m));
        error.to_string()
    };
    assert!(tried(Activations::int8(), None, encoder()).contains("--calibrate"));
    let far = Activations {
        smooth: 1.5,
        ..Activations::default()
    };
    assert!(tried(far, Some(&data), encoder()).contains("smooth"));
    let mut nothing = Module::new("net");
    let x = nothing.add_input(Module::TOP, "x", Type::tensor(ElemType::F32, [6i64, 16]));
    nothing.region_mut(Module::TOP).outputs.push(x);
    nothing.output_names.push("y".into());
    assert!(tried(Activations::int8(), Some(&data), nothing).contains("no operation"));
}

#[test]
fn random_networks_are_near_their_codes() {
    for seed in 0..8u64 {
        let (mut m, fresh) = (Module::new("net"), Cell::new(0));
        let mut random = SplitMix64::new(seed);
        let x = m.add_input(Module::TOP, "x", Type::tensor(ElemType::F32, [3i64, 12]));
        let mut b = Builder::new(&mut m, Module::TOP, "n", &fresh);
        let mut y = x;
        for layer in 0..4 {
            let w = b.constant(&weight(&[12, 12], 10 * seed + layer));
            y = b.op("matmul", &[y, w]).expect("fits");
            let scale = b.scalar(ElemType::F32, 0.25);
            y = b.op("mul", &[y, scale]).expect("fits");
            y = match random.below(4) {
                0 => b.op("relu", &[y]).expect("fits"),
                1 => b.op("gelu", &[y]).expect("fits"),
                2 => b.op("add", &[y, x]).expect("fits"),
                _ => b
                    .op_with("softmax", &[y], [("axis", (-1i64).into())])
                    .expect("fits"),
            };
        }
        m.region_mut(Module::TOP).outputs.push(y);
        m.output_names.push("y".into());
        let scope = if seed % 2 == 0 {
            Scope::All
        } else {
            Scope::Products
        };
        let asked = Activations {
            scope,
            powers_of_two: random.below(2) == 0,
            integers: random.below(2) == 0,
            smooth: 0.5 * random.below(2) as f64,
        };
        let coded = encoded(&mut m, asked.clone(), &samples(&[3, 12]));
        assert_eq!(coded.products, 4);
        let difference = coded.measured.expect("compared").difference;
        assert!(difference.loss < 0.02, "{seed} {asked:?} {difference:?}");
    }
}
