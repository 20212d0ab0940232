use super::*;
use crate::lower::checks::numbers;
use crate::lower::{Lowered, Options, lower};
use lapidary_ir::builder::Builder;
use lapidary_ir::encodings::affine::affine;
use lapidary_ir::encodings::codebook::codebook;
use lapidary_ir::encodings::int::{int, pack};
use lapidary_ir::encodings::{Encoding, dense};
use lapidary_ir::types::Type;
use lapidary_ir::{Dim, ElemType, Module, Tensor, ValueId};
use std::cell::Cell;
use std::sync::Arc;

fn lowered(
    shape: &[Dim],
    target: &Target,
    build: impl FnOnce(&mut Builder, ValueId) -> ValueId,
) -> Lowered {
    let (mut m, fresh) = (Module::new("m"), Cell::new(0));
    let x = m.add_input(
        Module::TOP,
        "x",
        Type::tensor(ElemType::F32, shape.to_vec()),
    );
    let mut b = Builder::new(&mut m, Module::TOP, "n", &fresh);
    let y = build(&mut b, x);
    m.region_mut(Module::TOP).outputs.push(y);
    m.output_names.push("y".into());
    lower(&m, target, &Options::default()).expect("lowers")
}

/// `[m, k]` times constant `[k, n]`.
fn product([m, k, n]: [usize; 3], target: &Target) -> Lowered {
    lowered(&[m.into(), k.into()], target, |b, x| {
        let w = b.constant(&numbers(&[k, n], 1));
        b.op("matmul", &[x, w]).expect("fits")
    })
}

/// The same with a term `[n, k]`.
fn product_of_term([m, k]: [usize; 2], target: &Target, term: Encoding) -> Lowered {
    lowered(&[m.into(), k.into()], target, |b, x| {
        let w = b.term(&Arc::new(term));
        let w = b.transpose(w, &[1, 0]).expect("a matrix");
        b.op("matmul", &[x, w]).expect("fits")
    })
}

fn setting<'a>(target: &'a Target, dims: &'a BTreeMap<String, i64>, beside: f64) -> Setting<'a> {
    Setting {
        target,
        dims,
        beside,
    }
}

fn ns(of: &Lowered, target: &Target) -> f64 {
    let dims = BTreeMap::new();
    predict(&of.program, &of.kernels, &setting(target, &dims, 0.0)).ns()
}

/// Work of the only launch.
fn work(of: &Lowered, target: &Target, dims: &[(&str, i64)]) -> Rc<Amounts> {
    let dims: BTreeMap<String, i64> = dims.iter().map(|&(k, v)| (k.to_owned(), v)).collect();
    let symbols = of.program.symbols.iter().map(|s| dims[s]);
    let run = Run {
        program: &of.program,
        kernels: &of.kernels,
        target,
        speeds: &target.speeds(),
        symbols: symbols.collect(),
        resident: 0,
        counted: RefCell::default(),
        steps: vec![],
    };
    let mut found = of.program.body.steps.iter().filter_map(|s| run.launched(s));
    let (_, _, amounts) = found.next().expect("a launch");
    assert!(found.next().is_none());
    amounts
}

#[test]
fn products_are_counted_with_their_padding() {
    let target = Target::x86_64();
    for (m, k, n) in [(1, 64, 32), (14, 40, 70), (29, 64, 33), (100, 16, 5)] {
        let whole = work(&product([m, k, n], &target), &target, &[]);
        let panels = n.next_multiple_of(32);
        assert_eq!(
            whole.units(Work::Gemm),
            (2 * m * k * panels) as f64,
            "{m} {k} {n}"
        );
        // Of a length that is known only to who predicts, the same.
        let symbolic = lowered(&[Dim::sym("N"), k.into()], &target, |b, x| {
            let w = b.constant(&numbers(&[k, n], 1));
            b.op("matmul", &[x, w]).expect("fits")
        });
        let symbolic = work(&symbolic, &target, &[("N", m as i64)]);
        assert_eq!(
            symbolic.units(Work::Gemm),
            whole.units(Work::Gemm),
            "{m} {k} {n}"
        );
    }
}

#[test]
fn elements_are_counted_by_vectors() {
    let target = Target::x86_64();
    let one = |len: usize| {
        let found = lowered(&[len.into()], &target, |b, x| {
            b.op("add", &[x, x]).expect("fits")
        });
        work(&found, &target, &[]).units(Work::Vector)
    };
    // A load, an addition, a store.
    assert_eq!(one(4096), 3.0 * 4096.0 / 4.0);
    assert_eq!(one(1 << 20), 256.0 * one(4096));
}

