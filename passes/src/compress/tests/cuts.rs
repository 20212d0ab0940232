//! Recipes that cut structures away.

use super::*;
use crate::compress::{remove, transfer};

fn recipe(settings: &str) -> Recipe {
    toml::from_str(&format!("[[cut]]\nname = 'v'\n{settings}")).expect("reads")
}

/// The constant of this name that nodes read.
fn constant(m: &Module, name: &str) -> ValueId {
    let nodes = m.top().nodes.iter();
    let mut read = nodes.flat_map(|&n| m.node(n).operands.iter().flatten().copied());
    let found = read.find(|&v| m.value(v).name == name && m.as_constant(v).is_some());
    found.expect("it is read")
}

fn shape(m: &Module, name: &str) -> Vec<usize> {
    let found = m.as_constant(constant(m, name)).expect("a constant");
    found.shape().to_vec()
}

/// Multiplies what belongs to neurons by numbers: columns of `w` and rows of `v`.
fn scaled(by: impl Fn(usize) -> f64) -> Module {
    let mut m = classifier();
    for (name, neuron) in [("w", (|i| i % 96) as fn(usize) -> usize), ("v", |i| i / 24)] {
        let v = constant(&m, name);
        let tensor = m
            .as_constant(v)
            .expect("a constant")
            .decode()
            .expect("plain");
        let values = tensor.to_f64s().expect("numbers").into_iter().enumerate();
        let values = values.map(|(i, x)| x * by(neuron(i))).collect();
        let tensor = Tensor::from_f64(ElemType::F32, tensor.shape(), values);
        let new = m.add_constant(name, Constant::from_tensor(&tensor));
        m.replace_uses(v, new);
    }
    m
}

/// Images that are not zero on average, so that neurons are not either.
fn bright() -> Evaluated {
    let image = |k| {
        let dark = weight(&[4, 8, 6, 6], 70 + k);
        let values = dark
            .to_f64s()
            .expect("numbers")
            .iter()
            .map(|x| x + 0.7)
            .collect();
        vec![Tensor::from_f64(ElemType::F32, [4, 8, 6, 6], values).into()]
    };
    Evaluated((0..6u64).map(image).collect())
}

#[test]
fn the_neurons_with_the_least_weights_go() {
    let original = scaled(|neuron| if neuron % 4 == 1 { 1e-3 } else { 1.0 });
    let recipe = recipe("share = 0.25\n[[weight]]\nname = 'w'\nmethod = 'rtn'\nbits = 8");
    let mut m = original.clone();
    let report = follow(&mut m, &recipe, &Means::default()).expect("fits");
    let (cut, removed) = &report.cuts[0];
    assert_eq!((cut.method, removed.groups), (Score::Magnitude, (24, 96)));
    assert_eq!(removed.parameters, (24 * (32 + 24), 96 * (32 + 24)));
    let gone: Vec<usize> = (0..96).filter(|n| n % 4 == 1).collect();
    let places = |name: &str, axis| removed.slices[&(name.to_owned(), axis)].iter().copied();
    assert!(places("w", 1).eq(gone.iter().copied()) && places("v", 0).eq(gone));
    // The weight is a term by now, whose rows are outputs.
    assert_eq!(shape(&m, "w"), [72, 32]);
    assert!(
        3 * report.bytes.1 < 2 * report.bytes.0,
        "{:?}",
        report.bytes
    );
    assert!(divergence(&original, &m, &images()) < 1e-3);
    assert_eq!(report.recipe().cuts, recipe.cuts);
    let mut again = original.clone();
    follow(&mut again, &report.recipe(), &Means::default()).expect("fits");
    let image: Vec<Value> = images().0.remove(0);
    let run = |m: &Module| eval::run(m, image.clone()).expect("runs");
    assert_eq!(run(&m), run(&again));
}

/// What varies little goes, though its weights are large, and its mean stays.
#[test]
fn fluctuations_decide_and_means_stay() {
    // Some neurons are always near 1 or -1: they hardly vary.
    let (original, samples) = (scaled(|n| if n % 4 == 1 { 20.0 } else { 1.0 }), bright());
    let cut = |method: &str| {
        let mut m = original.clone();
        let recipe = recipe(&format!("method = '{method}'\nshare = 0.2"));
        let report = follow(&mut m, &recipe, &on(&samples)).expect("fits");
        (divergence(&original, &m, &samples), report)
    };
    let ((flap, report), (magnitude, _)) = (cut("flap"), cut("magnitude"));
    assert!(flap < magnitude, "{flap} {magnitude}");
    let (_, mut removed) = report.cuts.into_iter().next().expect("one");
    assert_eq!(removed.means["v"].len(), 96);
    removed.means.clear();
    let mut without = original.clone();
    remove(&mut without, &removed).expect("can go");
    let without = divergence(&original, &without, &samples);
    assert!(2.0 * flap < without, "{flap} {without}");
}

#[test]
fn one_of_each_kind_stays() {
    let mut m = classifier();
    follow(&mut m, &recipe("share = 0.999"), &Means::default()).expect("fits");
    assert_eq!(shape(&m, "v"), [1, 24]);
}

#[test]
fn another_form_loses_the_same_or_says_what_is_in_the_way() {
    let (original, samples) = (classifier(), images());
    let mut m = original.clone();
    let text = recipe("share = 0.5\n[[weight]]\nname = 'w'\nmethod = 'rtn'");
    let report = follow(&mut m, &text, &Means::default()).expect("fits");
    let mut other = original.clone();
    transfer(&m, &report, &mut other).expect("fits");
    assert_eq!(divergence(&m, &other, &samples), 0.0);
    // A form that gives the neurons' values needs them.
    let mut open = original.clone();
    let neurons = |m: &Module| {
        let tanh = m.top().nodes.iter().find(|&&n| m.node(n).op.name == "tanh");
        m.node(*tanh.expect("there")).results[0]
    };
    let shown = neurons(&open);
    open.region_mut(Module::TOP).outputs.push(shown);
    open.output_names.push("neurons".into());
    let refused = transfer(&m, &report, &mut open);
    assert!(matches!(refused, Err(CompressError::Cut(_, why)) if why.contains("tied")));
}

#[test]
fn cuts_that_cannot_be_are_said() {
    for (settings, why) in [
        ("share = 1.0", "less than 1"),
        ("share = -0.1", "at least 0"),
        ("share = nan", "at least 0"),
        ("share = 0.5\nmethod = 'flap'", "--calibrate"),
    ] {
        let refused = follow(&mut classifier(), &recipe(settings), &Means::default());
        let said = refused.expect_err(settings).to_string();
        assert!(said.contains(why) && said.contains("`v`"), "{said}");
    }
    let other: Recipe = toml::from_str("[[cut]]\nname = 'x*'\nshare = 0.5").expect("reads");
    let refused = follow(&mut classifier(), &other, &Means::default());
    assert!(refused.is_err_and(|e| e.to_string().contains("no weight of this name")));
    assert!(toml::from_str::<Recipe>("[[cut]]\nname = 'v'\nshare = 0.5\nmethod = 'luck'").is_err());
}
