//! The command line, as clap reads it. What each command does is in `commands/`.

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::error::ErrorKind;
use clap::{
    Arg, ArgAction, ArgGroup, ArgMatches, Args, FromArgMatches, Parser, Subcommand, ValueEnum,
};
use lapidary::calibrate::SAMPLES;
use lapidary_hls::parts::{Part, part};
use lapidary_language::evict::{Budget as KvBudget, Policy};
use lapidary_language::options::{FLAGS, Flag, Options};
use lapidary_passes::compress::{Activations, Budget, PRESETS};
use lapidary_runtime::exec::parse_bytes;
use lapidary_server::Serving;
use std::path::PathBuf;

/// An ahead-of-time compiler for compressed neural networks.
#[derive(Debug, Parser)]
#[command(name = "lapidary", version, about, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Compile a model in memory and run it on given inputs.
    Run(Run),
    /// Compile a language model or an encoder in memory and answer requests in the form of the OpenAI interface.
    Serve(Serve),
    /// Compile a model into an executable, library, object or listing.
    Build(Build),
    /// Write a compressed model that other programs load too.
    Compress(Compress),
    /// Show a model at a stage of compilation.
    Inspect(Inspect),
    /// Measure how fast a model runs here, kernel by kernel, beside what the machine can do.
    Bench(Bench),
    /// Measure how well a language model predicts a text, and how far it is from another model.
    Eval(Eval),
    /// Measure this machine for predictions of time: about half a minute, best while nothing else runs.
    Tune(Tune),
    /// Print shell completions.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// What every command that compiles takes.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("asked").multiple(true).args(["size", "bits", "latency", "recipe", "quantize", "max_kl", "min_top1", "max_error", "adjustable"])))]