#[test]
fn more_work_takes_more_time() {
    let target = Target::x86_64();
    let time = |shape| ns(&product(shape, &target), &target);
    let base = time([32, 256, 256]);
    for (shape, factor) in [
        ([64, 256, 256], 2.0),
        ([32, 512, 256], 2.0),
        ([32, 256, 1024], 4.0),
    ] {
        let ratio = time(shape) / base;
        assert!(
            (0.7 * factor..1.3 * factor).contains(&ratio),
            "{shape:?}: {ratio}"
        );
    }
}

#[test]
fn threads_share_what_is_long_and_not_what_is_short() {
    let time = |shape, threads| {
        let target = Target {
            threads,
            ..Target::x86_64()
        };
        ns(&product(shape, &target), &target)
    };
    let [one, four] = [1, 4].map(|t| time([256, 512, 512], t));
    assert!((0.24..0.4).contains(&(four / one)), "{}", four / one);
    assert_eq!(time([1, 16, 32], 1), time([1, 16, 32], 4));
    for (grid, grain, threads, want) in [
        (10, 1, 2, (2, 0.5)),
        (5, 1, 2, (2, 0.6)),
        (3, 2, 4, (2, 2.0 / 3.0)),
        (3, 8, 4, (1, 1.0)),
        (0, 1, 4, (1, 1.0)),
    ] {
        let found = shares(grid, grain, threads);
        assert_eq!(
            (found.threads, found.largest),
            want,
            "{grid} {grain} {threads}"
        );
    }
}

#[test]
fn weights_come_from_where_they_fit() {
    let (target, dims) = (Target::x86_64(), BTreeMap::new());
    let one = product([1, 256, 256], &target);
    let many = product([256, 256, 256], &target);
    let time = |of: &Lowered, beside| {
        predict(&of.program, &of.kernels, &setting(&target, &dims, beside)).ns()
    };
    // With a thousand others they are in no cache, which a product with many rows does not feel.
    assert!(time(&one, 1000.0) > 2.0 * time(&one, 0.0));
    assert!(time(&many, 1000.0) < 1.1 * time(&many, 0.0));
}

#[test]
fn rows_of_a_table_are_read_and_not_the_table() {
    let target = Target::x86_64();
    let found = lowered(&[3usize.into()], &target, |b, x| {
        let table = b.constant(&numbers(&[5000, 64], 1));
        let ids = b.cast(x, ElemType::I64).expect("numbers");
        b.op("gather", &[table, ids]).expect("fits")
    });
    let all = found.program.weights_bytes as f64;
    let fast = target.speeds().bandwidth(1, 1);
    assert!(ns(&found, &target) < 0.2 * all / fast);
}

/// Codes of so many bits in blocks of 32.
fn grid(n: usize, k: usize, bits: u32) -> Encoding {
    let stored = pack((0..n * k).map(|i| (i * 7) as u8), bits);
    let codes = int(ElemType::U8, bits, vec![n, k], stored.into());
    let scales = Tensor::from_f64(ElemType::F16, [n, k / 32], vec![0.25; n * k / 32]);
    affine(ElemType::F32, dense::from_tensor(&scales), codes, None)
}

/// Codes of 3 bits with a table of numbers.
fn palette(n: usize, k: usize) -> Encoding {
    let stored = pack((0..n * k).map(|i| (i * 7) as u8), 3);
    let codes = int(ElemType::U8, 3, vec![n, k], stored.into());
    let table = Tensor::from_f64(ElemType::F32, [1, 1, 8, 1], (0..8).map(f64::from).collect());
    codebook(ElemType::F32, dense::from_tensor(&table), codes)
}

#[test]
fn terms_cost_what_their_kernels_do() {
    let target = Target::x86_64();
    let (n, k) = (256, 256);
    for m in [1, 64] {
        let plain = ns(&product([m, k, n], &target), &target);
        // Codebooks are decoded when the model is loaded.
        let decoded = ns(&product_of_term([m, k], &target, palette(n, k)), &target);
        assert!(
            (decoded / plain - 1.0).abs() < 0.01,
            "{m}: {decoded} {plain}"
        );
        let packed = product_of_term([m, k], &target, grid(n, k, 4));
        let amounts = work(&packed, &target, &[]);
        assert!(amounts.units(Work::Unpack4) >= (n * k) as f64, "{m}");
        assert!(ns(&packed, &target) > plain, "{m}: both are in the cache");
    }
}

#[test]
fn launches_of_one_name_are_summed() {
    let steps = [("a", 1.0), ("b", 5.0), ("a", 2.0)];
    let steps = steps
        .iter()
        .map(|&(name, ns)| (name.to_owned(), ns))
        .collect();
    let kernels = Prediction { steps }.kernels();
    let found: Vec<_> = kernels
        .iter()
        .map(|k| (k.name.as_str(), k.calls, k.ns))
        .collect();
    assert_eq!(found, [("b", 1, 5.0), ("a", 2, 3.0)]);
}
