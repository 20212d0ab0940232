//! Folders of checkpoints with packed weights, that transformers and vLLM load: compressed-tensors and GPTQ.
//!
//! The reading side of the same layouts is [`crate::formats`]. Weights of layers may be packed, tables of tokens and the scores'
//! weights stay; `config.json` gets a `quantization_config`, and the other files (the tokenizer's) are copied.
//! Source: vllm-project/compressed-tensors, `compressors/pack_quantized`; AutoGPTQ, `qlinear_cuda_old.py`.

use super::grid::{Grid, transposed};
use super::{Aside, File, Kind, Target, Weight, Written, misfit};
use crate::checkpoint::config;
use crate::checkpoint::safetensors::{self, Stored};
use crate::checkpoint::weights::Weights;
use crate::error::Problem;
use crate::files::{Files, map};
use lapidary_ir::ElemType;
use lapidary_ir::encodings::int;
use lapidary_ir::sources::Sources;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// Bits of a word.
const WORD: usize = 32;

/// How names of other files end that belong to a checkpoint.
const BESIDE: &[&str] = &["json", "txt", "model", "jinja", "md"];

/// How weights are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// `pack-quantized`: every weight may have bits and groups of its own.
    CompressedTensors,
    /// All packed weights have the same ones.
    Gptq,
}

/// A checkpoint's folder.
pub struct Folder {
    style: Style,
    config: Map<String, Value>,
    weights: Weights,
    beside: Vec<File>,
    sources: Sources,
}

impl Folder {
    /// Maps a folder's files.
    pub fn read(path: &Path, style: Style) -> Result<Folder, Problem> {
        let wrong = |reason: String| Problem {
            place: "file".to_owned(),
            reason,
            remedy: Some("a folder is written from a checkpoint's folder".to_owned()),
        };
        if !path.is_dir() {
            return Err(wrong("is no folder".to_owned()));
        }
        let config = config::Config::read(path)?.into_settings();
        if config
            .get("quantization_config")
            .is_some_and(|q| !q.is_null())
        {
            return Err(wrong(
                "holds weights that are compressed already".to_owned(),
            ));
        }
        let files = Files::new(Some(path));
        let weights = Weights::read(path, &files)?;
        let mut beside = vec![];
        let unreadable = |e: std::io::Error| wrong(format!("cannot be listed: {e}"));
        for entry in std::fs::read_dir(path).map_err(unreadable)? {
            let entry = entry.map_err(unreadable)?.path();
            let name = entry
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            let belongs = entry
                .extension()
                .is_some_and(|e| BESIDE.iter().any(|b| e == *b));
            if belongs && entry.is_file() && name != config::FILE && !name.ends_with(".index.json")
            {
                let pieces = vec![map(&entry).map_err(wrong)?];
                beside.push(File { name, pieces });
            }
        }
        beside.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Folder {
            style,
            config,
            weights,
            beside,
            sources: files.into_sources(),
        })
    }
}

/// True for the weight of a numbered layer.
fn in_layer(name: &str) -> bool {
    name.ends_with(".weight") && name.split('.').any(|part| part.parse::<usize>().is_ok())
}

impl Target for Folder {
    fn grids(&self, name: &str, [outputs, inputs]: [usize; 2], by_columns: bool) -> Vec<Kind> {
        let stored = self.weights.stored().find(|(n, _)| *n == name);
        let matrix = stored.is_some_and(|(_, s)| s.shape == [outputs, inputs]);
        // Words hold whole numbers of codes in both directions.
        if !matrix
            || by_columns
            || !in_layer(name)
            || !outputs.is_multiple_of(8)
            || !inputs.is_multiple_of(32)
        {
            return vec![];
        }
        let kind = |bits, group, symmetric| Kind {
            bits,
            group,
            symmetric,
        };
        let groups: Vec<usize> = [32, 64, 128]
            .into_iter()
            .filter(|g| inputs % g == 0)
            .collect();
        match self.style {
            Style::CompressedTensors => {
                let mut kinds = vec![kind(8, 0, true)];
                kinds.extend(
                    groups
                        .iter()
                        .flat_map(|&g| [kind(4, g, true), kind(4, g, false)]),
                );
                kinds
            }
            Style::Gptq => {
                let all = [8, 4, 2]
                    .into_iter()
                    .flat_map(|b| groups.iter().map(move |&g| kind(b, g, true)));
                all.collect()
            }
        }
    }

