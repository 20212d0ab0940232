//! NVIDIA's assembler takes every kernel of the suite, and those of this backend's own tests, for every GPU, with all values in registers, as many as
//! `registers.txt` says at most. `LAPIDARY_BLESS=1` writes that file anew.
//!
//! Skipped, visibly, where `LAPIDARY_PYTHON` names no Python that has `nvidia-cuda-nvcc` or `nvidia-cuda-nvcc-cu12`.

mod support;

use lapidary_ir::kernel::{Kernel, legalize};
use lapidary_ir::target::{Feature, Target};
use lapidary_ptx::GPUS;
use lapidary_suite::{Backend, run_interpreted};
use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::Mutex;
use support::ptxas::{assemble, assemblers};

/// Kernels so far.
static KERNELS: Mutex<Vec<Kernel>> = Mutex::new(Vec::new());

fn collect(
    _: &Backend,
    kernel: &Kernel,
    _: &Target,
    buffers: &[Vec<u8>],
    sizes: &[i64],
) -> Vec<Vec<u8>> {
    KERNELS.lock().unwrap().push(kernel.clone());
    run_interpreted(kernel, buffers, sizes)
}

static COLLECTOR: Backend = Backend {
    compile: lapidary_ptx::compile,
    targets: || vec![Target::nvptx64(Feature::Sm80)],
    run: collect,
};

/// Every kernel of the suite; those that differ in nothing are one.
fn suite() -> Vec<Kernel> {
    let own: [fn(&Backend); 2] = [support::products, support::wide_rows];
    for case in lapidary_suite::FUNCTIONS.iter().chain(&own) {
        case(&COLLECTOR);
    }
    let mut seen = HashSet::new();
    let kernels = std::mem::take(&mut *KERNELS.lock().unwrap());
    kernels
        .into_iter()
        .filter(|k| seen.insert(legalize::legalize(k.clone()).to_string()))
        .collect()
}

#[test]
fn every_kernel_assembles_without_spills() {
    let assemblers = assemblers();
    if assemblers.is_empty() {
        return;
    }
    let kernels = suite();
    let mut most: BTreeMap<String, u32> = BTreeMap::new();
    for gpu in GPUS {
        let target = Target::nvptx64(gpu.feature);
        let code = lapidary_ptx::compile(&kernels, &target).unwrap();
        let text = String::from_utf8(code.bytes).unwrap();
        for ptxas in &assemblers {
            let used = assemble(ptxas, gpu, &text);
            assert_eq!(used.len(), kernels.len(), "a report for every kernel");
            for (name, n) in used {
                let all = most.entry(name).or_default();
                *all = n.max(*all);
            }
        }
    }
    // What blocks are declared to leave room for.
    assert!(most.values().all(|&n| n <= 128));
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/registers.txt");
    if std::env::var_os("LAPIDARY_BLESS").is_some() {
        let lines: Vec<String> = most.iter().map(|(k, n)| format!("{k} {n}\n")).collect();
        std::fs::write(&path, lines.concat()).unwrap();
        return;
    }
    let stated = std::fs::read_to_string(&path).unwrap();
    let stated: BTreeMap<&str, u32> = stated
        .lines()
        .filter_map(|l| l.split_once(' '))
        .map(|(k, n)| (k, n.parse().unwrap()))
        .collect();
    for (name, n) in &most {
        let ceiling = stated.get(name.as_str());
        let ceiling = ceiling.unwrap_or_else(|| panic!("no ceiling is stated for `{name}`"));
        assert!(
            n <= ceiling,
            "`{name}` uses {n} registers, {ceiling} are stated"
        );
    }
    println!(
        "{} kernels by {} assemblers for {} GPUs",
        most.len(),
        assemblers.len(),
        GPUS.len()
    );
}
