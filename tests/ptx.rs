//! Models for GPUs, without one: their PTX is assembled for every GPU without spills, and run in the PTX interpreter
//! through the whole host program, with the results of the reference.
//!
//! `LAPIDARY_DATA` names the folder with the models, `LAPIDARY_PYTHON` a Python with `nvidia-cuda-nvcc`; without them the
//! tests say that they are skipped. `LAPIDARY_WORKLOAD=unet` runs only networks with that in their name.

#[path = "support/data.rs"]
mod data;
#[path = "support/gpu.rs"]
mod gpu;

use data::{data, reference};
use gpu::Interpreter;
use lapidary::backend;
use lapidary::driver::{self, Compiled, Compression};
use lapidary::specialize::Given;
use lapidary::{CompileOptions, values};
use lapidary_ir::builder::Builder;
use lapidary_ir::encodings::sampling::Sampler;
use lapidary_ir::encodings::{Constructor, ENCODINGS, Encoding, affine, dense, int, sparse};
use lapidary_ir::target::Target;
use lapidary_ir::tensor::{Tensor, Value};
use lapidary_ir::{Attr, Attrs, Constant, Dim, ElemType, Module, Type, ValueId, eval};
use lapidary_passes::compress::{Entry, Level, Recipe};
use lapidary_passes::lower::Choice;
use lapidary_runtime::{ModelOptions, Value as RunValue};
use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn options(gpu: &str) -> CompileOptions {
    let target = Target::named(Some(gpu), None).expect("a GPU");
    let backend = backend::for_target(None, &target).expect("PTX is always there");
    let mut options = CompileOptions::host(1);
    options.generate_for(target, backend);
    options
}

fn compile(path: &Path, dims: &[(&str, i64)], given: Option<&Given>) -> Result<Compiled, String> {
    let mut options = options("sm_80");
    options.dims = dims.iter().map(|(n, v)| ((*n).to_owned(), *v)).collect();
    let module = driver::import(path, &options).map_err(|e| e.to_string())?;
    driver::compile(module, &path.display().to_string(), &options, given).map_err(|e| e.to_string())
}

/// Assembles a module for every GPU.
fn assemble(code: &[u8], assemblers: &[PathBuf]) -> Result<(), String> {
    let text = String::from_utf8_lossy(code);
    for gpu in lapidary_ptx::GPUS {
        let body = text.split_once(".address_size").map_or("", |t| t.1);
        let head = lapidary_ptx::header(gpu);
        let head = head.split_once(".address_size").map_or("", |t| t.0);
        let text = gpu.text(&format!("{head}.address_size{body}")).into_owned();
        // One assembler for each GPU: the newest; both for the oldest.
        let some = match gpu.name() {
            "sm_80" => assemblers,
            _ => &assemblers[assemblers.len().saturating_sub(1)..],
        };
        for ptxas in some {
            gpu::assembled(ptxas, gpu, &text)?;
        }
    }
    Ok(())
}

fn run(compiled: Compiled, inputs: &[RunValue]) -> Result<Vec<RunValue>, String> {
    let device = Arc::new(Interpreter::new(&compiled.code));
    let one = ModelOptions {
        threads: 1,
        pin: false,
        ..ModelOptions::default()
    };
    let model = compiled
        .load_on(Some(device), one)
        .map_err(|e| e.to_string())?;
    model.run(inputs).map_err(|e| e.to_string())
}

fn near(want: &Tensor, got: &Tensor) -> Result<(), String> {
    let (Some(w), Some(g)) = (want.to_f64s(), got.to_f64s()) else {
        return Err("no numbers".to_owned());
    };
    if want.shape() != got.shape() {
        return Err(format!(
            "shape {:?}, expected {:?}",
            got.shape(),
            want.shape()
        ));
    }
    let off = |(w, g): &(&f64, &f64)| {
        let close = (**w - **g).abs() <= 1e-5 + 1e-4 * w.abs();
        !(close || w == g || w.is_nan() && g.is_nan())
    };
    match w.iter().zip(&g).filter(off).count() {
        0 => Ok(()),
        n => Err(format!("{n} of {} elements differ", w.len())),
    }
}

