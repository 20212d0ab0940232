//! A project for an FPGA: an engine as HLS C++ that executes the streams, its test bench, memory image and streams.

use crate::arith::{EXP, LOG2_E};
use crate::compile::{BUCKET, Program};
use crate::isa::{CLASSES, MISC_OPS};
use crate::simulate::{DEPTHS, LINE, Machine};
use std::fmt::Write;

const BUFFERS: [&str; 6] = ["B", "META", "FSB", "SCALE", "A", "GLOBAL"];

/// The header: sizes, constants and one function for each field of each class.
fn header(program: &Program) -> String {
    let shape = &program.shape;
    let mut text =
        "// Made by lapidary: do not edit.\n#pragma once\n#include <cstdint>\n\n".to_owned();
    let sizes = [
        ("HIDDEN", shape.hidden as u64),
        ("HEADS", shape.heads as u64),
        ("KV_HEADS", shape.kv_heads as u64),
        ("HEAD_DIM", shape.head_dim as u64),
        ("VOCAB", shape.vocab as u64),
        ("EPSILON", program.epsilon),
        ("BUCKET", BUCKET as u64),
        ("MEMORY_BYTES", program.image.len() as u64),
        ("SCORES", program.scores as u64 * 16),
    ];
    for (name, size) in sizes {
        _ = writeln!(text, "static const uint64_t {name} = {size};");
    }
    for ((name, depth), line) in BUFFERS.iter().zip(DEPTHS).zip(LINE) {
        _ = writeln!(
            text,
            "static const uint64_t DEPTH_{name} = {depth}, LINE_{name} = {line};"
        );
    }
    _ = writeln!(
        text,
        "static const int64_t LOG2_E = {LOG2_E}, EXP[4] = {{{}, {}, {}, {}}};",
        EXP[0], EXP[1], EXP[2], EXP[3]
    );
    text += "enum { FLIGHT_STREAM = 1, FLIGHT_FIELD = 2, FLIGHT_RANGE = 3 };\n";
    let list = |each: &mut dyn Iterator<Item = String>| each.collect::<Vec<_>>().join(", ");
    _ = writeln!(
        text,
        "enum {{ {} }};",
        list(&mut MISC_OPS.iter().map(|op| format!("OP_{op}")))
    );
    _ = writeln!(
        text,
        "enum {{ {} }};",
        list(&mut CLASSES.iter().map(|c| format!("CLASS_{}", c.name)))
    );
    _ = writeln!(
        text,
        "static const int CLASS_WORDS[6] = {{{}}};",
        list(&mut CLASSES.iter().map(|c| c.words.to_string()))
    );
    text += "static inline int class_by_opcode(uint32_t opcode) {\n  switch (opcode) {\n";
    for class in &CLASSES {
        _ = writeln!(
            text,
            "    case {}: return CLASS_{};",
            class.opcode, class.name
        );
    }
    text += "  }\n  return -1;\n}\n";
    for class in &CLASSES {
        for field in class.fields.iter().filter(|field| field.name != "zero") {
            let mask = ((1u64 << field.bits) - 1) as u32;
            let (class, name, word, low) = (class.name, field.name, field.word, field.low);
            _ = writeln!(
                text,
                "static inline uint32_t {class}_{name}(const uint32_t *w) {{ return w[{word}] >> {low} & {mask:#x}u; }}"
            );
        }
    }
    text += "\nint flight(uint8_t *memory, const uint32_t *stream, int words, int token, int position);\n";
    text
}

/// Runs the test bench under sanitizers.
const MAKEFILE: &str = "check: bench\n\t./bench\nbench: flight.cpp testbench.cpp flight.h\n\t$(CXX) -std=c++17 -O1 -Wall \
    -fsanitize=address,undefined -fno-sanitize-recover=all flight.cpp testbench.cpp -o bench\n.PHONY: check\n";

/// The files of a project by their names; the test bench compares the steps of these tokens with the simulator.
///
/// # Errors
/// As [`Machine::step`].
pub fn project(program: &Program, tokens: &[usize]) -> Result<Vec<(String, Vec<u8>)>, String> {
    let mut machine = Machine::new(program)?;
    let mut expected = vec![];
    for (position, token) in tokens.iter().enumerate() {
        expected.extend((*token as u32).to_le_bytes());
        let scores = machine.step(*token, position)?;
        expected.extend(scores.iter().flat_map(|score| score.to_le_bytes()));
    }
    let mut files = vec![
        ("flight.h".to_owned(), header(program).into_bytes()),
        (
            "flight.cpp".to_owned(),
            include_bytes!("../include/flight.cpp").to_vec(),
        ),
        (
            "testbench.cpp".to_owned(),
            include_bytes!("../include/testbench.cpp").to_vec(),
        ),
        ("Makefile".to_owned(), MAKEFILE.as_bytes().to_vec()),
        ("image.bin".to_owned(), program.image.clone()),
        ("expected.bin".to_owned(), expected),
    ];
    for (at, words) in program.streams.iter().enumerate() {
        let bytes = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        files.push((format!("stream_{at}.bin"), bytes));
    }
    Ok(files)
}
