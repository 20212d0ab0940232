//! A lowered model for people and programs: its kernels, and the host program around them.

use lapidary_abi::program::{Arg, Block, Step};
use lapidary_ir::kernel::Param;
use lapidary_passes::lower::Lowered;
use serde_json::json;
use std::fmt::Write;

/// The kernels, one after another.
pub fn text(lowered: &Lowered) -> String {
    let kernels = lowered.kernels.iter();
    kernels.map(|k| format!("{k}\n")).collect()
}

/// The host program, step by step, each kernel's text, and the memory plan.
pub fn json(lowered: &Lowered) -> String {
    let kernels: Vec<_> = lowered
        .kernels
        .iter()
        .map(|k| json!({ "name": k.name, "scratch_bytes": k.scratch_bytes(), "text": k.to_string() }))
        .collect();
    let report = &lowered.report;
    let json = json!({
        "program": lowered.program,
        "kernels": kernels,
        "launches": report.launches,
        "calls": report.calls,
        "arena_bytes": report.arena_bytes,
        "unshared_bytes": report.unshared_bytes,
    });
    format!("{json}\n")
}

/// Graphviz: a box for each step, an ellipse for each input and output, edges for the values between them.
pub fn dot(lowered: &Lowered) -> String {
    let mut drawing = Drawing {
        lowered,
        text: format!(
            "digraph {:?} {{\n  node [shape=box];\n",
            lowered.program.name
        ),
        steps: 0,
        blocks: 0,
    };
    let program = &lowered.program;
    for port in &program.inputs {
        drawing.port(port.value, &port.name);
        let _ = writeln!(drawing.text, "  p{0} -> v{0};", port.value);
    }
    if !program.prepare.steps.is_empty() {
        drawing.inner(&program.prepare, "once, when loaded");
    }
    drawing.block(&program.body);
    for port in &program.outputs {
        drawing.port(port.value, &port.name);
        let _ = writeln!(drawing.text, "  v{0} -> p{0};", port.value);
    }
    drawing.text + "}\n"
}

struct Drawing<'l> {
    lowered: &'l Lowered,
    text: String,
    steps: usize,
    blocks: usize,
}

impl Drawing<'_> {
    fn port(&mut self, value: u32, name: &str) {
        let _ = writeln!(self.text, "  p{value} [shape=ellipse, label={name:?}];");
    }

    fn block(&mut self, block: &Block) {
        for step in &block.steps {
            self.step(step);
        }
    }

    fn inner(&mut self, block: &Block, label: &str) {
        self.blocks += 1;
        let _ = writeln!(
            self.text,
            "  subgraph cluster_{} {{\n  label={label:?};",
            self.blocks
        );
        self.block(block);
        self.text += "  }\n";
    }

    /// A box with edges from the values it reads and to those it writes.
    fn draw(&mut self, label: &str, reads: &[u32], writes: &[u32]) {
        let n = self.steps;
        self.steps += 1;
        let _ = writeln!(self.text, "  s{n} [label={label:?}];");
        for v in reads {
            let _ = writeln!(self.text, "  v{v} -> s{n};");
        }
        for v in writes {
            let _ = writeln!(self.text, "  v{v} [shape=point]; s{n} -> v{v};");
        }
    }

    fn step(&mut self, step: &Step) {
        let some =
            |values: &[Option<u32>]| -> Vec<u32> { values.iter().flatten().copied().collect() };
        match step {
            Step::Launch { kernel, args, .. } => {
                let Some(kernel) = self.lowered.kernels.get(*kernel as usize) else {
                    return;
                };
                let (mut reads, mut writes) = (vec![], vec![]);
                for (param, arg) in kernel.params.iter().zip(args) {
                    match (param, arg) {
                        (Param::Buffer { written: true, .. }, Arg::Buffer(v)) => writes.push(*v),
                        (_, Arg::Buffer(v)) => reads.push(*v),
                        _ => {}
                    }
                }
                self.draw(&kernel.name, &reads, &writes);
            }
            Step::Call {
                op,
                operands,
                results,
                ..
            } => {
                self.draw(&format!("call {op}"), &some(operands), results);
            }
            Step::Move { from, to } => self.draw("move", &[*from], &[*to]),
            Step::If {
                condition,
                then_block,
                else_block,
                results,
            } => {
                self.draw("if", &[*condition], results);
                self.inner(then_block, "then");
                self.inner(else_block, "else");
            }
            Step::Loop {
                trip_count,
                condition,
                carried,
                body,
                results,
                ..
            } => {
                let mut reads = some(&[*trip_count, *condition]);
                reads.extend(carried);
                self.draw("loop", &reads, results);
                self.inner(body, "loop body");
            }
            Step::BindDim { .. }
            | Step::BindElement { .. }
            | Step::Free { .. }
            | Step::Require { .. } => {}
        }
    }
}