fn network(model: &Path, assemblers: &[PathBuf]) -> Result<usize, String> {
    let (inputs, wanted) = reference(model)?;
    let given = Given::from_runtime(&inputs);
    let compiled = compile(model, &[], Some(&given))?;
    let kernels = compiled.kernels.len();
    if !assemblers.is_empty() {
        assemble(&compiled.code, assemblers)?;
    }
    let outputs = run(compiled, &inputs)?;
    for (n, (want, got)) in wanted.iter().zip(&outputs).enumerate() {
        let both = values::to_evaluator(want).zip(values::to_evaluator(got));
        let Some((Value::Tensor(want), Value::Tensor(got))) = both else {
            return Err(format!("output {n} is no tensor"));
        };
        near(&want, &got).map_err(|e| format!("output {n}: {e}"))?;
    }
    Ok(kernels)
}

#[test]
fn networks_give_their_reference_outputs() {
    let Some(folder) = data("workloads") else {
        return;
    };
    let assemblers = gpu::assemblers();
    let only = std::env::var("LAPIDARY_WORKLOAD").unwrap_or_default();
    let entries = std::fs::read_dir(folder).expect("a folder");
    let mut networks: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
    networks.retain(|p| p.extension().is_some_and(|e| e == "onnx"));
    networks.retain(|p| p.to_string_lossy().contains(&only));
    networks.sort();
    let (mut failures, mut kernels) = (vec![], 0);
    for model in &networks {
        let name = model.file_stem().unwrap_or_default().to_string_lossy();
        let start = std::time::Instant::now();
        match network(model, &assemblers) {
            Ok(n) => kernels += n,
            Err(why) => failures.push(format!("{name}: {why}")),
        }
        println!("{name}: {:.1} s", start.elapsed().as_secs_f64());
    }
    println!("{} networks of {kernels} kernels", networks.len());
    assert!(
        failures.is_empty(),
        "{} failures:\n{}",
        failures.len(),
        failures.join("\n")
    );
}

/// Real models compile, and every kernel assembles.
#[test]
fn real_models_assemble() {
    let Some(folder) = data("squeezenet") else {
        return;
    };
    let assemblers = gpu::assemblers();
    let folder = folder.parent().expect("a folder of data");
    for (model, dims) in [
        ("squeezenet/squeezenet-1.0-dc.onnx", &[("N", 1)][..]),
        ("all-MiniLM-L6-v2", &[]),
        ("stories260k", &[]),
        ("llama-wt2", &[]),
    ] {
        let path = folder.join(model);
        let compiled = compile(&path, dims, None).unwrap_or_else(|e| panic!("{model}: {e}"));
        assert!(!compiled.kernels.is_empty());
        println!("{model}: {} kernels", compiled.kernels.len());
        if !assemblers.is_empty() {
            assemble(&compiled.code, &assemblers).unwrap_or_else(|e| panic!("{model}: {e}"));
        }
    }
}

