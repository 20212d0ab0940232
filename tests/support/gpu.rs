//! A device that runs PTX in the interpreter, and NVIDIA's assembler.

use lapidary_ptx_interp::{Launch, Module, Segment};
use lapidary_runtime::RunError;
use lapidary_runtime::device::{self, Device};
use std::path::PathBuf;
use std::process::Command;

/// Runs launches in the interpreter, on the host's memory.
pub struct Interpreter {
    module: Module,
    text: String,
}

impl Interpreter {
    pub fn new(code: &[u8]) -> Interpreter {
        let text = std::str::from_utf8(code).expect("PTX is text");
        Interpreter {
            module: Module::parse(text).unwrap_or_else(|e| panic!("{e}")),
            text: text.to_owned(),
        }
    }
}

impl Device for Interpreter {
    fn launch(&self, launch: &device::Launch) -> Result<(), RunError> {
        let fail = |what: String| RunError::Program(what);
        let entry = lapidary_cuda::entry_at(&self.text, launch.code_offset)
            .ok_or_else(|| fail(format!("no kernel at {}", launch.code_offset)))?;
        let mut workspace = vec![0xFF; (entry.workspace_bytes * launch.blocks) as usize];
        // Buffers that overlap are one piece of memory.
        let buffers = launch.args.iter().zip(launch.bytes);
        let mut spans: Vec<(u64, u64)> = buffers
            .filter_map(|(&at, bytes)| Some((at, at + (*bytes)? as u64)))
            .collect();
        spans.push((
            workspace.as_mut_ptr() as u64,
            workspace.as_mut_ptr() as u64 + workspace.len() as u64,
        ));
        spans.sort_unstable();
        let mut merged: Vec<(u64, u64)> = vec![];
        for (begin, end) in spans {
            match merged.last_mut() {
                Some(last) if begin < last.1 => last.1 = last.1.max(end),
                _ => merged.push((begin, end)),
            }
        }
        let mut segments: Vec<Segment> = merged
            .into_iter()
            .map(|(begin, end)| Segment {
                address: begin,
                // SAFETY: the runtime holds these buffers for the launch, and they do not overlap any more. Nothing else
                // runs meanwhile.
                bytes: unsafe {
                    std::slice::from_raw_parts_mut(begin as *mut u8, (end - begin) as usize)
                },
                read_only: false,
            })
            .collect();
        let mut params = launch.args.to_vec();
        params.extend([workspace.as_ptr() as u64, 0]);
        let run = Launch {
            entry: &self.module.entries[&entry.name],
            params: &params,
            blocks: launch.blocks as u32,
        };
        let done = run.run(&mut segments);
        done.map(|_| ()).map_err(|fault| fail(fault.to_string()))
    }
}

/// NVIDIA's assemblers that are there; says so if none is.
pub fn assemblers() -> Vec<PathBuf> {
    let Ok(python) = std::env::var("LAPIDARY_PYTHON") else {
        println!("skipped: LAPIDARY_PYTHON is not set");
        return vec![];
    };
    let program = "import nvidia\nfor p in nvidia.__path__: print(p)";
    let out = Command::new(python).args(["-c", program]).output();
    let folders = out.map(|o| String::from_utf8_lossy(&o.stdout).into_owned());
    let found: Vec<PathBuf> = folders
        .unwrap_or_default()
        .lines()
        .flat_map(|f| ["cuda_nvcc", "cu13"].map(|v| PathBuf::from(f).join(v).join("bin/ptxas")))
        .filter(|p| p.exists())
        .collect();
    if found.is_empty() {
        println!("skipped: there is no ptxas in that Python's packages");
    }
    found
}

/// Assembles a module; what the assembler refuses, or keeps in memory.
pub fn assemble(ptxas: &PathBuf, gpu: &str, text: &[u8]) -> Result<(), String> {
    let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
    let file = folder.path().join("module.ptx");
    std::fs::write(&file, text).map_err(|e| e.to_string())?;
    let out = Command::new(ptxas)
        .args(["-v", "-arch", gpu, "-o", "/dev/null"])
        .arg(&file)
        .output()
        .map_err(|e| e.to_string())?;
    let report = String::from_utf8_lossy(&out.stderr);
    if !out.status.success() {
        let head: Vec<&str> = report.lines().take(5).collect();
        return Err(format!("{gpu}: {}", head.join("\n")));
    }
    let mut name = "";
    for line in report.lines() {
        if let Some((_, rest)) = line.split_once("Function properties for ") {
            name = rest;
        }
        let spills = line.contains("bytes stack frame")
            && !line.contains("0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads");
        if spills {
            return Err(format!("{gpu}: `{name}`: {}", line.trim()));
        }
    }
    Ok(())
}