    fn write(&self, weights: &[Weight], aside: &Aside) -> Result<Written, Problem> {
        let weights: BTreeMap<&str, &Weight> = weights.iter().map(|w| (w.name, w)).collect();
        let mut kinds: BTreeMap<&str, Packed> = BTreeMap::new();
        let mut tensors: BTreeMap<String, Stored> = BTreeMap::new();
        for (name, stored) in self.weights.stored() {
            let Some(w) = weights.get(name) else {
                tensors.insert(name.to_owned(), stored.clone());
                continue;
            };
            // Codes in memory are bytes: one weight's at a time.
            let grid = self.grid(w)?;
            let parts = match self.style {
                Style::CompressedTensors => packed_parts(&grid),
                Style::Gptq => gptq_parts(&grid),
            };
            let module = name.strip_suffix(".weight").unwrap_or(name);
            for (part, stored) in parts {
                tensors.insert(format!("{module}.{part}"), stored.aside(aside)?);
            }
            kinds.insert(module, Packed::of(&grid));
            self.sources.release(stored.bytes.len());
        }
        let mut config = self.config.clone();
        let settings = match self.style {
            Style::CompressedTensors => packed_settings(&kinds),
            Style::Gptq => gptq_settings(&kinds)?,
        };
        config.insert("quantization_config".to_owned(), settings);
        let text = serde_json::to_vec_pretty(&config).unwrap_or_default();
        let mut files = vec![
            File {
                name: config::FILE.to_owned(),
                pieces: vec![text.into()],
            },
            File {
                name: crate::checkpoint::weights::SINGLE.to_owned(),
                pieces: safetensors::write(&tensors),
            },
        ];
        files.extend(self.beside.iter().cloned());
        Ok(Written {
            files,
            notes: vec![],
            sources: self.sources.clone(),
        })
    }
}

/// What the settings say of a packed weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Packed {
    bits: u32,
    /// Weights that share a scale; 0 for the whole row.
    group: usize,
    symmetric: bool,
}

impl Packed {
    fn of(grid: &Grid) -> Packed {
        Packed {
            bits: grid.bits,
            group: if grid.groups == 1 { 0 } else { grid.group() },
            symmetric: is_symmetric(grid),
        }
    }
}

/// The bytes of a tensor's part before they are put aside.
struct Part {
    elem: ElemType,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Part {
    fn aside(self, aside: &Aside) -> Result<Stored, Problem> {
        Ok(Stored {
            elem: Ok(self.elem),
            shape: self.shape,
            bytes: aside(self.bytes)?,
        })
    }
}

impl Folder {
    /// The grid of a weight that the style has a place for.
    fn grid(&self, w: &Weight) -> Result<Grid, Problem> {
        let grid = Grid::of(w.term).filter(|g| !w.by_columns && in_layer(w.name) && self.holds(g));
        grid.ok_or_else(|| {
            let (format, holds) = match self.style {
                Style::CompressedTensors => (
                    "`pack-quantized`",
                    "codes of 4 or 8 bits, with zero points that are codes",
                ),
                Style::Gptq => ("`gptq`", "codes of 2, 4 or 8 bits on symmetric grids"),
            };
            misfit(w.name, w.term, format, holds)
        })
    }

