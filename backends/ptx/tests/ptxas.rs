//! NVIDIA's assembler takes every kernel of the suite, and those of this backend's own tests, for every GPU, with all values in registers, as many as
//! `registers.txt` says at most. `LAPIDARY_BLESS=1` writes that file anew.
//!
//! Skipped, visibly, where `LAPIDARY_PYTHON` names no Python that has `nvidia-cuda-nvcc` or `nvidia-cuda-nvcc-cu12`.

mod support;

use lapidary_ir::kernel::{Kernel, legalize};
use lapidary_ir::target::{Feature, Target};
use lapidary_ptx::{GPUS, Gpu};
use lapidary_suite::{Backend, kernels, run_interpreted};
use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;

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
    let all: &[fn(&Backend)] = &[
        kernels::tiles_with_remainders_of_every_type,
        kernels::gathers_masks_and_transpositions,
        kernels::loops_branches_reductions_scratch,
        kernels::integer_division_never_traps,
        kernels::index_division_by_constants,
        kernels::packed_codes_are_unpacked,
        kernels::contractions_with_and_without_micro_kernels,
        kernels::sparse_products_and_their_panels,
        kernels::sparse_products_of_codes,
        kernels::products_of_blocks,
        kernels::blocks_are_rounded,
        kernels::weights_become_numbers,
        kernels::windows_of_numbers_and_codes,
        support::products,
        support::wide_rows,
    ];
    for case in all {
        case(&COLLECTOR);
    }
    let mut seen = HashSet::new();
    let kernels = std::mem::take(&mut *KERNELS.lock().unwrap());
    kernels
        .into_iter()
        .filter(|k| seen.insert(legalize::legalize(k.clone()).to_string()))
        .collect()
}

/// The assemblers that there are, by version.
fn assemblers() -> Vec<PathBuf> {
    let Ok(python) = std::env::var("LAPIDARY_PYTHON") else {
        println!("skipped: LAPIDARY_PYTHON is not set");
        return vec![];
    };
    let program = "import nvidia\nfor p in nvidia.__path__: print(p)";
    let out = Command::new(python).args(["-c", program]).output().unwrap();
    let folders = String::from_utf8(out.stdout).unwrap();
    let found: Vec<PathBuf> = folders
        .lines()
        .flat_map(|f| ["cuda_nvcc", "cu13"].map(|v| PathBuf::from(f).join(v).join("bin/ptxas")))
        .filter(|p| p.exists())
        .collect();
    if found.is_empty() {
        println!("skipped: there is no ptxas in that Python's packages");
    }
    found
}

/// Registers of each entry; panics at the first that spills.
fn assemble(ptxas: &PathBuf, gpu: &Gpu, text: &str) -> BTreeMap<String, u32> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("module.ptx");
    std::fs::write(&file, text).unwrap();
    let arch = gpu.name();
    let out = Command::new(ptxas)
        .args(["-v", "-arch", arch, "-o", "/dev/null"])
        .arg(&file)
        .output()
        .unwrap();
    let report = String::from_utf8_lossy(&out.stderr);
    let head: Vec<&str> = report.lines().take(20).collect();
    assert!(
        out.status.success(),
        "{ptxas:?} for {arch}:\n{}",
        head.join("\n")
    );
    let (mut name, mut registers) = (String::new(), BTreeMap::new());
    for line in report.lines() {
        if let Some(rest) = line.split("Function properties for ").nth(1) {
            name = rest.trim().to_owned();
        } else if line.contains("bytes stack frame") {
            let none = "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads";
            assert_eq!(line.trim(), none, "`{name}` for {arch} spills");
        } else if let Some(rest) = line.split("Used ").nth(1) {
            let n = rest.split(' ').next().unwrap().parse().unwrap();
            registers.insert(name.clone(), n);
        }
    }
    registers
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
