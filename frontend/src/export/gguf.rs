//! GGUF files from checkpoints, that llama.cpp loads: the reading side is [`crate::gguf`].
//!
//! ```text
//! 8-bit codes, symmetric, in groups of 32  =>  Q8_0        6 bits, any  =>  Q6_K, re-encoded
//! 4-bit codes, symmetric, in groups of 32  =>  Q4_0        4 bits, with zero points, groups of 32  =>  Q4_K, re-encoded,
//!                                                          or Q4_1 where rows are no multiples of 256
//! ```
//! Scales of K types are codes themselves: the file gets the nearest ones, and codes are chosen once more from the original
//! weights; the error that this gives is said. What is not compressed keeps its type; vectors become F32. The
//! vocabulary is that of `tokenizer.json`, where GGUF files have such ones; else `tokenizer.ggml.model` is `none`.
//! Source: ggml-org/ggml, `docs/gguf.md`; ggml-org/llama.cpp, `ggml-common.h`.

use super::{Aside, File, Grid, Kind, Target, Weight, Written, misfit};
use crate::arch::rope;
use crate::checkpoint::config::Config;
use crate::checkpoint::safetensors::Stored;
use crate::checkpoint::weights::Weights;
use crate::error::Problem;
use crate::files::Files;
use crate::gguf::blocks::{self, BlockType};
use crate::gguf::file::{self, Stored as Blocks, Written as Value};
use crate::gguf::names::Network;
use crate::gguf::network::{self, Place};
use crate::gguf::vocabulary::Vocabulary;
use half::f16;
use lapidary_ir::sources::Sources;
use lapidary_ir::{ElemType, Tensor};
use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::path::Path;

/// Elements of a block of K types.
const SUPER: usize = 256;

/// A checkpoint, as a GGUF file calls it.
pub struct Model {
    config: Config,
    weights: Weights,
    network: &'static Network,
    places: BTreeMap<String, Place>,
    /// The vocabulary, or why the file has none.
    vocabulary: Result<Vocabulary, String>,
    sources: Sources,
}

impl Model {
    /// Maps a folder's files.
    pub fn read(path: &Path) -> Result<Model, Problem> {
        if !path.is_dir() {
            return Err(Problem {
                place: "file".to_owned(),
                reason: "is no folder".to_owned(),
                remedy: Some("a GGUF file is written from a checkpoint's folder".to_owned()),
            });
        }
        let config = Config::read(path)?;
        if config.has("quantization_config") {
            return Err(config.problem(
                "quantization_config",
                "means that weights are compressed already",
            ));
        }
        let files = Files::new(Some(path));
        let weights = Weights::read(path, &files)?;
        let network = network::of_checkpoint(&config)?;
        let mut places = BTreeMap::new();
        for (name, stored) in weights.stored() {
            let place = network::place(network, &config, name, &stored.shape)?;
            places.extend(place.map(|p| (name.to_owned(), p)));
        }
        Ok(Model {
            network,
            vocabulary: vocabulary(path, &config)?,
            config,
            weights,
            places,
            sources: files.into_sources(),
        })
    }
}

impl Model {
    /// How positions turn: the base, and what divides its frequencies.
    fn rope(
        &self,
        meta: &mut BTreeMap<String, Value>,
        tensors: &mut BTreeMap<String, Blocks>,
    ) -> Result<(), Problem> {
        let (theta, factors) = rope::divided(&self.config)?;
        let arch = self.network.name;
        meta.insert(format!("{arch}.rope.freq_base"), Value::Float(theta as f32));
        let first = factors.first().copied().unwrap_or(1.0);
        if factors.iter().all(|&f| f == 1.0) {
            return Ok(());
        }
        if factors.iter().all(|&f| (f - first).abs() < 1e-9 * first) {
            meta.insert(
                format!("{arch}.rope.scaling.type"),
                Value::Text("linear".to_owned()),
            );
            meta.insert(
                format!("{arch}.rope.scaling.factor"),
                Value::Float(first as f32),
            );
            return Ok(());
        }
        let values = Tensor::from_f64(ElemType::F32, [factors.len()], factors);
        let stored = Blocks {
            shape: values.shape().to_vec(),
            kind: named("F32"),
            bytes: values.to_bytes().unwrap_or_default().into(),
        };
        tensors.insert(network::ROPE_FACTORS.to_owned(), stored);
        Ok(())
    }
}

