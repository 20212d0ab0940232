//! Small networks of the kinds that people compile, through compiled code, against their reference outputs.
//!
//! `LAPIDARY_DATA` names the folder with `workloads/NAME.onnx` and `NAME.npz` (inputs `in0` …, outputs `out0` …);
//! without it the test says that it is skipped. `LAPIDARY_WORKLOAD=unet` runs only networks with that in their
//! name. Floats are compared with rtol 1e-4 and atol 1e-5, integers exactly. Beside them a network of its own, of `bf16`.

#[path = "support/data.rs"]
mod data;

use data::reference;
use lapidary::specialize::Given;
use lapidary::{CompileOptions, driver, values};
use lapidary_ir::builder::Builder;
use lapidary_ir::random::SplitMix64;
use lapidary_ir::tensor::{Data, Tensor, Value};
use lapidary_ir::types::Type;
use lapidary_ir::{ElemType, Module, eval};
use lapidary_runtime::ModelOptions;
use std::cell::Cell;
use std::path::{Path, PathBuf};

const RTOL: f64 = 1e-4;
const ATOL: f64 = 1e-5;

fn networks() -> Option<Vec<PathBuf>> {
    let folder = PathBuf::from(std::env::var_os("LAPIDARY_DATA")?).join("workloads");
    let only = std::env::var("LAPIDARY_WORKLOAD").unwrap_or_default();
    let entries = std::fs::read_dir(folder).ok()?;
    let mut found: Vec<PathBuf> = entries
        .filter_map(|e| Some(e.ok()?.path()))
        .filter(|p| p.extension().is_some_and(|e| e == "onnx"))
        .filter(|p| p.to_string_lossy().contains(&only))
        .collect();
    found.sort();
    Some(found)
}

fn check(model: &Path, optimize: bool, threads: usize) -> Result<(), String> {
    let (inputs, wanted) = reference(model)?;
    let mut options = CompileOptions::host(threads);
    options.optimize = optimize;
    let module = driver::import(model, &options).map_err(|e| e.to_string())?;
    let given = Given::from_runtime(&inputs);
    let compiled = driver::compile(module, &model.display().to_string(), &options, Some(&given))
        .map_err(|e| e.to_string())?;
    let options = ModelOptions {
        threads,
        pin: false,
        ..ModelOptions::default()
    };
    let loaded = compiled.load(options).map_err(|e| e.to_string())?;
    let outputs = loaded.run(&inputs).map_err(|e| e.to_string())?;
    for (n, (want, got)) in wanted.iter().zip(&outputs).enumerate() {
        let both = values::to_evaluator(want).zip(values::to_evaluator(got));
        let Some((Value::Tensor(want), Value::Tensor(got))) = both else {
            return Err(format!("output {n} is no tensor"));
        };
        same(&want, &got).map_err(|e| format!("output {n}: {e}"))?;
    }
    Ok(())
}

fn same(want: &Tensor, got: &Tensor) -> Result<(), String> {
    if want.shape() != got.shape() {
        return Err(format!(
            "shape {:?}, expected {:?}",
            got.shape(),
            want.shape()
        ));
    }
    let (differ, text) = match (want.data(), got.data()) {
        (Data::Float(w), Data::Float(g)) => {
            let off = |i: &usize| {
                let (w, g) = (w[*i], g[*i]);
                let close = (w - g).abs() <= ATOL + RTOL * w.abs();
                !(close || w == g || w.is_nan() && g.is_nan())
            };
            let bad: Vec<usize> = (0..w.len()).filter(off).collect();
            let text = bad
                .first()
                .map(|&i| format!("{} for {} at {i}", g[i], w[i]));
            (bad.len(), text)
        }
        (Data::Int(w), Data::Int(g)) => {
            let bad: Vec<usize> = (0..w.len()).filter(|&i| w[i] != g[i]).collect();
            let text = bad
                .first()
                .map(|&i| format!("{} for {} at {i}", g[i], w[i]));
            (bad.len(), text)
        }
        _ => return Err(format!("is {}, expected {}", got.elem(), want.elem())),
    };
    match text {
        Some(text) => Err(format!(
            "{differ} of {} elements differ: {text}",
            want.len()
        )),
        None => Ok(()),
    }
}

#[test]
fn networks_give_their_reference_outputs() {
    let Some(networks) = networks() else {
        println!("skipped: LAPIDARY_DATA does not name the folder with `workloads`");
        return;
    };
    let mut failures = vec![];
    for model in &networks {
        let name = model.file_stem().unwrap_or_default().to_string_lossy();
        for (optimize, threads) in [(true, 2), (false, 1)] {
            let how = if optimize { "optimized" } else { "as imported" };
            if let Err(why) = check(model, optimize, threads) {
                failures.push(format!("{name} ({how}): {why}"));
            }
        }
    }
    println!("{} networks", networks.len());
    assert!(
        failures.is_empty(),
        "{} failures:\n{}",
        failures.len(),
        failures.join("\n")
    );
}

#[cfg(target_arch = "x86_64")]
fn has_bf16() -> bool {
    std::arch::is_x86_feature_detected!("avx512bf16")
}

#[cfg(not(target_arch = "x86_64"))]
fn has_bf16() -> bool {
    false
}

/// Products of 45 and 150 columns and a convolution with 40 channels, each with less than a whole panel.
#[test]
fn products_of_bf16_are_used_where_they_are_allowed_and_there() {
    let numbers = |shape: &[usize], seed| {
        let n = shape.iter().product();
        Tensor::from_f64(ElemType::F32, shape, SplitMix64::new(seed).normals(n))
    };
    let (mut module, fresh) = (Module::new("bf16"), Cell::new(0));
    let shape = [1usize, 5, 9, 71];
    let ty = Type::tensor(ElemType::F32, shape.map(|d| d as i64).to_vec());
    let x = module.add_input(Module::TOP, "x", ty);
    let mut b = Builder::new(&mut module, Module::TOP, "n", &fresh);
    let weights = [&[71usize, 45][..], &[45, 150], &[40, 5, 3, 3]];
    let [first, second, filters] = weights.map(|w| b.constant(&numbers(w, w[0] as u64)));
    let y = b.op("matmul", &[x, first]).expect("a product");
    let y = b.op("relu", &[y]).expect("numbers");
    let y = b.op("matmul", &[y, second]).expect("a product");
    let y = b.op("conv", &[y, filters]).expect("a convolution");
    module.region_mut(Module::TOP).outputs.push(y);
    module.output_names.push("y".into());
    let input = Value::from(numbers(&shape, 1));
    let want = eval::run(&module, vec![input.clone()]).expect("runs");
    let mut options = CompileOptions::host(2);
    options.bf16 = true;
    let compiled = driver::compile(module, "bf16", &options, None).expect("compiles");
    let loaded = compiled.load(ModelOptions::default()).expect("loads");
    let got = loaded.run(&[values::to_runtime(&input).expect("numbers")]);
    let got = values::to_evaluator(&got.expect("runs")[0]).expect("a tensor");
    let of = |v: &Value| v.as_tensor().and_then(Tensor::to_f64s).expect("numbers");
    let (got, want) = (of(&got), of(&want[0]));
    let scale = want.iter().fold(0f64, |most, w| most.max(w.abs()));
    let both = got.iter().zip(&want);
    let error = both.fold(0f64, |most, (g, w)| most.max((g - w).abs())) / scale;
    // Numbers have eight bits.
    let expected = if has_bf16() { 1e-5..2e-2 } else { 0.0..1e-5 };
    assert!(expected.contains(&error), "{error}");
}