    /// Whether the style has a place for a grid.
    fn holds(&self, grid: &Grid) -> bool {
        let whole = grid.rows.is_multiple_of(8) && grid.columns.is_multiple_of(32);
        let half = 1u32 << (grid.bits - 1);
        whole
            && match self.style {
                Style::CompressedTensors => matches!(grid.bits, 4 | 8),
                Style::Gptq => {
                    matches!(grid.bits, 2 | 4 | 8)
                        && grid.half_scales()
                        && grid.shared_zero().map(u32::from) == Some(half)
                }
            }
    }
}

fn part(elem: ElemType, shape: &[usize], bytes: Vec<u8>) -> Part {
    Part {
        elem,
        shape: shape.to_vec(),
        bytes,
    }
}

/// Codes of rows one after the other: words, as rows are whole numbers of them.
fn words(codes: &[u8], bits: u32) -> Vec<u8> {
    int::pack(codes.iter().copied(), bits)
}

/// Words `[rows, n]` as `[n, rows]`.
fn words_down(bytes: &[u8], n: usize) -> Vec<u8> {
    let words: Vec<[u8; 4]> = bytes
        .chunks_exact(4)
        .map(|w| [w[0], w[1], w[2], w[3]])
        .collect();
    transposed(&words, n).concat()
}

fn scales(grid: &Grid) -> (ElemType, Vec<u8>) {
    let (bytes, halves) = grid.scale_bytes();
    (if halves { ElemType::F16 } else { ElemType::F32 }, bytes)
}

fn packed_parts(grid: &Grid) -> Vec<(&'static str, Part)> {
    let (rows, per) = (grid.rows, WORD / grid.bits as usize);
    let (elem, scales) = scales(grid);
    let shape = [rows as i64, grid.columns as i64]
        .map(i64::to_le_bytes)
        .concat();
    let mut parts = vec![
        (
            "weight_packed",
            part(
                ElemType::I32,
                &[rows, grid.columns / per],
                words(&grid.codes, grid.bits),
            ),
        ),
        ("weight_scale", part(elem, &[rows, grid.groups], scales)),
        ("weight_shape", part(ElemType::I64, &[2], shape)),
    ];
    if !is_symmetric(grid) {
        // Packed down the rows.
        let along = words(&transposed(&grid.zeros, grid.groups), grid.bits);
        let down = words_down(&along, rows / per);
        parts.push((
            "weight_zero_point",
            part(ElemType::I32, &[rows / per, grid.groups], down),
        ));
    }
    parts
}

fn is_symmetric(grid: &Grid) -> bool {
    grid.shared_zero().map(u32::from) == Some(1 << (grid.bits - 1))
}

fn packed_settings(packed: &BTreeMap<&str, Packed>) -> Value {
    let mut kinds: BTreeMap<Packed, Vec<&str>> = BTreeMap::new();
    for (module, &kind) in packed {
        kinds.entry(kind).or_default().push(module);
    }
    let groups = kinds.into_iter().enumerate().map(|(i, (Packed { bits, group, symmetric }, targets))| {
        let strategy = if group == 0 { "channel" } else { "group" };
        let size = if group == 0 { Value::Null } else { json!(group) };
        let weights = json!({
            "num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": strategy, "group_size": size,
            "dynamic": false,
        });
        let settings = json!({
            "targets": targets, "weights": weights, "input_activations": null, "output_activations": null,
        });
        (format!("group_{i}"), settings)
    });
    let groups: Map<String, Value> = groups.collect();
    json!({
        "quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed",
        "config_groups": groups, "ignore": [],
    })
}

fn gptq_parts(grid: &Grid) -> Vec<(&'static str, Part)> {
    let (rows, columns, per) = (grid.rows, grid.columns, WORD / grid.bits as usize);
    let (elem, _) = scales(grid);
    let turned = transposed(&grid.scales, grid.groups);
    let halves = turned
        .iter()
        .flat_map(|&s| half::f16::from_f32(s).to_le_bytes())
        .collect();
    // Zero points are stored less one.
    let zeros: Vec<u8> = transposed(&grid.zeros, grid.groups)
        .iter()
        .map(|z| z - 1)
        .collect();
    let order = (0..columns)
        .flat_map(|i| ((i / grid.group()) as i32).to_le_bytes())
        .collect();
    let down = words_down(&words(&grid.codes, grid.bits), columns / per);
    vec![
        ("qweight", part(ElemType::I32, &[columns / per, rows], down)),
        (
            "qzeros",
            part(
                ElemType::I32,
                &[grid.groups, rows / per],
                words(&zeros, grid.bits),
            ),
        ),
        ("scales", part(elem, &[grid.groups, rows], halves)),
        ("g_idx", part(ElemType::I32, &[columns], order)),
    ]
}

fn gptq_settings(packed: &BTreeMap<&str, Packed>) -> Result<Value, Problem> {
    let mut kinds = packed.iter();
    let Some((_, &Packed { bits, group, .. })) = kinds.next() else {
        return Ok(Value::Null);
    };
    if let Some((module, other)) = kinds.find(|(_, k)| (k.bits, k.group) != (bits, group)) {
        return Err(Problem {
            place: format!("weight `{module}.weight`"),
            reason: format!(
                "has {} bits in groups of {}, others {bits} in groups of {group}",
                other.bits, other.group
            ),
            remedy: Some("`gptq` holds one kind for all weights: say it in a recipe, or write compressed-tensors".to_owned()),
        });
    }
    Ok(json!({
        "quant_method": "gptq", "bits": bits, "group_size": if group == 0 { -1 } else { group as i64 }, "sym": true, "desc_act": false,
        "checkpoint_format": "gptq",
    }))
}
