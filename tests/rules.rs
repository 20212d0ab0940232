//! The rewrite rules on programs: files that show them fire, and which of them never do.
//!
//! `tests/text/rules/NAME.lap` is rewritten; `NAME.out` holds what became of it and what the rules did, as `lapidary
//! inspect --rules` says it. The result computes the same. `LAPIDARY_BLESS=1` writes the `.out` files.

use lapidary::driver::{self, CompileOptions};
use lapidary_ir::tensor::{Tensor, Value, count};
use lapidary_ir::{ElemType, Module, eval, text, verify};
use lapidary_passes::egraph::Report;
use lapidary_passes::rules;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

fn files() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/text/rules");
    let entries =
        std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "lap"))
        .collect();
    files.sort();
    assert!(!files.is_empty());
    files
}

fn read(path: &Path) -> Module {
    let source =
        std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    text::parse(&source).unwrap_or_else(|e| panic!("{}: {e:?}", path.display()))
}

/// Target and options are fixed, so that the files are the same on every machine.
fn optimize(module: &mut Module) -> Report {
    let options = CompileOptions {
        target: lapidary_ir::target::Target::x86_64(),
        ..CompileOptions::host(1)
    };
    driver::optimize(module, &options)
}

/// Values of both signs for each input; symbols are 3.
fn inputs(module: &Module) -> Vec<Value> {
    let values = module.top().inputs.iter().enumerate();
    values
        .map(|(k, &v)| {
            let ty = module.value(v).ty.as_tensor().expect("files take tensors");
            let dims = ty.shape.iter().flatten();
            let shape: Vec<usize> = dims.map(|d| d.as_const().unwrap_or(3) as usize).collect();
            let noise = |i: usize| (((i + 1) * 7919 + k * 104_729) % 1000) as f64 / 250.0 - 2.0;
            let n = count(&shape);
            match ty.elem {
                ElemType::Bool => Tensor::from_int(
                    ty.elem,
                    shape,
                    (0..n).map(|i| i128::from(noise(i) > 0.0)).collect(),
                ),
                elem => Tensor::from_f64(elem, shape, (0..n).map(noise).collect()),
            }
            .into()
        })
        .collect()
}

fn said(report: &Report) -> String {
    let fired = report.fired.keys().map(|rule| format!("; fired: {rule}\n"));
    let refused = report
        .refused
        .keys()
        .map(|(rule, why)| format!("; refused: {rule}: {why}\n"));
    fired.chain(refused).collect()
}

#[test]
fn files_show_rules_fire_and_compute_the_same() {
    let bless = std::env::var_os("LAPIDARY_BLESS").is_some();
    let mut wrong = vec![];
    let mut shown = BTreeSet::new();
    for path in files() {
        let before = read(&path);
        let mut after = before.clone();
        let report = optimize(&mut after);
        assert!(
            verify::errors(&after).is_empty(),
            "{}: {:?}",
            path.display(),
            verify::errors(&after)
        );
        shown.extend(report.fired.keys().copied());
        let found = text::print(&after) + &said(&report);
        let out = path.with_extension("out");
        if bless {
            std::fs::write(&out, &found).unwrap_or_else(|e| panic!("{}: {e}", out.display()));
        } else if std::fs::read_to_string(&out).ok().as_deref() != Some(&found) {
            wrong.push(format!("{} should be:\n{found}", out.display()));
        }
        let values = inputs(&before);
        let run = |m: &Module| {
            eval::run(m, values.clone()).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
        };
        for (x, y) in run(&before).iter().zip(run(&after)) {
            let (x, y) = (
                x.as_tensor().expect("a tensor"),
                y.as_tensor().expect("a tensor"),
            );
            assert_eq!(
                (x.elem(), x.shape()),
                (y.elem(), y.shape()),
                "{}",
                path.display()
            );
            for (a, b) in x
                .to_f64s()
                .expect("numbers")
                .iter()
                .zip(y.to_f64s().expect("numbers"))
            {
                assert!(
                    (a - b).abs() <= 1e-4 * (1.0 + a.abs()),
                    "{}: {a} became {b}",
                    path.display()
                );
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{}\n(`LAPIDARY_BLESS=1` writes the files)",
        wrong.join("\n")
    );
    let hidden: Vec<&str> = rules::all()
        .map(|r| r.name)
        .filter(|n| !shown.contains(n))
        .collect();
    assert!(
        hidden.is_empty(),
        "no file in tests/text/rules shows {hidden:?} fire"
    );
}

fn models(folder: &Path, out: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return;
    };
    for path in entries.filter_map(|e| Some(e.ok()?.path())) {
        if path.is_dir() {
            models(&path, out);
        } else if path.extension().is_some_and(|e| e == "onnx") {
            out.push(path);
        }
    }
}

/// A rule that fires on none of the models is either for what they do not have, or wrong. It is listed for a person.
#[test]
fn rules_that_never_fire_on_the_models_are_listed() {
    let Some(root) = std::env::var_os("LAPIDARY_DATA").map(PathBuf::from) else {
        println!("skipped: LAPIDARY_DATA does not name the folder of models");
        return;
    };
    let mut paths = vec![];
    models(&root, &mut paths);
    paths.sort();
    let mut fired: BTreeMap<&str, usize> = BTreeMap::new();
    let mut read = 0;
    for path in &paths {
        let options = CompileOptions::host(1);
        let Ok(mut module) = driver::import(path, &options) else {
            continue;
        };
        read += 1;
        for (rule, n) in optimize(&mut module).fired {
            *fired.entry(rule).or_default() += n;
        }
    }
    for (rule, n) in &fired {
        println!("{n:>6} x {rule}");
    }
    let never: Vec<&str> = rules::all()
        .map(|r| r.name)
        .filter(|n| !fired.contains_key(n))
        .collect();
    println!("{read} models; never fired: {never:#?}");
    let expected =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/text/rules/never-on-models.txt");
    let listed = never.join("\n") + "\n";
    if std::env::var_os("LAPIDARY_BLESS").is_some() {
        std::fs::write(&expected, &listed)
            .unwrap_or_else(|e| panic!("{}: {e}", expected.display()));
    }
    let known = std::fs::read_to_string(&expected).unwrap_or_default();
    assert_eq!(
        known,
        listed,
        "{} is not true (`LAPIDARY_BLESS=1` writes it)",
        expected.display()
    );
}
