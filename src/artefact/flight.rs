//! Language models as streams of instructions for an FPGA overlay (`lapidary-flight`): a folder with the engine as HLS C++, its test
//! bench, memory image and streams, and what a token is predicted to take.

use super::write_folder;
use crate::error::Error;
use lapidary_flight::compile::{Program, compile};
use lapidary_flight::emit::project;
use lapidary_flight::model::{Network, Quantization, Reference, Shape};
use lapidary_flight::timing::{Prediction, Rates, predict};
use lapidary_frontend::arch::LlamaSizes;
use lapidary_hls::parts::Part;
use lapidary_ir::{Module, ValueId};
use std::collections::HashMap;
use std::path::Path;

/// Steps that the test bench checks.
const STEPS: usize = 8;

/// What was written.
#[derive(Clone, Debug)]
pub struct Flight {
    /// The program.
    pub program: Program,
    /// What a token takes at the end of the shortest and of the longest texts.
    pub predicted: [(usize, Prediction); 2],
    /// What these times assume.
    pub assumptions: String,
}

/// Writes the project of a Llama, whose module holds its weights, into a folder that is not there yet.
///
/// # Errors
/// The network has sizes that the engine has not, or the folder cannot be written.
pub fn write_flight(
    path: &Path,
    (module, sizes, file): (&Module, &LlamaSizes, &str),
    how: &Quantization,
    part: &Part,
) -> Result<Flight, Error> {
    let failed = |reason: String| {
        Error::Usage {
        message: format!("{file}: {reason}"),
        help: "the overlay runs Llama-shaped decoders that its buffers hold, whose heads are a multiple of those of keys and whose sizes are \
               multiples of 16"
            .to_owned(),
    }
    };
    let network = network(module, sizes, how).map_err(failed)?;
    let program = compile(&network).map_err(failed)?;
    let tokens = text(&network, sizes).map_err(failed)?;
    let rates = Rates::flight(part.clock_mhz, part.memory_bandwidth);
    let time = |at: usize| {
        let bucket = program.streams.get(at).ok_or("there are no streams")?;
        predict(bucket, &rates, sizes.heads.query, sizes.heads.size)
    };
    let last = program.streams.len().saturating_sub(1);
    let predicted = [
        (0, time(0).map_err(failed)?),
        (last, time(last).map_err(failed)?),
    ];
    let mut files = project(&program, &tokens).map_err(failed)?;
    let flight = Flight {
        predicted,
        assumptions: rates.assumptions(),
        program,
    };
    files.push(("report.txt".to_owned(), flight.report(part).into_bytes()));
    let pieces: Vec<(String, Vec<Vec<u8>>)> = files
        .into_iter()
        .map(|(name, bytes)| (name, vec![bytes]))
        .collect();
    write_folder(path, &pieces, &|_| ())?;
    Ok(flight)
}

impl Flight {
    /// For people.
    pub fn report(&self, part: &Part) -> String {
        let (shared, each) = self.program.stream_bytes();
        let mut text = format!(
            "memory image: {} bytes\n{} streams of instructions, each for 16 positions: {shared} bytes; a stream for each length would take \
             {each}\n",
            self.program.image.len(),
            self.program.streams.len()
        );
        for (bucket, predicted) in &self.predicted {
            text += &format!(
                "\npredicted for `{}`, a token at positions {} to {}:\n{}",
                part.name,
                16 * bucket,
                16 * bucket + 15,
                predicted.text()
            );
        }
        text + &format!("\nassumed: {}\n", self.assumptions)
    }
}

/// The network of integers.
fn network(module: &Module, sizes: &LlamaSizes, how: &Quantization) -> Result<Network, String> {
    let values = (0..module.value_count() as u32).map(ValueId);
    let constants: HashMap<&str, ValueId> = values
        .filter(|&v| module.as_constant(v).is_some())
        .map(|v| (module.value(v).name.as_str(), v))
        .collect();
    let weight = |name: &str| -> Result<Vec<f32>, String> {
        let place = match name {
            "lm_head.weight" if sizes.vocabulary.tied => "model.embed_tokens.weight",
            name => name,
        };
        let v = constants
            .get(place)
            .ok_or_else(|| format!("no `{place}`"))?;
        let constant = module.as_constant(*v).ok_or("no constant")?;
        let tensor = constant.decode().map_err(|e| format!("`{place}`: {e}"))?;
        let values = tensor.to_f64s();
        module.sources.release(constant.stored_bytes());
        let values = values.ok_or_else(|| format!("`{place}` is not of numbers"))?;
        Ok(values.into_iter().map(|x| x as f32).collect())
    };
    let shape = Shape {
        hidden: sizes.hidden,
        inner: sizes.inner,
        layers: sizes.layers,
        heads: sizes.heads.query,
        kv_heads: sizes.heads.key,
        head_dim: sizes.heads.size,
        vocab: sizes.vocabulary.size,
        positions: sizes.positions,
        epsilon: sizes.epsilon,
        theta: sizes.theta,
    };
    Network::of(shape, how, &weight)
}

/// The beginning of the text that the network writes when it always takes the best token.
fn text(network: &Network, sizes: &LlamaSizes) -> Result<Vec<usize>, String> {
    let mut reference = Reference::new(network);
    let mut tokens = vec![sizes.begin.unwrap_or(0)];
    while tokens.len() < STEPS.min(sizes.positions) {
        let last = tokens.last().copied().unwrap_or_default();
        let scores = reference.step(last)?;
        let best = (0..scores.len()).rev().max_by_key(|&at| scores[at]);
        tokens.push(best.ok_or("there are no tokens")?);
    }
    Ok(tokens)
}
