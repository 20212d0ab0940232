//! Compiles the bundled digit classifier to an executable, runs it on the bundled digits, and prints what it reads,
//! with sizes and times: `cargo run --example mnist`.

use lapidary::artefact::{Parts, write_exe};
use lapidary::{CompileOptions, driver};
use std::error::Error;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/mnist");
    let model = folder.join("mnist-8.onnx");
    let out = std::env::current_exe()?.with_file_name("mnist-compiled");

    let begin = Instant::now();
    let options = CompileOptions::host(1);
    let module = driver::import(&model, &options)?;
    let compiled = driver::compile(module, "mnist-8.onnx", &options, None)?;
    let parts = Parts {
        file: "mnist-8.onnx",
        triple: &options.target.triple,
        program: &compiled.program,
        code: &compiled.code,
        weights: &compiled.weights,
    };
    write_exe(&out, &parts, false)?;
    println!(
        "compiled {} ({} bytes) in {:.1} ms",
        model.display(),
        std::fs::metadata(&model)?.len(),
        begin.elapsed().as_secs_f64() * 1e3
    );
    println!(
        "  to {} ({} bytes: {} of code, {} of weights, the rest is the runtime)",
        out.display(),
        std::fs::metadata(&out)?.len(),
        compiled.code.len(),
        compiled.program.weights_bytes
    );

    for digit in 0..3 {
        let inputs = folder.join(format!("digit_{digit}"));
        let begin = Instant::now();
        let run = Command::new(&out).arg("--inputs").arg(&inputs).output()?;
        let took = begin.elapsed().as_secs_f64() * 1e3;
        if !run.status.success() {
            return Err(String::from_utf8_lossy(&run.stderr).into());
        }
        let text = String::from_utf8(run.stdout)?;
        let read = best(&text).ok_or("the executable printed no scores")?;
        let wanted = reference(&inputs.join("output_0.pb"))?;
        println!("digit_{digit}: reads {read}, the reference {wanted}; {took:.1} ms with start-up");
        if read != wanted {
            return Err("the prediction differs from the reference".into());
        }
    }
    let bench = Command::new(&out)
        .args(["--bench", "0.2", "--threads", "1"])
        .output()?;
    let text = String::from_utf8(bench.stdout)?;
    println!("{}", text.lines().next().unwrap_or_default());
    Ok(())
}

/// Index of the highest of the scores after ` = `.
fn best(line: &str) -> Option<usize> {
    let scores: Vec<f32> = line
        .split_once(" = ")?
        .1
        .split(',')
        .map(|v| v.trim().parse().ok())
        .collect::<Option<_>>()?;
    (0..scores.len()).max_by(|&a, &b| scores[a].total_cmp(&scores[b]))
}

/// Index of the highest score of a stored output.
fn reference(path: &Path) -> Result<usize, Box<dyn Error>> {
    let tensor = lapidary_runtime::io::pb::read_tensor(&std::fs::read(path)?)?;
    let scores: Vec<f32> = tensor
        .bytes()
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        .collect();
    let best = (0..scores.len()).max_by(|&a, &b| scores[a].total_cmp(&scores[b]));
    Ok(best.ok_or("no scores")?)
}
