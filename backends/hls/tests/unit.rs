//! The processing elements outside of HLS: two products in one multiplier for all codes there are; the unit in SystemVerilog
//! simulated by verilator and counted by yosys.

use lapidary_hls::Unit;
use std::fmt::Write;
use std::path::Path;
use std::process::Command;

const UNIT: Unit = Unit {
    inputs: 32,
    outputs: 16,
    simd: 4,
    pe: 4,
};

fn is_missing(tool: &str) -> bool {
    let missing = Command::new(tool).arg("--version").output().is_err()
        && Command::new(tool).arg("-V").output().is_err();
    if missing {
        eprintln!("skipped: there is no {tool}");
    }
    missing
}

/// Runs a command in a folder; its output.
fn run(folder: &Path, command: &str) -> String {
    let mut words = command.split(' ');
    let out = Command::new(words.next().unwrap())
        .args(words)
        .current_dir(folder)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let errors = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{command}:\n{text}{errors}");
    text
}

fn weights(unit: Unit) -> Vec<i8> {
    let n = unit.inputs * unit.outputs;
    // With both ends of the range, and each beside the other.
    (0..n)
        .map(|i| match i % 37 {
            0 | 4 => i8::MIN,
            1 => i8::MAX,
            _ => (i.wrapping_mul(2_654_435_761) >> 24) as i8,
        })
        .collect()
}