pub struct Model {
    /// An ONNX file, the folder of a checkpoint, a GGUF file, or a module in the text form (`.lap`).
    pub model: PathBuf,
    /// Fix a symbolic dimension: `--dim batch=1` (repeatable).
    #[arg(long = "dim", value_name = "NAME=N", value_parser = parse_dim)]
    pub dims: Vec<(String, i64)>,
    /// Threads to plan for and to run with (default: all cores).
    #[arg(long)]
    pub threads: Option<usize>,
    /// Code generator: `cranelift`, or `llvm` where this lapidary was built with it; `ptx` for GPUs.
    #[arg(long)]
    pub backend: Option<String>,
    /// Processor: `native`, `generic` or `x86-64-v2` … `x86-64-v4`, then features after commas (default: this machine's); a GPU
    /// as `sm_80` (the default of `--target ptx`) or `sm_90a`.
    #[arg(long)]
    pub cpu: Option<String>,
    /// Compress the weights to this size: a share of what they are, `0.25x`, or bytes, `12MB`. Without `--calibrate` the
    /// error that is least is that of the weights, with it that of the model's results.
    #[arg(long, value_name = "SIZE", value_parser = Budget::size, group = "compression")]
    pub size: Option<Budget>,
    /// Compress the weights to so many bits each, on average.
    #[arg(long, value_name = "BITS", value_parser = parse_bits, group = "compression")]
    pub bits: Option<Budget>,
    /// Compress the weights until a run is predicted to take so long at most, `5ms` or `800us`, with the least error; goes with
    /// `--size`. Dimensions that `--dim` does not give count as 1.
    #[arg(long, value_name = "TIME", value_parser = parse_time, conflicts_with = "recipe")]
    pub latency: Option<f64>,
    /// Compress the weights as this file says; `build` with `--size` or `--bits` writes one.
    #[arg(long, value_name = "FILE", group = "compression")]
    pub recipe: Option<PathBuf>,
    /// Compute with 8-bit codes, of ranges that the data shows; needs `--calibrate`.
    #[arg(long, value_name = "HOW", value_parser = presets(), requires = "calibrate", group = "compression", conflicts_with_all = ["latency", "max_kl", "min_top1", "max_error"])]
    pub quantize: Option<Activations>,
    /// Compress the weights until predictions diverge from the original's by so much at most, in nats; needs `--calibrate`.
    #[arg(long, value_name = "NATS", value_parser = parse_positive, requires = "calibrate", conflicts_with = "recipe")]
    pub max_kl: Option<f64>,
    /// Compress the weights until the most probable class is the original's for this share of predictions at least; needs
    /// `--calibrate`.
    #[arg(long, value_name = "SHARE", value_parser = parse_positive, requires = "calibrate", conflicts_with = "recipe")]
    pub min_top1: Option<f64>,
    /// Compress the weights until the squared error, relative to the squares of what it is an error of, is this at most: with
    /// `--calibrate` of the model's results, where these are no predictions, else of the weights, on average.
    #[arg(long, value_name = "ERROR", value_parser = parse_positive, conflicts_with_all = ["recipe", "max_kl", "min_top1"])]
    pub max_error: Option<f64>,
    /// Search so long for better choices within the budget by what they do to the results, `90s` (default: a fixed number of steps,
    /// which gives the same choice every time).
    #[arg(long, value_name = "TIME", value_parser = parse_time, requires = "calibrate", conflicts_with_all = ["recipe", "quantize"])]
    pub search_time: Option<f64>,
    /// Data that compression looks at: tokens or a text; or an `.npz` or folder of arrays whose first axis is cut into samples.
    #[arg(long, value_name = "DATA", requires = "asked")]
    pub calibrate: Option<PathBuf>,
    /// Samples of the data to use, spread evenly.
    #[arg(long, value_name = "N", default_value_t = SAMPLES, requires = "calibrate")]
    pub samples: usize,
    /// What is taken from the channels of pictures in the data, of numbers from 0 to 1 (default: ImageNet's).
    #[arg(long, value_name = "R,G,B", value_parser = parse_channels, requires = "calibrate")]
    pub image_mean: Option<[f32; 3]>,
    /// What they are divided by then (default: ImageNet's).
    #[arg(long, value_name = "R,G,B", value_parser = parse_deviations, requires = "calibrate")]
    pub image_std: Option<[f32; 3]>,
    /// Compress weights only to codes of 2 to 8 bits that products read as they are: memory holds what is multiplied as small as the
    /// file does, and a token reads no more. What is chosen otherwise is smaller in the file, and decoded when the model is loaded, as
    /// filters of convolutions are in either case.
    #[arg(long, requires = "asked", conflicts_with_all = ["recipe", "quantize"])]
    pub packed: bool,
    /// Keep weights in parts, so that a program uses as many of them as its `--memory` has room for, and changes that while it runs: with
    /// less memory it is less exact. Without another choice of compression weights become 8 bits in three parts; of the methods of
    /// recipes `stack`, `nested` and `bitstack` make parts.
    #[arg(long, conflicts_with_all = ["packed", "quantize"])]
    pub adjustable: bool,
    /// Keep the work of compression in this folder: a run that was ended goes on, and another budget costs only its choice.
    #[arg(long, value_name = "DIR", requires = "asked")]
    pub work: Option<PathBuf>,
    /// How fast the machine is, as `lapidary tune` measured it (default: its profile in the cache folder, if there is one and code
    /// is for this machine).
    #[arg(long, value_name = "FILE")]
    pub target_profile: Option<PathBuf>,
    /// Predict times by the target's description alone.
    #[arg(long, conflicts_with = "target_profile")]
    pub no_target_profile: bool,
    /// Draw what became of the weights as a page for browsers: what other sizes would cost, where bytes went, bits and errors
    /// layer by layer.
    #[arg(long, value_name = "FILE", requires = "asked")]
    pub report: Option<PathBuf>,
    /// Leave the graph as imported: no rewriting.
    #[arg(long)]
    pub no_optimize: bool,
    /// Multiply with weights that are mostly zero as with any others.
    #[arg(long)]
    pub no_sparse: bool,
    /// Compute what depends on weights alone, such as decoding them, in every run instead of once when the model is
    /// loaded: less memory, more time.
    #[arg(long)]
    pub no_prepare: bool,
    /// Round what is multiplied with packed weights to 8-bit codes in blocks, as llama.cpp does: faster, a little
    /// less exact.
    #[arg(long)]
    pub round_activations: bool,
    /// Round to 16-bit floats what is multiplied with 4-bit weights, or with weights that are such floats, where a GPU's tensor cores do
    /// that faster: a little less exact, and numbers beyond 65504 become infinite in `f16`.
    #[arg(long)]
    pub half_activations: bool,
    /// Multiply numbers of `bf16` where the processor has such products: what goes in and constant weights are rounded to it (8 bits),
    /// sums are `f32`. Faster, less exact.
    #[arg(long)]
    pub bf16: bool,
    /// Keep the keys and values of all but the newest tokens in so many bits, 8, 4 or 2; two numbers are for keys and for values.
    /// A little less exact, and a third of the memory or less. With 16, all tokens are halves: half of the memory.
    #[arg(long, value_name = "BITS", value_parser = parse_kv)]
    pub kv: Option<[i64; 2]>,
    /// Print a machine-readable report to standard output.
    #[arg(long)]
    pub json: bool,
}

