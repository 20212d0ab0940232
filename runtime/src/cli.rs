//! The command line of a compiled executable.
//!
//! Exit status: 0 done; 1 the model or its data cannot be run (nothing is left half-written); 2 wrong usage.

use crate::error::RunError;
use crate::exec::{KernelTiming, Memory, Model, ModelOptions, parse_expert_order};
use crate::image::Image;
use crate::io::folder::{read_inputs, write_outputs};
use crate::ops::number;
use crate::pool::pin_this_thread;
use crate::sizes;
use crate::value::{Operand, Tensor, Value, View};
use lapidary_abi::ElemType;
use lapidary_abi::experts::Order;
use lapidary_abi::program::{Port, Program, ValueType};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Elements that are printed of each output.
const PRINTED: usize = 16;

/// Highest values that are printed of a row of scores.
const TOP: usize = 5;

#[derive(Debug, Default, PartialEq)]
struct Options {
    inputs: Option<PathBuf>,
    outputs: Option<PathBuf>,
    threads: usize,
    huge_pages: bool,
    memory: Option<Memory>,
    /// As [`ModelOptions::expert_order`], if it is given.
    expert_order: Option<Option<Order>>,
    no_pin: bool,
    bench: Option<f64>,
    action: Action,
}

#[derive(Debug, Default, PartialEq)]
enum Action {
    #[default]
    Run,
    Help,
    Version,
}

/// Runs the model at the end of this process' own executable as the command line says.
pub fn main() -> ExitCode {
    let args = std::env::args_os()
        .skip(1)
        .map(|a| a.to_string_lossy().into_owned());
    let options = match parse(args) {
        Ok(options) => options,
        Err(message) => {
            eprintln!("error: {message}\ntry --help");
            return ExitCode::from(2);
        }
    };
    match act(&options) {
        Ok(text) => {
            // A reader that has gone away is no error of ours.
            let _ = std::io::stdout().write_all(text.as_bytes());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}\nhelp: {}", error.remedy());
            ExitCode::from(1)
        }
    }
}

fn parse(args: impl IntoIterator<Item = String>) -> Result<Options, String> {
    let mut options = Options::default();
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        let (name, given) = match arg.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (arg, None),
        };
        let is_flag = matches!(
            name.as_str(),
            "--huge-pages" | "--no-pin" | "--help" | "-h" | "--version" | "-V"
        );
        if is_flag && given.is_some() {
            return Err(format!("`{name}` takes no value"));
        }
        let mut value = || {
            given
                .clone()
                .or_else(|| args.next())
                .ok_or_else(|| format!("`{name}` needs a value"))
        };
        match name.as_str() {
            "--inputs" | "-i" => options.inputs = Some(value()?.into()),
            "--outputs" | "-o" => options.outputs = Some(value()?.into()),
            "--threads" | "-j" => {
                let text = value()?;
                let n = text.parse().ok().filter(|n| (1..=4096).contains(n));
                options.threads =
                    n.ok_or_else(|| format!("`{text}` is not a number of threads"))?;
            }
            "--bench" => {
                let text = value()?;
                let seconds = text.parse().ok().filter(|s| (0.0..=86400.0).contains(s));
                options.bench =
                    Some(seconds.ok_or_else(|| format!("`{text}` is not a number of seconds"))?);
            }
            "--memory" => options.memory = Some(Memory::parse(&value()?)?),
            "--expert-order" => {
                let text = value()?;
                let order = parse_expert_order(&text);
                options.expert_order =
                    Some(order.ok_or_else(|| format!("`{text}` is none of hebf, fifo, none"))?);
            }
            "--huge-pages" => options.huge_pages = true,
            "--no-pin" => options.no_pin = true,
            "--help" | "-h" => options.action = Action::Help,
            "--version" | "-V" => options.action = Action::Version,
            other => return Err(format!("unknown argument `{other}`")),
        }
    }
    Ok(options)
}