impl Target for Model {
    fn grids(&self, name: &str, shape: [usize; 2], by_columns: bool) -> Vec<Kind> {
        let place = self.places.get(name);
        // Experts of a layer are one tensor, of one type.
        if place.is_none_or(|p| p.expert.is_some() || p.router) {
            return vec![];
        }
        let matrix = self
            .weights
            .stored()
            .any(|(n, s)| n == name && s.shape == shape);
        if !matrix || by_columns || !shape[1].is_multiple_of(32) {
            return vec![];
        }
        let kind = |bits, symmetric| Kind {
            bits,
            group: 32,
            symmetric,
        };
        let mut kinds = vec![kind(8, true), kind(4, true), kind(4, false)];
        if shape[1].is_multiple_of(SUPER) {
            kinds.push(kind(6, true));
        }
        kinds
    }

    fn write(&self, weights: &[Weight], aside: &Aside) -> Result<Written, Problem> {
        let compressed: BTreeMap<&str, &Weight> = weights.iter().map(|w| (w.name, w)).collect();
        let mut notes = vec![];
        let mut tensors: BTreeMap<String, Blocks> = BTreeMap::new();
        let mut stacks: BTreeMap<String, BTreeMap<usize, Blocks>> = BTreeMap::new();
        for (name, stored) in self.weights.stored() {
            let Some(place) = self.places.get(name) else {
                continue;
            };
            let out = match compressed.get(name) {
                Some(w) => encoded(w, stored, place, &mut notes, aside)?,
                None => plain(name, stored, place)?,
            };
            self.sources.release(stored.bytes.len());
            match place.expert {
                None => drop(tensors.insert(place.name.clone(), out)),
                Some(e) => drop(stacks.entry(place.name.clone()).or_default().insert(e, out)),
            }
        }
        for (name, stack) in stacks {
            let stacked = stacked(&name, stack, aside)?;
            tensors.insert(name, stacked);
        }
        let mut meta = network::metadata(&self.config, self.network)?;
        match &self.vocabulary {
            Ok(vocabulary) => meta.extend(vocabulary.metadata()),
            Err(why) => {
                notes.push(format!("the file has no vocabulary: {why}"));
                let none = Value::Text("none".to_owned());
                meta.insert("tokenizer.ggml.model".to_owned(), none);
            }
        }
        self.rope(&mut meta, &mut tensors)?;
        Ok(Written {
            files: vec![File {
                name: String::new(),
                pieces: file::write(&meta, &tensors),
            }],
            notes,
            sources: self.sources.clone(),
        })
    }
}

/// The vocabulary of a folder, for a model of these settings; or why a GGUF file cannot have it.
fn vocabulary(path: &Path, config: &Config) -> Result<Result<Vocabulary, String>, Problem> {
    let read = |name: &str| -> Result<Option<Json>, Problem> {
        let wrong = |reason: String| Problem {
            place: format!("file `{name}`"),
            reason,
            remedy: Some("use the file as transformers saves it, or take it away".to_owned()),
        };
        match std::fs::read(path.join(name)) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|e| wrong(e.to_string())),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(wrong(e.to_string())),
        }
    };
    let Some(tokenizer) = read("tokenizer.json")? else {
        return Ok(Err("the folder has no `tokenizer.json`".to_owned()));
    };
    let own = read("tokenizer_config.json")?.unwrap_or_default();
    let generation = read("generation_config.json")?.unwrap_or_default();
    let general = read("config.json")?.unwrap_or_default();
    let id = |name: &str| match &generation[name] {
        Json::Null => general[name].clone(),
        found => found.clone(),
    };
    let ids =
        serde_json::json!({"bos_token_id": id("bos_token_id"), "eos_token_id": id("eos_token_id")});
    let size = config.size("vocab_size")?;
    Ok(Vocabulary::of_checkpoint(&tokenizer, &own, &ids, size))
}

fn named(name: &str) -> &'static BlockType {
    let found = blocks::TYPES.iter().find(|t| t.name == name);
    found.expect("the list has this type")
}