/// `lapidary run`.
#[derive(Debug, Args)]
pub struct Run {
    /// The model and how to compile it.
    #[command(flatten)]
    pub model: Model,
    /// Folder with `input_0.pb` …, `NAME.npy` … or one `.npz`. Without it, a language model writes text, an encoder embeds it.
    #[arg(long, value_name = "DIR")]
    pub inputs: Option<PathBuf>,
    /// What a language model is to write, or an encoder to embed.
    #[command(flatten)]
    pub text: Text,
    /// Folder that gets the outputs, in the same kind of files. Without it they are summarised on standard output.
    #[arg(long, value_name = "DIR", requires = "inputs")]
    pub outputs: Option<PathBuf>,
    /// `ptx`, or a GPU as `sm_90a`: compile for it, and run on one (default: this machine's processor).
    #[arg(long, requires = "inputs", conflicts_with = "reference")]
    pub target: Option<String>,
    /// Which GPU runs it.
    #[arg(long, value_name = "N", default_value_t = 0, requires = "target")]
    pub device: u32,
    /// Use the reference evaluator instead of compiled code (slow; the definition of right).
    #[arg(long, requires = "inputs")]
    pub reference: bool,
}

/// `lapidary serve`.
#[derive(Debug, Args)]
pub struct Serve {
    /// The model and how to compile it.
    #[command(flatten)]
    pub model: Model,
    /// How it is served.
    #[command(flatten)]
    pub serving: Server,
    /// How texts are written where a request does not say it.
    #[command(flatten)]
    pub text: Defaults,
}

/// The options of a runtime crate's table as arguments.
fn arguments<O>(flags: &'static [Flag<O>], heading: &'static str) -> impl Iterator<Item = Arg> {
    flags.iter().map(move |flag| {
        let arg = Arg::new(flag.name)
            .long(flag.name)
            .help(flag.help)
            .help_heading(heading);
        match flag.value {
            // Prompts and numbers may begin with a dash.
            Some(value) => arg
                .value_name(value)
                .action(ArgAction::Append)
                .allow_hyphen_values(true),
            None => arg.action(ArgAction::SetTrue),
        }
    })
}

/// Sets what was given of them.
fn set_given<'f, O: 'static>(
    flags: impl Iterator<Item = &'f Flag<O>>,
    options: &mut O,
    matches: &ArgMatches,
) -> Result<(), clap::Error> {
    for flag in flags {
        let values: Vec<String> = match flag.value {
            Some(_) => matches
                .get_many(flag.name)
                .into_iter()
                .flatten()
                .cloned()
                .collect(),
            None => matches
                .get_flag(flag.name)
                .then(String::new)
                .into_iter()
                .collect(),
        };
        for value in values {
            let wrong = |why| {
                let message = format!("`{}`: {why}\n", flag.name);
                clap::Error::raw(ErrorKind::ValueValidation, message)
            };
            (flag.set)(options, &value).map_err(wrong)?;
        }
    }
    Ok(())
}

/// The options of a server, from their own table.
#[derive(Debug, Default)]
pub struct Server(pub Serving);

impl Args for Server {
    fn augment_args(command: clap::Command) -> clap::Command {
        let needed = |arg: Arg| match arg.get_id() == "listen" {
            true => arg.required(true),
            false => arg,
        };
        command.args(arguments(lapidary_server::FLAGS, "Serving").map(needed))
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Server::augment_args(command)
    }
}

impl FromArgMatches for Server {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Server, clap::Error> {
        let mut server = Server::default();
        server.update_from_arg_matches(matches)?;
        Ok(server)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        set_given(lapidary_server::FLAGS.iter(), &mut self.0, matches)
    }
}

/// Those of the options of texts that a server takes as defaults.
#[derive(Debug, Default)]
pub struct Defaults(pub Options);

/// Those that are no single text's, and no client's business.
const OF_SERVER: [&str; 12] = [
    "kv-budget",
    "kv-evict",
    "parallel",
    "dimensions",
    "max-tokens",
    "temperature",
    "top-k",
    "top-p",
    "min-p",
    "repetition-penalty",
    "seed",
    "stop",
];