/// `x · termᵀ` for a term of this constructor; `None` if it has no such term.
fn product(ctor: &Constructor, seed: u64) -> Option<(Module, Encoding, Tensor)> {
    let mut s = Sampler::new(seed, 2);
    let (rows, columns) = (s.one_of(&[3, 8, 12, 40]), s.one_of(&[4, 8, 16, 72]));
    let mut draw = |elem| (ctor.sample)(&mut s, elem, &[rows, columns]);
    let e = [ElemType::F32, ElemType::U8, ElemType::F16, ElemType::U16]
        .into_iter()
        .find_map(&mut draw)?;
    let x = Tensor::from_f64(ElemType::F32, [3, columns], s.numbers(3 * columns));
    let (mut m, fresh) = (Module::new("product"), Cell::new(0));
    let term = m.add_constant("w", Constant::new(e.clone()));
    let given = m.add_input(
        Module::TOP,
        "x",
        Type::tensor(ElemType::F32, [3i64, columns as i64]),
    );
    let mut b = Builder::new(&mut m, Module::TOP, "product", &fresh);
    let numbers = match e.elem {
        ElemType::F32 => term,
        _ => b.cast(term, ElemType::F32).expect("fits"),
    };
    let turned = b.transpose(numbers, &[1, 0]).expect("a matrix");
    let y = b.op("matmul", &[given, turned]).expect("fits");
    m.region_mut(Module::TOP).outputs.push(y);
    m.output_names.push("y".to_owned());
    Some((m, e, x))
}

/// Every constructor of encodings is multiplied with on a GPU as its plain decode says.
#[test]
fn products_with_every_encoding() {
    let mut of_none = vec![];
    for ctor in ENCODINGS {
        let mut drawn = 0;
        for seed in 0..6 {
            let Some((m, e, x)) = product(ctor, seed) else {
                continue;
            };
            drawn += 1;
            let want =
                eval::run(&m, vec![Value::from(x.clone())]).unwrap_or_else(|e| panic!("{e}"));
            // Decoded when it is loaded, and in the kernel that reads it.
            for prepare in [true, false] {
                let mut options = options("sm_80");
                options.prepare = prepare;
                let compiled = driver::compile(m.clone(), "product", &options, None);
                let compiled = compiled.unwrap_or_else(|err| panic!("{e}: {err}"));
                let x = values::to_runtime(&Value::from(x.clone())).expect("a tensor");
                let got = run(compiled, &[x]).unwrap_or_else(|err| panic!("{e}: {err}"));
                let (Value::Tensor(want), Some(Value::Tensor(got))) =
                    (&want[0], values::to_evaluator(&got[0]))
                else {
                    panic!("{e}: no tensor");
                };
                near(want, &got).unwrap_or_else(|err| panic!("{e}: {err}"));
            }
        }
        println!("{}: {drawn} terms", ctor.name);
        if drawn == 0 {
            of_none.push(ctor.name);
        }
    }
    assert!(of_none.is_empty(), "no matrix of {of_none:?}");
}

