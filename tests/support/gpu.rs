//! A device that runs PTX in the interpreter, and NVIDIA's assembler.

#[path = "../../backends/ptx/tests/support/ptxas.rs"]
mod ptxas;

pub use self::ptxas::{assembled, assemblers};
use lapidary_ptx_interp::{Launch, Module, Segment};
use lapidary_runtime::RunError;
use lapidary_runtime::device::{self, Device};

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