impl Args for Defaults {
    fn augment_args(command: clap::Command) -> clap::Command {
        let own = |arg: &Arg| OF_SERVER.contains(&arg.get_id().as_str());
        command.args(arguments(FLAGS, "Writing text").filter(own))
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Defaults::augment_args(command)
    }
}

impl FromArgMatches for Defaults {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Defaults, clap::Error> {
        let mut defaults = Defaults::default();
        defaults.update_from_arg_matches(matches)?;
        Ok(defaults)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        let own = FLAGS.iter().filter(|f| OF_SERVER.contains(&f.name));
        set_given(own, &mut self.0, matches)
    }
}

/// The options of programs that write text, from their own table.
#[derive(Debug, Default)]
pub struct Text(pub Options);

impl Args for Text {
    fn augment_args(command: clap::Command) -> clap::Command {
        let args = arguments(FLAGS, "Writing text");
        command.args(args.map(|arg| arg.conflicts_with("inputs")))
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Text::augment_args(command)
    }
}

impl FromArgMatches for Text {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Text, clap::Error> {
        let mut text = Text::default();
        text.update_from_arg_matches(matches)?;
        Ok(text)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        set_given(FLAGS.iter(), &mut self.0, matches)
    }
}

/// `lapidary build`.
#[derive(Debug, Args)]
pub struct Build {
    /// The model and how to compile it.
    #[command(flatten)]
    pub model: Model,
    /// Where the artefact goes.
    #[arg(short, long)]
    pub output: PathBuf,
    /// What to write.
    #[arg(long, value_enum, default_value_t = Emit::Exe)]
    pub emit: Emit,
    /// Of a language model's checkpoint: a program that gives scores of tokens (an encoder's: states) for `--inputs`, not one that
    /// writes text or embeds it.
    #[arg(long)]
    pub scores: bool,
    /// Of a language model's checkpoint: a program that can also answer requests by HTTP (`--listen`), as `serve` does.
    #[arg(long, conflicts_with = "scores")]
    pub with_server: bool,
    /// Of a language model's checkpoint: a program that counts how much attention cached tokens get, so that it takes
    /// `--kv-budget` and `--kv-evict`. Steps are a little slower.
    #[arg(long, conflicts_with = "scores")]
    pub kv_evictable: bool,
    /// Target triple, or `ptx` for GPUs (default: this machine).
    #[arg(long)]
    pub target: Option<String>,
    /// Of `--emit hls` and `flight`: the FPGA to fit, `u280`, `vhk158` or `zcu102`. `--latency` is then the circuit's.
    #[arg(long, default_value = "u280", value_parser = part)]
    pub part: &'static Part,
    /// Of `--emit hls`: inputs for the test bench, as `run --inputs` takes them (default: random numbers).
    #[arg(long, value_name = "DIR")]
    pub vectors: Option<PathBuf>,
    /// Of `--emit flight`: so many weights of every 16 of an output are kept, the largest: 2, 4, 8 or all 16.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = kept)]
    pub keep: u8,
    /// Of `--emit flight`: 16 outputs get codes of 3 or 4 bits in place of 8 where their relative squared error is no larger.
    #[arg(long, value_name = "ERROR", default_value_t = 0.0)]
    pub tolerance: f64,
}

/// How many weights of 16 the overlay keeps.
fn kept(text: &str) -> Result<u8, String> {
    let n = text.parse().ok().filter(|n| [2, 4, 8, 16].contains(n));
    n.ok_or_else(|| format!("`{text}` is none of 2, 4, 8 and 16"))
}

/// Kinds of artefact.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Emit {
    /// An executable; needs no toolchain.
    Exe,
    /// A freestanding object file and a C header.
    Obj,
    /// A static library with the runtime, and a C header.
    Staticlib,
    /// A shared library with the runtime, and a C header.
    Dylib,
    /// A listing: each kernel's text and machine code.
    Asm,
    /// Program, code and weights in one file, for `include_model!`.
    Image,
    /// A folder with a project for FPGAs: HLS C++, a test bench, a report of resources and cycles.
    Hls,
    /// A folder with a Llama's checkpoint as instructions for an FPGA overlay after FlightLLM: the engine as HLS C++, its test bench,
    /// memory image, streams, and predicted times.
    Flight,
    /// The kernels as PTX, and beside it `NAME.image`, which holds them as its code, the program that launches them, and the
    /// weights.
    Ptx,
}

