//! Kernel IR to PTX, the assembly language of NVIDIA's GPUs, as text: nothing of CUDA is needed to write it.
//!
//! A kernel becomes an entry, a grid point a thread block. How it is written, from outside in: `function` is the frame
//! (parameters, coordinates, memory of a block), `control` statements and control flow; `tile` says how a tile lies in a block's threads; `elementwise` and
//! `shape` translate operations; `product` writes the contractions that are recognised, `codes` those of codes; `memory` loads and stores; `hazards` says where the threads of a block wait for each
//! other. `writer` writes instructions. [`packed`] is apart: it writes
//! entries for the kernels that are canonical as a whole.
//!
//! **Calling.** The parameters are those of the kernel in order, each 64 bits (an address in global memory, or a size),
//! then `workspace`, the address of memory that the blocks use, and `first`, the number of the first block. Blocks are
//! one-dimensional: block `b` of a launch is block `first + b` of the kernel's linearised grid, with [`Entry::threads`]
//! threads; it uses [`Entry::workspace_bytes`] bytes from `b * workspace_bytes` on.
//!
//! **Values that are uniform** in a block, such as loop bounds and conditions, are computed by every thread, so all control
//! flow is, and every thread reaches every barrier.
//!
//! What is absent: graph ops, encodings, the host program, a GPU.

mod codes;
mod control;
mod elementwise;
mod function;
mod hazards;
mod memory;
pub mod occupancy;
pub mod packed;
mod product;
mod shape;
mod tile;
mod writer;

use lapidary_ir::backend::{Code, Error};
use lapidary_ir::kernel::{Kernel, legalize};
use lapidary_ir::target::{FEATURES, Feature, Target};
use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt::Write;

/// What code is written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// What it has.
    pub feature: Feature,
    /// Version of PTX that knows it and all that is written (7.4: loads that pass the first cache by).
    pub version: (u32, u32),
}

/// Every GPU that code is written for, the newest last.
pub const GPUS: &[Gpu] = &[
    Gpu {
        feature: Feature::Sm80,
        version: (7, 4),
    },
    Gpu {
        feature: Feature::Sm86,
        version: (7, 4),
    },
    Gpu {
        feature: Feature::Sm89,
        version: (7, 8),
    },
    Gpu {
        feature: Feature::Sm90a,
        version: (8, 0),
    },
    Gpu {
        feature: Feature::Sm100,
        version: (8, 6),
    },
];

impl Gpu {
    /// As `ptxas` and `.target` name it.
    pub fn name(&self) -> &'static str {
        let row = FEATURES.iter().find(|f| f.feature == self.feature);
        row.map_or("", |f| f.name)
    }

    /// A text for this GPU: PTX before 8.5 has no name of its own for sparse products whose places are in order. Assemblers make
    /// the same machine code of both names, but for the newest GPUs, which have no other products.
    pub fn text<'t>(&self, text: &'t str) -> Cow<'t, str> {
        const ORDERED: &str = "mma.sp::ordered_metadata.";
        match self.version < (8, 5) && text.contains(ORDERED) {
            true => Cow::Owned(text.replace(ORDERED, "mma.sp.")),
            false => Cow::Borrowed(text),
        }
    }
}

/// A kernel as PTX.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Name of the entry.
    pub name: String,
    /// Its definition.
    pub text: String,
    /// Threads of a block.
    pub threads: u32,
    /// Shared memory of a block, which is declared.
    pub shared_bytes: u64,
    /// Global memory of a block that the caller gives.
    pub workspace_bytes: u64,
}

/// The GPU of a target description.
pub fn gpu(target: &Target) -> Result<&'static Gpu, Error> {
    let newest = GPUS.iter().rev();
    newest
        .clone()
        .find(|g| target.arch() == "nvptx64" && target.features.contains(&g.feature))
        .ok_or_else(|| Error::Target {
            triple: target.triple.clone(),
            message: format!(
                "PTX is written for {}",
                GPUS.iter().map(Gpu::name).collect::<Vec<_>>().join(", ")
            ),
        })
}

/// Writes a kernel; [`Gpu::text`] is its text for a GPU.
pub fn entry(kernel: &Kernel) -> Result<Entry, Error> {
    if let Some(entry) = packed::entry(kernel) {
        return Ok(entry);
    }
    function::write(&legalize::legalize(kernel.clone()))
}

/// What a module begins with.
pub fn header(gpu: &Gpu) -> String {
    let (major, minor) = gpu.version;
    format!(
        ".version {major}.{minor}\n.target {}\n.address_size 64\n",
        gpu.name()
    )
}

/// Writes all kernels as one module. An entry is the text at its offset, from the line that says what it uses on; kernels of
/// the same name get numbers.
pub fn compile(kernels: &[Kernel], target: &Target) -> Result<Code, Error> {
    let gpu = gpu(target)?;
    let mut text = header(gpu);
    let mut entries = vec![];
    let mut names = HashSet::new();
    for kernel in kernels {
        let mut entry = entry(kernel)?;
        let mut n = 2;
        let first = entry.name.clone();
        while !names.insert(entry.name.clone()) {
            let name = format!("{first}_{n}");
            entry.text = entry.text.replacen(
                &format!(".entry {}(", entry.name),
                &format!(".entry {name}("),
                1,
            );
            entry.name = name;
            n += 1;
        }
        text.push('\n');
        entries.push(text.len() as u64);
        // Writing to a string cannot fail.
        let _ = write!(text, "{}", gpu.text(&entry.text));
    }
    Ok(Code {
        bytes: text.into_bytes(),
        entries,
    })
}

/// The text of each kernel, for people.
pub fn listing(kernels: &[Kernel], target: &Target) -> Result<Vec<String>, Error> {
    let gpu = gpu(target)?;
    let one = |kernel: &Kernel| entry(kernel).map(|e| gpu.text(&e.text).into_owned());
    kernels.iter().map(one).collect()
}

/// An identifier of PTX.
fn entry_name(name: &str) -> String {
    let mut id: String = name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
        .collect();
    if !id.starts_with(|c: char| c.is_ascii_alphabetic()) {
        id.insert_str(0, "k_");
    }
    id
}