/// What the emitted code does with two weights and an input, for every pair of 8-bit weights and every input; codes of fewer
/// bits are among them.
#[test]
fn two_products_share_a_multiplier() {
    if is_missing("g++") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in lapidary_hls::HEADERS {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    let text = "#include \"lapidary.h\"\n#include <cstdio>\nint main() {\n  long checked = 0;\n  \
        for (int a = 0; a < 256; ++a) for (int x = -128; x < 128; ++x) for (int y = -128; y < 128; ++y) {\n    \
        int32_t low = 7, high = -9;\n    lp::multiply_two(a, x, y, low, high);\n    \
        if (low != 7 + a * x || high != -9 + a * y) { std::printf(\"%d %d %d\\n\", a, x, y); return 1; }\n    ++checked;\n  }\n  \
        std::printf(\"%ld\", checked);\n}\n";
    std::fs::write(folder.path().join("pairs.cpp"), text).unwrap();
    run(
        folder.path(),
        "g++ -std=c++17 -O2 -Wno-unknown-pragmas pairs.cpp -o pairs",
    );
    assert_eq!(run(folder.path(), "./pairs"), (1 << 24).to_string());
}

#[test]
fn the_unit_in_simulation_sums_and_takes_the_cycles_of_its_folding() {
    if is_missing("verilator") || is_missing("g++") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let weights = weights(UNIT);
    let text = UNIT.verilog("unit", &weights).unwrap();
    std::fs::write(folder.path().join("unit.sv"), text).unwrap();
    std::fs::write(folder.path().join("bench.cpp"), bench(&weights)).unwrap();
    run(
        folder.path(),
        "verilator --cc --exe --build -Wno-fatal -Wno-WIDTH -Wno-BLKSEQ --top-module unit unit.sv bench.cpp --Mdir obj -CFLAGS -O1",
    );
    let out = run(folder.path(), "obj/Vunit");
    assert_eq!(
        out.trim(),
        format!("0 {}", UNIT.cycles()),
        "mismatches, cycles per vector"
    );
}

/// Feeds vectors without a pause; prints how many sums differ from those of integers, and the cycles for a vector.
fn bench(weights: &[i8]) -> String {
    let mut table = String::new();
    weights.iter().for_each(|w| {
        let _ = write!(table, "{w},");
    });
    let Unit {
        inputs,
        outputs,
        simd,
        pe,
    } = UNIT;
    format!(
        "#include \"Vunit.h\"
#include \"verilated.h\"
#include <cstdio>
#include <cstdint>
static const int8_t W[{outputs}][{inputs}] = {{ {table} }};
static uint8_t input(long vector, int i) {{ return vector == 0 ? 255 : (uint8_t)((vector * 2654435761u + i * 40503u) >> 7); }}
int main() {{
  Vunit m;
  long bad = 0, cycles = 0, fed = 0, got = 0;
  const long vectors = 100, words = vectors * {inputs} / {simd};
  auto tick = [&] {{ m.clk = 0; m.eval(); m.clk = 1; m.eval(); }};
  m.rst = 1; m.in_valid = 0; tick(); m.rst = 0;
  while (got < vectors * {outputs}) {{
    m.in_valid = fed < words;
    uint32_t word = 0;
    for (int s = 0; s < {simd}; ++s) word |= (uint32_t)input(fed * {simd} / {inputs}, fed * {simd} % {inputs} + s) << 8 * s;
    m.in_data = word;
    m.clk = 0; m.eval();
    const bool taken = m.in_valid && m.in_ready;
    m.clk = 1; m.eval();
    fed += taken; ++cycles;
    if (m.out_valid) for (int p = 0; p < {pe}; ++p, ++got) {{
      int32_t want = 0;
      for (int i = 0; i < {inputs}; ++i) want += W[got % {outputs}][i] * input(got / {outputs}, i);
      bad += (int32_t)m.out_data[p] != want;
    }}
    if (cycles > 1000000) return 1;
  }}
  std::printf(\"%ld %ld\\n\", bad, cycles / vectors);
}}
"
    )
}

/// Other foldings than the one that is simulated: one product a sum, an odd number of them, memories of more words than a table has.
const OTHERS: [Unit; 4] = [
    Unit {
        simd: 1,
        pe: 2,
        ..UNIT
    },
    Unit {
        inputs: 30,
        simd: 3,
        ..UNIT
    },
    Unit { simd: 8, ..UNIT },
    Unit {
        inputs: 64,
        outputs: 32,
        ..UNIT
    },
];

#[test]
fn open_synthesis_counts_what_the_model_says() {
    if is_missing("yosys") {
        return;
    }
    for unit in std::iter::once(UNIT).chain(OTHERS) {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(
            folder.path().join("unit.sv"),
            unit.verilog("unit", &weights(unit)).unwrap(),
        )
        .unwrap();
        // Modules are kept apart until cells have been chosen, and become one to be counted.
        let script = "read_verilog -sv unit.sv; synth_xilinx -family xcup -top unit -noiopad; \
                      setattr -mod -unset keep_hierarchy A:keep_hierarchy; flatten; tee -o stat.txt stat";
        let out = Command::new("yosys")
            .args(["-q", "-p", script])
            .current_dir(folder.path())
            .output()
            .unwrap();
        assert!(
            out.status.success(),
            "{}",
            String::from_utf8_lossy(&out.stderr)
        );
        let stat = std::fs::read_to_string(folder.path().join("stat.txt")).unwrap();
        let count = |cells: &[&str]| -> f64 {
            let lines = stat
                .lines()
                .map(|l| l.split_whitespace().collect::<Vec<_>>());
            let found = lines.filter(|l| l.len() == 2 && cells.contains(&l[0]));
            found.map(|l| l[1].parse::<f64>().unwrap()).sum()
        };
        let near = |what: &str, got: f64, want: u32| {
            let ratio = got / f64::from(want);
            eprintln!("{unit:?}, {what}: {got} counted, {want} predicted");
            assert!(
                (0.8..=1.2).contains(&ratio),
                "{unit:?}, {what}: {got}, predicted {want}\n{stat}"
            );
        };
        near("DSP", count(&["DSP48E2"]), unit.dsp());
        near(
            "flip-flops",
            count(&["FDRE", "FDSE", "FDCE", "FDPE"]),
            unit.flip_flops(),
        );
        let luts = ["LUT1", "LUT2", "LUT3", "LUT4", "LUT5", "LUT6"];
        near("look-up tables", count(&luts), unit.luts());
    }
}