/// `lapidary compress`.
#[derive(Debug, Args)]
pub struct Compress {
    /// The model and how to compress it.
    #[command(flatten)]
    pub model: Model,
    /// Where the model goes: a file `.onnx` or `.gguf`, or a folder of safetensors.
    #[arg(short, long)]
    pub output: PathBuf,
    /// What to write, where the name does not say it.
    #[arg(long, value_enum)]
    pub format: Option<Export>,
    /// Only look at the data, and list the jobs that machines which share the `--work` folder can do in any order.
    #[arg(long, requires = "work", group = "part")]
    pub plan: bool,
    /// Only do this job of the plan.
    #[arg(long, value_name = "N", requires = "work", group = "part")]
    pub job: Option<usize>,
    /// Only put together what the jobs have made; one that was not done is an error.
    #[arg(long, requires = "work", group = "part")]
    pub merge: bool,
}

/// Formats that are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Export {
    /// ONNX, from ONNX: weights are codes that `DequantizeLinear` or `MatMulNBits` reads.
    Onnx,
    /// A folder of safetensors for transformers and vLLM, from such a folder: `pack-quantized`.
    CompressedTensors,
    /// The same in GPTQ's form: all weights have the same number of bits, which `--bits` says.
    Gptq,
    /// GGUF for llama.cpp, from a folder of safetensors: Q8_0, Q6_K, Q4_K, Q4_0.
    Gguf,
}

/// `lapidary inspect`.
#[derive(Debug, Args)]
pub struct Inspect {
    /// The model and how to compile it.
    #[command(flatten)]
    pub model: Model,
    /// Stage to show.
    #[arg(long, value_enum, default_value_t = Stage::Imported)]
    pub at: Stage,
    /// How to show it.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
    /// Show which rewrites fired, and which could have but did not, and why.
    #[arg(long)]
    pub rules: bool,
}

/// Stages of compilation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Stage {
    /// As read from the file.
    Imported,
    /// After `--size`, `--bits`, `--quantize` or `--recipe`.
    Compressed,
    /// After rewriting.
    Optimized,
    /// The kernels and the host program.
    Kernels,
}

/// Output formats of `inspect`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// The text form.
    Text,
    /// Graphviz.
    Dot,
    /// JSON.
    Json,
}

/// `lapidary bench`.
#[derive(Debug, Args)]
pub struct Bench {
    /// The model and how to compile it.
    #[command(flatten)]
    pub model: Model,
    /// Seconds to measure for, after warming up.
    #[arg(long, default_value_t = 3.0)]
    pub seconds: f64,
    /// Print one JSON line with every latency, for benchmark harnesses.
    #[arg(long)]
    pub latencies_json: bool,
}

/// A number for each channel.
fn parse_channels(text: &str) -> Result<[f32; 3], String> {
    let numbers = text.split(',').map(|n| n.trim().parse::<f32>().ok());
    let numbers: Option<Vec<f32>> = numbers.collect();
    numbers
        .filter(|n| n.iter().all(|v| v.is_finite()))
        .and_then(|n| n.try_into().ok())
        .ok_or_else(|| format!("`{text}` is not three numbers like 0.5,0.5,0.5"))
}

/// A number above 0 for each channel.
fn parse_deviations(text: &str) -> Result<[f32; 3], String> {
    let numbers = parse_channels(text)?;
    match numbers.iter().all(|&v| v > 0.0) {
        true => Ok(numbers),
        false => Err(format!("`{text}` has a number that is not above 0")),
    }
}

/// Settings for codes of values by their names.
fn presets() -> impl TypedValueParser<Value = Activations> {
    let names = PRESETS
        .iter()
        .map(|p| PossibleValue::new(p.name).help(p.help));
    PossibleValuesParser::new(names)
        .try_map(|name| Activations::preset(&name).ok_or("there is no such preset"))
}

/// Bits of keys and values, or of each; halves of both or of none.
fn parse_kv(text: &str) -> Result<[i64; 2], String> {
    let bits: Option<Vec<i64>> = text
        .split(',')
        .map(|n| n.trim().parse().ok().filter(|n| [2, 4, 8, 16].contains(n)))
        .collect();
    match bits.as_deref() {
        Some(&[both]) => Ok([both, both]),
        Some(&[keys, values]) if (keys == 16) == (values == 16) => Ok([keys, values]),
        _ => Err(format!(
            "`{text}` is not 16, 8, 4 or 2, or two of the last three like 4,2"
        )),
    }
}