/// A tensor that is not compressed: of its own type, vectors and routers as F32.
fn plain(name: &str, stored: &Stored, place: &Place) -> Result<Blocks, Problem> {
    let elem = stored
        .elem
        .as_ref()
        .ok()
        .filter(|e| e.is_float() && e.bits() >= 16);
    let elem = *elem.ok_or_else(|| Problem {
        place: format!("tensor `{name}`"),
        reason: "is not of a float type".to_owned(),
        remedy: None,
    })?;
    let wide = stored.shape.len() < 2 || place.router || elem == ElemType::F64;
    let (kind, bytes) = match elem {
        _ if wide => {
            let values = Tensor::from_bytes(elem, stored.shape.clone(), &stored.bytes)
                .and_then(|t| t.to_f64s());
            let values = values.unwrap_or_default();
            let below = if place.above_one { 1.0 } else { 0.0 };
            let whole = values.iter().map(|v| (v + below) as f32);
            let bytes: Vec<u8> = whole.flat_map(f32::to_le_bytes).collect();
            (named("F32"), bytes.into())
        }
        ElemType::F16 => (named("F16"), stored.bytes.clone()),
        ElemType::BF16 => (named("BF16"), stored.bytes.clone()),
        _ => (named("F32"), stored.bytes.clone()),
    };
    let rows = stored.shape[0];
    let row = bytes.len() / rows.max(1);
    Ok(Blocks {
        shape: stored.shape.clone(),
        kind,
        bytes: place.rows(bytes, row),
    })
}

/// A compressed weight as blocks.
fn encoded(
    w: &Weight,
    stored: &Stored,
    place: &Place,
    notes: &mut Vec<String>,
    aside: &Aside,
) -> Result<Blocks, Problem> {
    let wrong = || {
        let holds = "codes of 4 bits in groups of 32, of 8 bits if they are symmetric, and of 6 bits where rows are multiples of 256";
        misfit(w.name, w.term, "a GGUF file", holds)
    };
    let grid = Grid::of(w.term)
        .filter(|_| !w.by_columns && !place.router)
        .ok_or_else(wrong)?;
    let supers = grid.columns.is_multiple_of(SUPER);
    let by_32 = grid.group() == 32 && grid.half_scales();
    let original = || {
        let elem = stored.elem.as_ref().ok().copied()?;
        Tensor::from_bytes(elem, stored.shape.clone(), &stored.bytes)?.to_f64s()
    };
    let (kind, bytes) = match (grid.bits, grid.shared_zero()) {
        (8, Some(128)) if by_32 => (named("Q8_0"), q8_0(&grid)),
        (4, Some(8)) if by_32 => (named("Q4_0"), q4_0(&grid)),
        (4, _) if grid.group() == 32 && supers => {
            (named("Q4_K"), q4_k(&grid, &original().ok_or_else(wrong)?))
        }
        (4, _) if by_32 => (named("Q4_1"), q4_1(&grid)),
        (6, _) if supers => (named("Q6_K"), q6_k(&original().ok_or_else(wrong)?)),
        _ => return Err(wrong()),
    };
    let bytes = aside(bytes)?;
    if matches!(kind.name, "Q4_1" | "Q4_K" | "Q6_K") {
        let term = blocks::term(kind, &[(grid.rows, 1)], 0, grid.columns, &bytes);
        let error = relative_error(&original().ok_or_else(wrong)?, &term).ok_or_else(wrong)?;
        notes.push(format!(
            "`{}`: re-encoded as {}, error {error:.2e}",
            w.name, kind.name
        ));
    }
    let row = bytes.len() / grid.rows;
    Ok(Blocks {
        shape: vec![grid.rows, grid.columns],
        kind,
        bytes: place.rows(bytes, row),
    })
}

/// ‖W - Ŵ‖² / ‖W‖².
fn relative_error(original: &[f64], term: &lapidary_ir::encodings::Encoding) -> Option<f64> {
    let decoded = term.decode().ok()?;
    let pairs = original.iter().zip(decoded.floats()?);
    let (error, all) = pairs.fold((0.0, 0.0), |(e, a), (w, d)| {
        (e + (w - d).powi(2), a + w * w)
    });
    Some(error / all.max(f64::MIN_POSITIVE))
}

/// Blocks of a scale and 32 signed bytes.
fn q8_0(grid: &Grid) -> Vec<u8> {
    let block = |(codes, &scale): (&[u8], &f32)| {
        let scale = f16::from_f32(scale).to_le_bytes();
        scale
            .into_iter()
            .chain(codes.iter().map(|c| c.wrapping_sub(128)))
            .collect::<Vec<u8>>()
    };
    grid.codes
        .chunks(32)
        .zip(&grid.scales)
        .flat_map(block)
        .collect()
}

