//! The files of a project: sources, test bench with its vectors, a script for the vendor's tool, a Makefile for g++, a report.

use crate::HEADERS;
use crate::parts::Part;
use crate::top::{Array, Design};
use crate::types::storage;
use std::fmt::Write;

/// Bytes of a run's inputs and of the outputs that it should have, in the order of the design's.
#[derive(Clone, Debug, Default)]
pub struct Vector {
    /// Inputs.
    pub inputs: Vec<Vec<u8>>,
    /// Outputs.
    pub outputs: Vec<Vec<u8>>,
}

/// Outputs that are floats may differ from the expected ones by this share of the largest one.
pub const TOLERANCE: f64 = 1e-4;

/// Names and contents of a project's files. `weights` is the weights blob.
pub fn files(
    design: &Design,
    part: &Part,
    weights: &[u8],
    vectors: &[Vector],
) -> Vec<(String, Vec<Vec<u8>>)> {
    let top = format!(
        "// The network as one function; see report.txt.\n#include \"top.h\"\n#include \"weights.h\"\n\n{}",
        design.text
    );
    let header = format!(
        "// The top function.\n#pragma once\n#include \"lapidary.h\"\n\n{};\n",
        design.declaration
    );
    let constants = format!(
        "// Weights on chip.\n#pragma once\n#include \"lapidary.h\"\n\n{}",
        design.constants
    );
    let vectors = vectors
        .iter()
        .flat_map(|v| v.inputs.iter().chain(&v.outputs).cloned());
    let streamed = design.streamed.iter().map(|(array, offset)| {
        let (begin, len) = (*offset as usize, bytes(array));
        weights.get(begin..begin + len).unwrap_or_default().to_vec()
    });
    let mut files = vec![
        ("top.cpp".to_owned(), vec![top.into_bytes()]),
        ("top.h".to_owned(), vec![header.into_bytes()]),
        ("weights.h".to_owned(), vec![constants.into_bytes()]),
        ("testbench.cpp".to_owned(), vec![bench(design).into_bytes()]),
        ("vectors.bin".to_owned(), vectors.collect()),
        ("weights.bin".to_owned(), streamed.collect()),
        ("run_hls.tcl".to_owned(), vec![script(part).into_bytes()]),
        ("Makefile".to_owned(), vec![MAKEFILE.as_bytes().to_vec()]),
        (
            "report.txt".to_owned(),
            vec![report(design, part).into_bytes()],
        ),
    ];
    for (name, text) in HEADERS {
        files.push(((*name).to_owned(), vec![text.as_bytes().to_vec()]));
    }
    files
}

fn bytes(array: &Array) -> usize {
    array.len as usize * array.elem.size_bytes()
}

const MAKEFILE: &str = "# C simulation without the vendor's tools. `make sanitize` stops at the first error of memory or arithmetic.\n\
CXX ?= g++\n\
CXXFLAGS = -std=c++17 -O1 -Wall -Wno-unknown-pragmas -Wno-unused -ffp-contract=off\n\n\
check: simulation\n\t./simulation\n\n\
sanitize: CXXFLAGS += -g -fsanitize=address,undefined -fno-sanitize-recover=all\n\
sanitize: sanitized\n\t./sanitized\n\n\
simulation sanitized: top.cpp testbench.cpp top.h weights.h lapidary.h ap_int.h\n\
\t$(CXX) $(CXXFLAGS) top.cpp testbench.cpp -o $@\n\n\
clean:\n\trm -f simulation sanitized\n\n\
.PHONY: check sanitize clean\n";