fn parse_positive(text: &str) -> Result<f64, String> {
    let number = text
        .parse::<f64>()
        .ok()
        .filter(|n| n.is_finite() && *n > 0.0);
    number.ok_or_else(|| format!("`{text}` is no positive number"))
}

/// A time as users write it, in nanoseconds.
fn parse_time(text: &str) -> Result<f64, String> {
    const UNITS: [(&str, f64); 4] = [("ns", 1.0), ("us", 1e3), ("ms", 1e6), ("s", 1e9)];
    let unit = UNITS
        .iter()
        .find_map(|(u, n)| Some((text.strip_suffix(u)?, n)));
    let time = unit.and_then(|(digits, unit)| Some(parse_positive(digits.trim()).ok()? * unit));
    time.ok_or_else(|| format!("`{text}` is no time: write one like `5ms` or `800us`"))
}

fn parse_bits(text: &str) -> Result<Budget, String> {
    parse_positive(text).map(Budget::Bits)
}

/// `lapidary tune`.
#[derive(Debug, Args)]
pub struct Tune {
    /// Where the profile goes (default: the user's cache folder, where the other commands look for it).
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Most threads to measure with (default: all cores).
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Print a machine-readable report to standard output.
    #[arg(long)]
    pub json: bool,
}

/// `lapidary eval`.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("data").required(true).args(["tokens", "text"])))]
pub struct Eval {
    /// The model and how to compile it.
    #[command(flatten)]
    pub model: Model,
    /// Tokens to predict: `.npy`, or little-endian u16 numbers (u32 where the name ends in `.u32.bin`).
    #[arg(long, value_name = "FILE")]
    pub tokens: Option<PathBuf>,
    /// A text to predict, encoded by the checkpoint's `tokenizer.json`.
    #[arg(long, value_name = "FILE")]
    pub text: Option<PathBuf>,
    /// Encode each line of the text on its own, with its newline.
    #[arg(long, requires = "text")]
    pub lines: bool,
    /// Another `tokenizer.json`.
    #[arg(long, value_name = "FILE", requires = "text")]
    pub tokenizer: Option<PathBuf>,
    /// The original: how far the model's predictions are from those of this one.
    #[arg(long, value_name = "MODEL")]
    pub against: Option<PathBuf>,
    /// Tokens in each window (default: what the model is made for, else 256).
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..).map(|n| n as usize))]
    pub seq: Option<usize>,
    /// Only so many windows, the first ones.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..).map(|n| n as usize))]
    pub windows: Option<usize>,
    /// Keep at most N tokens in the caches of keys and values, or a share of a window as 25%, as a program does that writes text.
    #[arg(long, value_name = "N")]
    pub kv_budget: Option<KvBudget>,
    /// Of `--kv-budget`: which tokens are kept: ems (default), h2o or recent.
    #[arg(long, value_name = "POLICY", requires = "kv_budget")]
    pub kv_evict: Option<Policy>,
    /// Of `--adjustable`: use as many parts of the weights as make up so many bytes, as a program does that has no room for more.
    #[arg(long, value_name = "SIZE", value_parser = parse_memory, requires = "adjustable")]
    pub weights: Option<u64>,
}

fn parse_memory(text: &str) -> Result<u64, String> {
    parse_bytes(text).ok_or_else(|| format!("`{text}` is no number of bytes like 12MB"))
}

fn parse_dim(text: &str) -> Result<(String, i64), String> {
    let (name, value) = text
        .split_once('=')
        .ok_or("expected NAME=N, like `batch=1`")?;
    let value = value
        .parse()
        .ok()
        .filter(|&v: &i64| v >= 0)
        .ok_or_else(|| format!("`{value}` is not a dimension"))?;
    Ok((name.to_owned(), value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        for (text, want) in [
            ("5ms", 5e6),
            ("800 us", 8e5),
            ("1.5s", 1.5e9),
            ("40ns", 40.0),
        ] {
            assert_eq!(parse_time(text), Ok(want), "{text}");
        }
        for bad in ["5", "ms", "-1ms", "0ms", "5 minutes", "nans", "infs"] {
            assert!(parse_time(bad).is_err(), "{bad}");
        }
    }
}