/// 16 bytes with the low halves of 32 codes, then the high ones.
fn halves(codes: &[u8]) -> impl Iterator<Item = u8> + '_ {
    let (low, high) = codes.split_at(codes.len() / 2);
    low.iter().zip(high).map(|(l, h)| l | h << 4)
}

/// Blocks of a scale and 32 codes.
fn q4_0(grid: &Grid) -> Vec<u8> {
    let block = |(codes, &scale): (&[u8], &f32)| {
        let scale = f16::from_f32(scale).to_le_bytes();
        scale.into_iter().chain(halves(codes)).collect::<Vec<u8>>()
    };
    grid.codes
        .chunks(32)
        .zip(&grid.scales)
        .flat_map(block)
        .collect()
}

/// Blocks of a scale, a minimum, which a zero point becomes, and 32 codes.
fn q4_1(grid: &Grid) -> Vec<u8> {
    let block = |((codes, &scale), &zero): ((&[u8], &f32), &u8)| {
        let min = f16::from_f32(-scale * f32::from(zero));
        let numbers = [f16::from_f32(scale).to_le_bytes(), min.to_le_bytes()].concat();
        numbers
            .into_iter()
            .chain(halves(codes))
            .collect::<Vec<u8>>()
    };
    let groups = grid.codes.chunks(32).zip(&grid.scales).zip(&grid.zeros);
    groups.flat_map(block).collect()
}

/// Blocks of eight groups, whose scales and minima are codes of six bits.
fn q4_k(grid: &Grid, original: &[f64]) -> Vec<u8> {
    let mut out = Vec::with_capacity(original.len() / SUPER * 144);
    for (b, weights) in original.chunks(SUPER).enumerate() {
        let group = |g: usize| {
            let scale = grid.scales[8 * b + g];
            (scale, scale * f32::from(grid.zeros[8 * b + g]))
        };
        let groups: Vec<(f32, f32)> = (0..8).map(group).collect();
        let most = |f: fn(&(f32, f32)) -> f32| groups.iter().map(f).fold(0.0, f32::max);
        // The largest is code 63.
        let [d, dmin] = [most(|g| g.0), most(|g| g.1)].map(|m| f16::from_f32(m / 63.0));
        let code = |v: f32, d: f16| match d.to_f32() {
            0.0 => 0,
            d => (v / d).round().clamp(0.0, 63.0) as u8,
        };
        let codes: Vec<(u8, u8)> = groups
            .iter()
            .map(|&(s, m)| (code(s, d), code(m, dmin)))
            .collect();
        out.extend(d.to_le_bytes());
        out.extend(dmin.to_le_bytes());
        let mut packed = [0u8; 12];
        for (g, &(s, m)) in codes.iter().enumerate() {
            if g < 4 {
                packed[g] |= s;
                packed[g + 4] |= m;
            } else {
                packed[g + 4] |= s & 15 | m << 4;
                packed[g - 4] |= s >> 4 << 6;
                packed[g] |= m >> 4 << 6;
            }
        }
        out.extend(packed);
        let nearest = |(g, part): (usize, &[f64])| {
            let (s, m) = codes[g];
            let scale = f64::from(d.to_f32() * f32::from(s));
            let min = f64::from(dmin.to_f32() * f32::from(m));
            let code = move |&w: &f64| match scale {
                0.0 => 0,
                s => ((w + min) / s).round().clamp(0.0, 15.0) as u8,
            };
            part.iter().map(code).collect::<Vec<u8>>()
        };
        let all: Vec<u8> = weights.chunks(32).enumerate().flat_map(nearest).collect();
        all.chunks(64).for_each(|pair| out.extend(halves(pair)));
    }
    out
}