/// The test bench: runs every vector, compares integers exactly and floats by [`TOLERANCE`].
fn bench(design: &Design) -> String {
    let mut text = "// Runs the vectors of vectors.bin and compares what comes out with what the reference evaluator says.\n\
        #include \"top.h\"\n#include <cstdio>\n#include <cstdlib>\n#include <vector>\n\n\
        static bool fill(std::FILE *f, void *to, size_t bytes) { return std::fread(to, 1, bytes, f) == bytes; }\n\n\
        static std::FILE *open(const char *name) {\n  std::FILE *f = std::fopen(name, \"rb\");\n  \
        if (!f) { std::perror(name); std::exit(2); }\n  return f;\n}\n\n\
        // Largest difference, relative to the largest number; equal integers differ by nothing.\n\
        template <class T> static double difference(const std::vector<T> &got, const std::vector<T> &want, bool exact) {\n  \
        double largest = 0, worst = 0;\n  for (size_t i = 0; i < got.size(); ++i) {\n    \
        const double w = (double)want[i], g = (double)got[i];\n    if (exact ? got[i] != want[i] : (g != g) != (w != w)) return 1;\n    \
        if (!exact && w == w && g != w) {\n      largest = std::fabs(w) > largest ? std::fabs(w) : largest;\n      \
        worst = std::fabs(g - w) > worst ? std::fabs(g - w) : worst;\n    } else if (std::fabs(w) > largest) largest = std::fabs(w);\n  }\n  \
        return worst > 0 ? worst / (largest > 0 ? largest : 1) : 0;\n}\n\nint main() {\n".to_owned();
    let streamed: Vec<&Array> = design.streamed.iter().map(|s| &s.0).collect();
    let all = design.inputs.iter().chain(&design.outputs);
    for array in all.chain(streamed.iter().copied()) {
        let _ = writeln!(
            text,
            "  std::vector<{}> {}({});",
            storage(array.elem),
            array.name,
            array.len
        );
    }
    for array in &design.outputs {
        let _ = writeln!(
            text,
            "  std::vector<{}> want_{1}({1}.size());",
            storage(array.elem),
            array.name
        );
    }
    if !streamed.is_empty() {
        text += "  std::FILE *weights = open(\"weights.bin\");\n";
        for array in &streamed {
            let _ = writeln!(
                text,
                "  if (!fill(weights, {}.data(), {})) return 2;",
                array.name,
                bytes(array)
            );
        }
        text += "  std::fclose(weights);\n";
    }
    text += "  std::FILE *vectors = open(\"vectors.bin\");\n  int runs = 0, bad = 0;\n  double worst = 0;\n  for (;; ++runs) {\n";
    for (n, array) in design.inputs.iter().chain(&design.outputs).enumerate() {
        let want = if n < design.inputs.len() { "" } else { "want_" };
        let end = if n == 0 { "break" } else { "return 2" };
        let _ = writeln!(
            text,
            "    if (!fill(vectors, {want}{}.data(), {})) {end};",
            array.name,
            bytes(array)
        );
    }
    let arguments = design.inputs.iter().chain(&design.outputs);
    let arguments: Vec<String> = arguments
        .chain(streamed.iter().copied())
        .map(|a| format!("{}.data()", a.name))
        .collect();
    let _ = writeln!(text, "    top({});", arguments.join(", "));
    for array in &design.outputs {
        let exact = !array.elem.is_float();
        let _ = writeln!(
            text,
            "    {{\n      const double d = difference({0}, want_{0}, {exact});\n      worst = d > worst ? d : worst;\n      \
             if (d > {TOLERANCE:e}) {{ ++bad; std::printf(\"run %d: {0} differs by %g\\n\", runs, d); }}\n    }}",
            array.name
        );
    }
    text += "  }\n  std::printf(\"%d runs, %d outputs differ, largest difference %g\\n\", runs, bad, worst);\n  \
             return bad || !runs;\n}\n";
    text
}

/// The script for the vendor's tool, which was never run here.
fn script(part: &Part) -> String {
    format!(
        "# vitis_hls -f run_hls.tcl: C simulation, synthesis, co-simulation.\n\
         open_project -reset project\nset_top top\nadd_files top.cpp\n\
         add_files -tb {{testbench.cpp vectors.bin weights.bin}}\nopen_solution -reset solution -flow_target vitis\n\
         set_part {}\ncreate_clock -period {:.3}\ncsim_design\ncsynth_design\ncosim_design\nexport_design -format ip_catalog\nexit\n",
        part.device,
        1e3 / part.clock_mhz
    )
}

/// What is predicted, launch by launch, and what was assumed.
pub fn report(design: &Design, part: &Part) -> String {
    let (dsp, lut) = design.resources();
    let ms = |cycles: f64| cycles / (part.clock_mhz * 1e3);
    let percent = |used: f64, there: u64| 100.0 * used / there.max(1) as f64;
    let bram36 = design.bram18.div_ceil(2);
    let mut text = format!(
        "Part {} ({}), {} MHz. Predicted, not measured: nothing here ran on hardware or through the vendor's tools.\n\n\
         DSP    {:>9.0} of {} ({:.1} %)\nLUT    {:>9.0} of {} ({:.1} %)\nBRAM36 {:>9} of {} ({:.1} %)\nURAM           0 of {}\n\
         weights by bus: {} bytes a run\nlatency {:.0} cycles ({:.3} ms); a run every {:.0} cycles ({:.3} ms); launches {}\n\n\
         {:>4} {:<28} {:>4} {:>12} {:>12} {:>7} {:>8} {:>10}\n",
        part.name,
        part.device,
        part.clock_mhz,
        dsp,
        part.dsp,
        percent(dsp, part.dsp),
        lut,
        part.lut,
        percent(lut, part.lut),
        bram36,
        part.bram36,
        percent(bram36 as f64, part.bram36),
        part.uram,
        design.layers.iter().map(|l| l.streamed_bytes).sum::<u64>(),
        design.latency(),
        ms(design.latency()),
        design.interval(),
        ms(design.interval()),
        if design.dataflow {
            "overlap"
        } else {
            "take turns"
        },
        "step",
        "kernel",
        "PE",
        "iterations",
        "cycles",
        "DSP",
        "LUT",
        "bus bytes"
    );
    for (n, layer) in design.layers.iter().enumerate() {
        let _ = writeln!(
            text,
            "{n:>4} {:<28} {:>4} {:>12.0} {:>12.0} {:>7.0} {:>8.0} {:>10}",
            layer.name,
            layer.pe,
            layer.cost.iterations,
            layer.cycles,
            layer.cost.dsp,
            layer.cost.lut,
            layer.streamed_bytes
        );
    }
    text + "\nSteps of one kernel share its circuit, whose DSP and LUT count once above.\n\
            Assumed: a pipeline starts an iteration in every cycle, with as many banks of memory as ARRAY_PARTITION says, and takes 16 \
            cycles to fill; loops whose ends depend on data go round 16 times; of a branch both sides count; f32 operators take 3 \
            (product) and 2 (sum) DSP, products of 8-bit codes half a DSP each where two share one; the bus moves 0.7 of its bytes; \
            no operator is shared within a kernel; URAM is not used.\n"
}