fn act(options: &Options) -> Result<String, RunError> {
    let image = Image::of_this_executable()?;
    match options.action {
        Action::Help => return Ok(help(&image.program)),
        Action::Version => {
            return Ok(format!(
                "{} (lapidary runtime {})\n",
                image.program.name,
                env!("CARGO_PKG_VERSION")
            ));
        }
        Action::Run => {}
    }
    if options.inputs.is_none() && !image.program.inputs.is_empty() && options.bench.is_none() {
        return Err(RunError::Input(
            "no inputs: give them with --inputs DIR; see --help".into(),
        ));
    }
    let default = ModelOptions::default();
    let model = image.load(ModelOptions {
        threads: options.threads,
        pin: !options.no_pin,
        huge_pages: options.huge_pages,
        memory: options.memory.clone(),
        expert_order: options.expert_order.unwrap_or(default.expert_order),
    })?;
    if !options.no_pin {
        pin_this_thread(model.threads());
    }
    let (inputs, kind) = match &options.inputs {
        Some(folder) => read_inputs(folder, model.inputs())?,
        None => (zeros(&model)?, crate::io::folder::Kind::Pb),
    };
    if let Some(seconds) = options.bench {
        return bench(&model, &inputs, seconds);
    }
    let outputs = model.run(&inputs)?;
    match &options.outputs {
        Some(folder) => {
            write_outputs(folder, model.outputs(), &outputs, kind).map(|()| String::new())
        }
        None => Ok(model
            .outputs()
            .iter()
            .zip(&outputs)
            .map(|(port, value)| show(port, value))
            .collect()),
    }
}

fn help(program: &Program) -> String {
    let exe = std::env::args().next().unwrap_or_else(|| "model".into());
    let list = |ports: &[Port]| -> String {
        let line = |p: &Port| {
            format!(
                "  {}: {}\n",
                p.name,
                crate::exec::type_text(&p.ty, &program.symbols)
            )
        };
        ports.iter().map(line).collect()
    };
    format!(
        "{name}, compiled by lapidary

usage: {exe} --inputs DIR [--outputs DIR] [options]

  --inputs DIR   input_0.pb, input_1.pb, ... (ONNX), or NAME.npy for each input, or one .npz
  --outputs DIR  write the outputs here, in the kind of the inputs; without it, print them in short
  --threads N    threads to use (default: one for each core)
  --no-pin       let threads move between cores
  --memory SIZE  have at most so much in memory, such as 2GiB, or what a file says at any time, as @FILE: weights in parts are used as far as they fit, others are read again as they are used
  --expert-order ORDER  how experts that tokens chose are read from the file, while others are computed: hebf (default;
                 those of most tokens first), fifo (by number) or none (when they are used)
  --huge-pages   ask for huge pages for working memory and weights
  --bench SEC    run for SEC seconds and print times (on zeros without --inputs)
  --help, --version

inputs:
{inputs}outputs:
{outputs}
exit status: 0 done, 1 failed, 2 wrong usage
",
        name = program.name,
        inputs = list(&program.inputs),
        outputs = list(&program.outputs),
    )
}

/// Inputs of zeros, for timing; symbolic dimensions are 1.
pub fn zeros(model: &Model) -> Result<Vec<Value>, RunError> {
    let ones = vec![1; model.symbols().len()];
    let zero = |port: &Port| match &port.ty {
        ValueType::Tensor {
            elem,
            dims: Some(dims),
        } => match sizes::dims(dims, &ones) {
            Some(dims) => Ok(Tensor::zeros(*elem, dims)?.into()),
            None => Err(RunError::Input(format!(
                "input `{}` needs --inputs",
                port.name
            ))),
        },
        ValueType::Optional(_) => Ok(Value::Optional(None)),
        _ => Err(RunError::Input(format!(
            "input `{}` needs --inputs",
            port.name
        ))),
    };
    model.inputs().iter().map(zero).collect()
}

/// What one kernel, or one library operation, took in one run.
#[derive(Clone, Debug, Default)]
pub struct KernelTime {
    /// Name of the kernel or operation.
    pub name: String,
    /// Launches.
    pub calls: u64,
    /// Time of all of them.
    pub nanoseconds: u64,
    /// Operations counted.
    pub flops: u64,
    /// Bytes of the arguments.
    pub bytes: u64,
}

impl std::fmt::Display for KernelTime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ns = self.nanoseconds.max(1) as f64;
        write!(
            f,
            "{:>10.1} us {:>6} x {:>8.1} GFLOP/s {:>8.1} GB/s  {}",
            ns / 1e3,
            self.calls,
            self.flops as f64 / ns,
            self.bytes as f64 / ns,
            self.name
        )
    }
}