/// Compiles a module, assembles it, and runs it in the interpreter: as near to the evaluator as `tolerance`, relative to the
/// largest number; what was chosen for its products.
fn checked(
    name: &str,
    module: &Module,
    options: &CompileOptions,
    inputs: &[Tensor],
    tolerance: f64,
) -> Vec<Choice> {
    let given: Vec<Value> = inputs.iter().cloned().map(Value::from).collect();
    let want = eval::run(module, given.clone()).unwrap_or_else(|e| panic!("{name}: {e}"));
    let compiled = driver::compile(module.clone(), name, options, None)
        .unwrap_or_else(|e| panic!("{name}: {e}"));
    let assemblers = gpu::assemblers();
    if !assemblers.is_empty() {
        assemble(&compiled.code, &assemblers).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
    let choices = compiled.report.choices.clone();
    let given: Vec<RunValue> = given
        .iter()
        .map(|v| values::to_runtime(v).expect("a tensor"))
        .collect();
    let got = run(compiled, &given).unwrap_or_else(|e| panic!("{name}: {e}"));
    for (want, got) in want.iter().zip(&got) {
        let (Value::Tensor(want), Some(Value::Tensor(got))) = (want, values::to_evaluator(got))
        else {
            panic!("{name}: no tensor");
        };
        assert_eq!(want.shape(), got.shape(), "{name}");
        let [want, got] = [want, &got].map(|t| t.to_f64s().expect("numbers"));
        let most = want.iter().fold(0.0f64, |m, v| m.max(v.abs()));
        for (i, (w, g)) in want.iter().zip(&got).enumerate() {
            let off = (w - g).abs();
            assert!(
                off <= tolerance * most,
                "{name}: element {i} is {g}, not {w}"
            );
        }
    }
    choices
}

/// A trained model with weights of a few bits: its products read them packed, and give what the evaluator gives.
#[test]
fn a_model_with_packed_weights() {
    let Some(path) = data("llama-wt2") else {
        return;
    };
    for bits in [4, 8] {
        let mut options = options("sm_80");
        let mut module = driver::import(&path, &options).unwrap_or_else(|e| panic!("{e}"));
        let level = Level {
            bits,
            group: 32,
            symmetric: true,
            ..Level::default()
        };
        let entry = Entry {
            name: "*_proj.weight".to_owned(),
            level,
        };
        options.compression = Some(Compression::Recipe(Recipe {
            weights: vec![entry],
            ..Recipe::default()
        }));
        driver::compress(&mut module, "llama-wt2", &options).unwrap_or_else(|e| panic!("{e}"));
        options.compression = None;
        // A token alone, and more than a kernel takes at a time.
        for tokens in [1usize, 6] {
            let ids = (0..tokens).map(|i| (i * 397 % 4096) as i128).collect();
            let ids = Tensor::from_int(ElemType::I64, [1, tokens], ids);
            let choices = checked("llama-wt2", &module, &options, &[ids], 1e-4);
            assert!(choices.len() >= 6 * 7, "{} products", choices.len());
            for choice in &choices {
                println!("{choice}");
                assert!(
                    choice
                        .kernels
                        .iter()
                        .all(|k| *k == format!("gemv_int{bits}"))
                );
            }
        }
    }
}

/// `y = x + W2 gelu(W1 x)` with weights of 4 bits in groups of 128, for `rows` rows, or for any number.
fn feed_forward(rows: Option<i64>, [inner, outer]: [usize; 2]) -> Module {
    let (mut m, fresh) = (Module::new("feed_forward"), Cell::new(0));
    let rows = rows.map_or_else(|| Dim::sym("N"), Dim::from);
    let shape = vec![rows, Dim::from(outer as i64)];
    let x = m.add_input(Module::TOP, "x", Type::tensor(ElemType::F32, shape));
    let mut b = Builder::new(&mut m, Module::TOP, "feed_forward", &fresh);
    let mut s = Sampler::new(7, 2);
    let mut product = |b: &mut Builder, x: ValueId, [n, k]: [usize; 2]| {
        let codes = (0..n * k / 2).map(|_| s.one_of(&[0x3A, 0x91, 0xE6, 0x78, 0x0F]) as i128);
        let codes = Tensor::from_int(ElemType::U8, [n, k / 128, 64], codes.collect());
        let scales = (0..n * k / 128).map(|_| s.one_of(&[1, 3, 5]) as f64 / 1024.0);
        let scales = Tensor::from_f64(ElemType::F32, [n, k / 128], scales.collect());
        let operands = [x, b.constant(&codes), b.constant(&scales)].map(Some);
        let attrs: Attrs = [("K", k), ("N", n), ("bits", 4), ("block_size", 128)]
            .map(|(name, v)| (name.to_owned(), Attr::Int(v as i64)))
            .into();
        b.node("matmul_nbits", operands.into(), attrs, 1)
            .expect("fits")[0]
    };
    let h = product(&mut b, x, [inner, outer]);
    let h = b.op("gelu", &[h]).expect("numbers");
    let h = product(&mut b, h, [outer, inner]);
    let y = b.op("add", &[x, h]).expect("of one shape");
    m.region_mut(Module::TOP).outputs.push(y);
    m.output_names.push("y".to_owned());
    m
}

/// Tensor cores multiply halves only where the user allows it.
#[test]
fn batches_of_halves_where_they_are_allowed() {
    let sizes = [1024, 256];
    let mut multiplied = 0;
    for (rows, given) in [
        (Some(1), 1),
        (Some(16), 16),
        (Some(70), 70),
        (None, 1),
        (None, 9),
    ] {
        let module = feed_forward(rows, sizes);
        let mut s = Sampler::new(3, 2);
        let x = Tensor::from_f64(ElemType::F32, [given, 256], s.numbers(given * 256));
        for halves in [false, true] {
            let mut options = options("sm_90a");
            options.halves = halves;
            let tolerance = if halves { 5e-3 } else { 1e-5 };
            let name = format!("{rows:?} rows, {given} given, halves {halves}");
            let inputs = std::slice::from_ref(&x);
            let choices = checked(&name, &module, &options, inputs, tolerance);
            assert_eq!(choices.len(), 2, "{name}");
            for choice in &choices {
                println!("{choice}");
                let cores = choice.kernels.iter().any(|k| k == "gemm_int4_f16");
                assert!(!cores || halves && rows != Some(1), "{name}: {choice}");
                multiplied += usize::from(cores);
            }
        }
    }
    assert!(multiplied > 0, "tensor cores multiply nothing");
}

/// `y = gelu(x W^T)` with weights `[n, k]` of a term, for `rows` rows, or for any number.
fn product_with(term: Encoding, rows: Option<i64>) -> Module {
    let (mut m, fresh) = (Module::new("product"), Cell::new(0));
    let rows = rows.map_or_else(|| Dim::sym("N"), Dim::from);
    let shape = vec![rows, Dim::from(term.shape[1] as i64)];
    let x = m.add_input(Module::TOP, "x", Type::tensor(ElemType::F32, shape));
    let mut b = Builder::new(&mut m, Module::TOP, "product", &fresh);
    let w = b.module.add_constant("w", Constant::new(term));
    let w = b.transpose(w, &[1, 0]).expect("a matrix");
    let y = b.op("matmul", &[x, w]).expect("fits");
    let y = b.op("gelu", &[y]).expect("numbers");
    m.region_mut(Module::TOP).outputs.push(y);
    m.output_names.push("y".to_owned());
    m
}

/// Two of four weights of 4 bits: scales times sparse codes, as methods write them, or sparse numbers, as files have them.
fn two_of_four([n, k]: [usize; 2], codes_are_sparse: bool) -> Encoding {
    let mut s = Sampler::new(9, 2);
    let pairs = [0b0100u8, 0b1000, 0b1100, 0b1001, 0b1101, 0b1110];
    let mut bytes = |from: &[u8], n: usize| -> Vec<u8> { (0..n).map(|_| s.one_of(from)).collect() };
    let kept = vec![n, k / 4, 2];
    let places: Vec<u8> = bytes(&pairs, n * k / 4);
    let places = places
        .chunks(2)
        .map(|two| two[0] | two[1] << 4)
        .collect::<Vec<u8>>();
    let places = int::int(ElemType::U8, 2, kept.clone(), places.into());
    let codes = bytes(&[0x3A, 0x91, 0xE6, 0x78, 0x0F], n * k / 4);
    let scales = bytes(&[1, 3, 5], n * k / 128);
    let scales = scales.into_iter().map(|s| f64::from(s) / 1024.0).collect();
    let shape = if codes_are_sparse {
        vec![n, k / 128]
    } else {
        vec![n, k / 128, 1]
    };
    let scales = dense::from_tensor(&Tensor::from_f64(ElemType::F32, shape, scales));
    if codes_are_sparse {
        let codes = int::int(ElemType::I4, 4, kept, codes.into());
        return affine::affine(ElemType::F32, scales, sparse::nm(4, codes, places), None);
    }
    let codes = int::int(ElemType::U8, 4, kept, codes.into());
    let zero = dense::from_tensor(&Tensor::from_int(ElemType::U8, [1, 1, 1], vec![8]));
    sparse::nm(
        4,
        affine::affine(ElemType::F32, scales, codes, Some(zero)),
        places,
    )
}

/// Sparse tensor cores multiply weights of which two of four are kept, where the user allows halves.
#[test]
fn two_of_four_weights_where_halves_are_allowed() {
    let mut multiplied = 0;
    for (sizes, rows, given) in [
        ([512, 256], Some(1), 1),
        ([512, 256], Some(16), 16),
        ([288, 512], Some(70), 70),
        ([512, 256], None, 1),
        ([512, 256], None, 9),
        // No multiple of what a warp multiplies: as numbers.
        ([48, 256], Some(16), 16),
    ] {
        let mut s = Sampler::new(3, 2);
        let x = Tensor::from_f64(
            ElemType::F32,
            [given, sizes[1]],
            s.numbers(given * sizes[1]),
        );
        for (codes_are_sparse, halves) in [(true, true), (false, true), (true, false)] {
            let term = two_of_four(sizes, codes_are_sparse);
            let mut options = options("sm_100");
            options.halves = halves;
            let tolerance = if halves { 5e-3 } else { 1e-5 };
            let name = format!("{sizes:?}, {rows:?} rows, {given} given, halves {halves}");
            let module = product_with(term, rows);
            let inputs = std::slice::from_ref(&x);
            let choices = checked(&name, &module, &options, inputs, tolerance);
            choices.iter().for_each(|c| println!("{c}"));
            let sparse = |c: &Choice| c.kernels.iter().all(|k| k == "gemm_int4_2_of_4_f16");
            let cores = choices.iter().filter(|c| sparse(c)).count();
            assert!(cores == 0 || halves && sizes[0] != 48, "{name}");
            multiplied += cores;
        }
    }
    assert!(
        multiplied >= 8,
        "sparse tensor cores multiply {multiplied} products"
    );
}

/// Numbers that are halves lose nothing on tensor cores: there only the left side is rounded, where the user allows it.
#[test]
fn products_of_halves_where_they_are_allowed() {
    let [rows, n, k] = [128usize, 512, 256];
    let mut s = Sampler::new(5, 2);
    let numbers = s.numbers(k * n);
    let rounded = |to: fn(f64) -> f64| numbers.iter().map(|&v| to(v / 7.0)).collect();
    // Too small for `f16`.
    let short = |v: f64| f64::from(f32::from_bits((v as f32 / 1e9).to_bits() & 0xffff_0000));
    let x = Tensor::from_f64(ElemType::F32, [rows, k], s.numbers(rows * k));
    for (name, weights, of_halves) in [
        ("f16", rounded(|v| (v * 64.0).round() / 64.0), true),
        ("bf16", rounded(short), true),
        ("f32", rounded(|v| f64::from(v as f32)), false),
    ] {
        let (mut m, fresh) = (Module::new("product"), Cell::new(0));
        let ty = Type::tensor(ElemType::F32, [rows as i64, k as i64]);
        let given = m.add_input(Module::TOP, "x", ty);
        let mut b = Builder::new(&mut m, Module::TOP, "product", &fresh);
        let w = b.constant(&Tensor::from_f64(ElemType::F32, [k, n], weights));
        let y = b.op("matmul", &[given, w]).expect("fits");
        let y = b.op("gelu", &[y]).expect("numbers");
        m.region_mut(Module::TOP).outputs.push(y);
        m.output_names.push("y".to_owned());
        for halves in [false, true] {
            let mut options = options("sm_90a");
            options.halves = halves;
            let tolerance = if halves { 1e-2 } else { 1e-5 };
            let choices = checked(name, &m, &options, std::slice::from_ref(&x), tolerance);
            choices.iter().for_each(|c| println!("{c}"));
            let cores = choices
                .iter()
                .any(|c| c.kernels.iter().any(|k| k == "gemm_halves"));
            assert_eq!(cores, halves && of_halves, "{name}, halves {halves}");
        }
    }
}