/// Blocks of sixteen groups of six bits, whose scales are signed bytes.
fn q6_k(original: &[f64]) -> Vec<u8> {
    let mut out = Vec::with_capacity(original.len() / SUPER * 210);
    for weights in original.chunks(SUPER) {
        // The weight of largest magnitude of a group is code -32.
        let scale = |part: &[f64]| {
            let extreme = part
                .iter()
                .copied()
                .fold(0.0f64, |a, w| if w.abs() > a.abs() { w } else { a });
            extreme / -32.0
        };
        let scales: Vec<f64> = weights.chunks(16).map(scale).collect();
        let most = scales.iter().fold(0.0f64, |a, s| a.max(s.abs()));
        let d = f16::from_f64(most / 127.0);
        let code = |s: &f64| match d.to_f64() {
            0.0 => 0i8,
            d => (s / d).round().clamp(-127.0, 127.0) as i8,
        };
        let scales: Vec<i8> = scales.iter().map(code).collect();
        let nearest =
            |(i, &w): (usize, &f64)| match f64::from(d.to_f32() * f32::from(scales[i / 16])) {
                0.0 => 32,
                s => ((w / s).round().clamp(-32.0, 31.0) + 32.0) as u8,
            };
        let q: Vec<u8> = weights.iter().enumerate().map(nearest).collect();
        // Low bits: 64 bytes for each half, of elements 0 to 63 below those of 64 to 127.
        q.chunks(128)
            .for_each(|h| out.extend((0..64).map(|i| h[i] & 15 | (h[i + 64] & 15) << 4)));
        let high = |h: &[u8], i: usize| (0..4).fold(0, |b, j| b | h[32 * j + i] >> 4 << (2 * j));
        q.chunks(128)
            .for_each(|h| out.extend((0..32).map(|i| high(h, i))));
        out.extend(scales.iter().map(|&s| s as u8));
        out.extend(d.to_le_bytes());
    }
    out
}

/// The experts of a layer as one tensor.
fn stacked(name: &str, stack: BTreeMap<usize, Blocks>, aside: &Aside) -> Result<Blocks, Problem> {
    let all: Vec<Blocks> = stack.into_values().collect();
    let same = all
        .windows(2)
        .all(|w| w[0].kind.id == w[1].kind.id && w[0].shape == w[1].shape);
    let first = all.first().filter(|_| same).ok_or_else(|| Problem {
        place: format!("tensor `{name}`"),
        reason: "has experts of different types, but is one tensor".to_owned(),
        remedy: Some("give all experts of a layer the same choice in a recipe".to_owned()),
    })?;
    let bytes: Vec<u8> = all.iter().flat_map(|o| o.bytes.iter().copied()).collect();
    Ok(Blocks {
        shape: [&[all.len()], &first.shape[..]].concat(),
        kind: first.kind,
        bytes: aside(bytes)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use lapidary_ir::encodings::{affine::affine, dense, int};

    /// Every code and scale is what was packed, as far as its type has room for it.
    #[test]
    fn blocks_read_back() {
        let weights: Vec<f64> = (0..512)
            .map(|i| f64::from((i * 37 % 101) as u8) / 50.0 - 1.0)
            .collect();
        for (bits, zero, columns) in [
            (8, 128, 256),
            (4, 8, 64),
            (4, 6, 64),
            (4, 6, 256),
            (6, 32, 512),
        ] {
            let rows = 512 / columns;
            let top = f64::from((1u32 << bits) - 1);
            let scale = f16::from_f64(2.0 / top).to_f64();
            let codes = weights
                .iter()
                .map(|w| (w / scale + f64::from(zero)).round().clamp(0.0, top) as u8);
            let codes = int::int(
                ElemType::U8,
                bits,
                vec![rows, columns],
                int::pack(codes, bits).into(),
            );
            let scales = dense::from_tensor(&Tensor::from_f64(
                ElemType::F16,
                [rows, columns / 32],
                vec![scale; 16],
            ));
            let zero =
                dense::from_tensor(&Tensor::from_int(ElemType::U8, [1, 1], vec![zero.into()]));
            let term = affine(ElemType::F32, scales, codes, Some(zero));
            let stored = Stored {
                elem: Ok(ElemType::F32),
                shape: vec![rows, columns],
                bytes: weights
                    .iter()
                    .flat_map(|&w| (w as f32).to_le_bytes())
                    .collect::<Vec<u8>>()
                    .into(),
            };
            let w = Weight {
                name: "w",
                term: &term,
                by_columns: false,
            };
            let mut notes = vec![];
            let out =
                encoded(&w, &stored, &Place::of("w"), &mut notes, &|b| Ok(b.into())).expect("held");
            let back = blocks::term(out.kind, &[(rows, 1)], 0, columns, &out.bytes);
            let (found, chosen) = (
                relative_error(&weights, &back),
                relative_error(&weights, &term),
            );
            let (found, chosen) = (found.expect("numbers"), chosen.expect("numbers"));
            match out.kind.name {
                "Q8_0" | "Q4_0" => assert_eq!(found, chosen, "{}", out.kind.name),
                _ => assert!(
                    found < 1.1 * chosen && notes.len() == 1,
                    "{}: {found} {chosen}",
                    out.kind.name
                ),
            }
        }
    }
}