/// Times the kernels of one run, the longest first.
pub fn kernel_times(model: &Model, inputs: &[Value]) -> Result<Vec<KernelTime>, RunError> {
    let mut kernels: BTreeMap<String, KernelTime> = BTreeMap::new();
    let mut add = |t: KernelTiming| {
        let sum = kernels.entry(t.name.to_owned()).or_default();
        sum.calls += 1;
        sum.nanoseconds += t.nanoseconds;
        sum.flops += t.flops;
        sum.bytes += t.bytes;
    };
    let operands: Vec<Operand> = inputs.iter().map(Value::operand).collect();
    model.run_with(&operands, &mut [], Some(&mut add))?;
    let mut times: Vec<KernelTime> = kernels
        .into_iter()
        .map(|(name, time)| KernelTime { name, ..time })
        .collect();
    times.sort_by_key(|t| std::cmp::Reverse(t.nanoseconds));
    Ok(times)
}

/// Times whole runs, then the kernels of one run.
fn bench(model: &Model, inputs: &[Value], seconds: f64) -> Result<String, RunError> {
    model.run(inputs)?;
    let start = Instant::now();
    let mut times = Vec::new();
    while times.is_empty() || start.elapsed() < Duration::from_secs_f64(seconds) {
        let one = Instant::now();
        model.run(inputs)?;
        times.push(one.elapsed());
    }
    times.sort_unstable();
    let ms = |d: Duration| d.as_secs_f64() * 1e3;
    let mut text = format!(
        "{} runs, {} threads: best {:.3} ms, median {:.3} ms, worst {:.3} ms\n",
        times.len(),
        model.threads(),
        ms(times[0]),
        ms(times[times.len() / 2]),
        ms(times[times.len() - 1]),
    );
    for time in kernel_times(model, inputs)? {
        text += &format!("{time}\n");
    }
    Ok(text)
}

/// A value in short: rows of scores by their highest values, others by their first elements.
pub fn show(port: &Port, value: &Value) -> String {
    let mut text = format!("{}: {}", port.name, value.describe());
    let Value::Tensor(tensor) = value else {
        return text + "\n";
    };
    let view = tensor.view();
    let is_scores = matches!(view.dims(), [1, n] | [n] if *n > PRINTED) && view.elem().is_float();
    if is_scores {
        text += &format!(", highest {TOP}:\n");
        let mut order: Vec<usize> = (0..view.len()).collect();
        order.sort_by(|&a, &b| {
            number::number(&view, b)
                .order(&number::number(&view, a))
                .then(a.cmp(&b))
        });
        for i in &order[..TOP] {
            text += &format!("  [{i}] {}\n", element(&view, *i));
        }
        return text;
    }
    let shown: Vec<String> = (0..view.len().min(PRINTED))
        .map(|i| element(&view, i))
        .collect();
    let more = if view.len() > PRINTED { ", ..." } else { "" };
    text + &format!(" = {}{more}\n", shown.join(", "))
}

fn element(view: &View, i: usize) -> String {
    match (view.elem(), number::number(view, i)) {
        (ElemType::String, _) => format!("{:?}", view.strings()[i]),
        (ElemType::Bool, number::Number::Int(v)) => (v != 0).to_string(),
        (_, number::Number::Int(v)) => v.to_string(),
        (_, number::Number::Float(f)) => format!("{}", f as f32),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_understood_or_refused() {
        let parse = |line: &str| parse(line.split_whitespace().map(str::to_owned));
        let options = parse("--inputs a -o=b --threads 3 --no-pin --bench 0.5").expect("right");
        assert_eq!(options.inputs, Some("a".into()));
        assert_eq!(options.outputs, Some("b".into()));
        assert_eq!(
            (options.threads, options.no_pin, options.bench),
            (3, true, Some(0.5))
        );
        assert_eq!(options.expert_order, None);
        let order = |text| parse(text).expect("right").expert_order;
        assert_eq!(order("--expert-order fifo"), Some(Some(Order::Fifo)));
        assert_eq!(order("--expert-order=none"), Some(None));
        for wrong in [
            "--inputs",
            "--threads 0",
            "--threads x",
            "--bench -1",
            "x",
            "--no-pin=1",
            "--expert-order last",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
