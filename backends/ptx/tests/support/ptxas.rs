//! NVIDIA's assembler.
#![allow(dead_code, reason = "each test uses a part")]

use lapidary_ptx::Gpu;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The assemblers that there are, by version.
pub fn assemblers() -> Vec<PathBuf> {
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

/// Registers of each entry.
///
/// # Errors
/// The assembler refuses the text, or an entry keeps registers in memory.
pub fn assembled(ptxas: &Path, gpu: &Gpu, text: &str) -> Result<BTreeMap<String, u32>, String> {
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
    if !out.status.success() {
        let head: Vec<&str> = report.lines().take(20).collect();
        return Err(format!("{ptxas:?} for {arch}:\n{}", head.join("\n")));
    }
    let (mut name, mut registers) = (String::new(), BTreeMap::new());
    for line in report.lines() {
        if let Some(rest) = line.split("Function properties for ").nth(1) {
            name = rest.trim().to_owned();
        } else if line.contains("bytes stack frame") {
            if line.trim() != "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" {
                return Err(format!("`{name}` for {arch} spills: {}", line.trim()));
            }
        } else if let Some(rest) = line.split("Used ").nth(1) {
            let n = rest.split(' ').next().unwrap().parse().unwrap();
            registers.insert(name.clone(), n);
        }
    }
    Ok(registers)
}

/// The same of a text that has to assemble.
pub fn assemble(ptxas: &Path, gpu: &Gpu, text: &str) -> BTreeMap<String, u32> {
    assembled(ptxas, gpu, text).unwrap_or_else(|e| panic!("{e}"))
}
