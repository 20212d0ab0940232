//! Products with weights that stay packed: matrices of 4-bit or 8-bit codes with a scale for each group of columns, laid out
//! for the lanes that read them.
//!
//! `W[o, i] = s[o, i / g] * (q[o, i] - z)`, where `z` is the middle of the codes' range (8 or 128). Source of the term: the
//! symmetric grouped integers of GPTQ (Frantar et al. 2022) and AWQ (Lin et al. 2023).
//!
//! **Layout.** Columns come in *runs*, of which every lane of a warp has 16 bytes of codes, so that a warp reads 512
//! consecutive bytes. A run has [`Weights::chunks`] chunks of 128 columns; of a chunk lane `l` has columns `4 l .. 4 l + 4`,
//! so that the warp also reads the vector in consecutive 16 bytes a lane. Scales are `[o][run][part][chunk]`: those of all
//! chunks of a lane's part of a chunk are beside each other.
//!
//! **Kernels.** A whole kernel is canonical here, not a loop: it says in its first statements what it computes, and a backend that
//! has an entry of its own for it recognises it by writing it once more. Any other translates it as it stands.

mod batch;
mod gemv;
mod halves;
mod two_of_four;

pub use batch::{Batch, GROUP, STEP, TILE_OUTPUTS, WARP_OUTPUTS};
pub use gemv::{Gemv, MOST_BATCH, WARPS};
pub use halves::{DEPTH, Halves};
pub use two_of_four::{PAIR_OUTPUTS, TwoOfFour};

use super::build::KernelBuilder;
use super::{Extent, Kernel, Literal, Op, Var};
use crate::ElemType;
use crate::backend::Error;

/// Columns of a chunk: four for each lane of a warp.
pub const CHUNK: u32 = 128;

/// Lanes of a warp.
const LANES: u32 = 32;

/// Tiles of so many of `m` rows, as an axis of a grid; where `m` is not known it becomes a parameter, the last one.
fn tiles(b: &mut KernelBuilder, m: Option<u32>, tile: u32) -> Extent {
    match m {
        Some(m) => Extent::Const(u64::from(m.div_ceil(tile))),
        None => Extent::Param {
            param: b.size_param("m"),
            divisor: tile,
        },
    }
}

/// `m`, or the parameter of this number.
fn count(b: &mut KernelBuilder, m: Option<u32>, param: u32) -> Var {
    match m {
        Some(m) => b.index(i64::from(m)),
        None => b.size(param),
    }
}

/// The first numbers in a kernel's body: what it says that it computes.
fn facts<const N: usize>(kernel: &Kernel) -> Option<[u32; N]> {
    let numbers = kernel.body.iter().filter_map(|s| match s.op {
        Op::Const(Literal::Int(v)) => u32::try_from(v).ok(),
        _ => None,
    });
    numbers.take(N).collect::<Vec<u32>>().try_into().ok()
}

/// Bits of a code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bits {
    /// Codes 0 to 15, zero at 8.
    Four,
    /// Codes 0 to 255, zero at 128.
    Eight,
}

impl Bits {
    /// How many.
    pub fn count(self) -> u32 {
        match self {
            Bits::Four => 4,
            Bits::Eight => 8,
        }
    }

    /// The code of zero.
    pub fn zero(self) -> u8 {
        1 << (self.count() - 1)
    }
}

/// A matrix of packed weights, without the weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Weights {
    name: String,
    rows: u32,
    columns: u32,
    bits: Bits,
    group: u32,
    wide: bool,
}

impl Weights {
    /// Of `rows` outputs and `columns` inputs, with a scale of `f16` for each `group` columns of a row; `name` is the kernel's.
    ///
    /// # Errors
    /// The group is not of 32, 64 or 128 columns, or does not divide the columns; there are no rows or no columns; there
    /// are more than 2^31 bytes of codes, which an entry's offsets do not reach.
    pub fn new(
        name: &str,
        rows: u32,
        columns: u32,
        bits: Bits,
        group: u32,
    ) -> Result<Weights, Error> {
        let weights = Weights {
            name: name.to_owned(),
            rows,
            columns,
            bits,
            group,
            wide: false,
        };
        if ![32, 64, 128].contains(&group) {
            return Err(weights.error(format!(
                "groups of {group} columns; they have 32, 64 or 128"
            )));
        }
        if rows == 0 || columns == 0 || !columns.is_multiple_of(group) {
            let what = format!("{rows} rows of {columns} columns in groups of {group}");
            return Err(weights.error(what));
        }
        match weights.code_bytes() <= 1 << 31 {
            true => Ok(weights),
            false => Err(weights.error("more than 2^31 bytes of codes".to_owned())),
        }
    }

    /// The same with scales of `f32`.
    pub fn with_wide_scales(self, wide: bool) -> Weights {
        Weights { wide, ..self }
    }

    /// The same for a kernel of another name.
    pub fn named(&self, name: &str) -> Weights {
        Weights {
            name: name.to_owned(),
            ..self.clone()
        }
    }

    /// Name of the kernel.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Outputs.
    pub fn rows(&self) -> u32 {
        self.rows
    }

    /// Inputs.
    pub fn columns(&self) -> u32 {
        self.columns
    }

    /// Bits of a code.
    pub fn bits(&self) -> Bits {
        self.bits
    }

    /// Columns that share a scale.
    pub fn group(&self) -> u32 {
        self.group
    }

    /// Type of the scales: `f16` or `f32`.
    pub fn scale(&self) -> ElemType {
        match self.wide {
            true => ElemType::F32,
            false => ElemType::F16,
        }
    }

    /// That something of these weights has no kernel.
    pub fn error(&self, what: String) -> Error {
        Error::Unsupported {
            kernel: self.name.clone(),
            what,
        }
    }

    /// Chunks of a run.
    pub fn chunks(&self) -> u32 {
        32 / self.bits.count()
    }

    /// Runs of a row; the last may be filled with zeros.
    pub fn runs(&self) -> u32 {
        self.columns.div_ceil(self.run())
    }

    /// Columns of a run.
    pub fn run(&self) -> u32 {
        self.chunks() * CHUNK
    }

    /// Parts of a chunk that have scales of their own.
    pub fn parts(&self) -> u32 {
        CHUNK / self.group
    }

    /// Bytes of the codes.
    pub fn code_bytes(&self) -> u64 {
        u64::from(self.rows) * u64::from(self.runs()) * 512
    }

    /// Bytes of the scales.
    pub fn scale_bytes(&self) -> u64 {
        u64::from(self.rows)
            * u64::from(self.runs())
            * u64::from(self.parts() * self.chunks())
            * self.scale().size_bytes() as u64
    }

    /// Bytes of the scales of a part of a run.
    pub fn part_bytes(&self) -> u32 {
        self.chunks() * self.scale().size_bytes() as u32
    }

    /// Whether these are the matrix' codes, `[rows][columns]`, a code a byte.
    ///
    /// # Errors
    /// Their number is not that of the matrix, or a code has more bits.
    pub fn check_codes(&self, codes: &[u8]) -> Result<(), Error> {
        let columns = self.columns as usize;
        if codes.len() != self.rows as usize * columns {
            return Err(self.error(format!("{} codes for the matrix", codes.len())));
        }
        if let Some(code) = codes
            .iter()
            .find(|&&c| u32::from(c) >> self.bits.count() != 0)
        {
            return Err(self.error(format!("code {code} in {} bits", self.bits.count())));
        }
        Ok(())
    }

    /// Whether these are the matrix' scales, `[rows][columns / group]`.
    ///
    /// # Errors
    /// Their number is not that of the matrix' groups, or one is no number of the scales' type.
    pub fn check_scales(&self, scales: &[f32]) -> Result<(), Error> {
        let groups = (self.columns / self.group) as usize;
        if scales.len() != self.rows as usize * groups {
            return Err(self.error(format!("{} scales for the matrix", scales.len())));
        }
        let lost = |s: f32| !self.wide && half::f16::from_f32(s).to_f32() != s;
        match scales.iter().find(|&&s| lost(s)) {
            Some(scale) => Err(self.error(format!("scale {scale} as f16"))),
            None => Ok(()),
        }
    }

    /// Codes as the entries read them, from `[rows][columns]`, a code a byte.
    ///
    /// # Errors
    /// As [`Weights::check_codes`].
    pub fn pack_codes(&self, codes: &[u8]) -> Result<Vec<u8>, Error> {
        self.check_codes(codes)?;
        let columns = self.columns as usize;
        let mut packed = Vec::with_capacity(self.code_bytes() as usize);
        for row in codes.chunks_exact(columns) {
            for run in 0..self.runs() {
                for lane in 0..LANES {
                    let mut bits = 0u128;
                    for nth in 0..4 * self.chunks() {
                        let column = run * self.run() + nth / 4 * CHUNK + 4 * lane + nth % 4;
                        let code = row.get(column as usize);
                        let code = code.copied().unwrap_or(self.bits.zero());
                        bits |= u128::from(code) << (nth * self.bits.count());
                    }
                    packed.extend(bits.to_le_bytes());
                }
            }
        }
        Ok(packed)
    }

    /// Scales as the entries read them, from `[rows][columns / group]`.
    ///
    /// # Errors
    /// As [`Weights::check_scales`].
    pub fn pack_scales(&self, scales: &[f32]) -> Result<Vec<u8>, Error> {
        self.check_scales(scales)?;
        let groups = (self.columns / self.group) as usize;
        let mut packed = Vec::with_capacity(self.scale_bytes() as usize);
        for row in scales.chunks_exact(groups) {
            for run in 0..self.runs() {
                for part in 0..self.parts() {
                    for chunk in 0..self.chunks() {
                        let group = (run * self.chunks() + chunk) * self.parts() + part;
                        // Where there are no columns there is no scale.
                        let scale = row.get(group as usize).copied().unwrap_or(0.0);
                        self.put_scale(&mut packed, scale);
                    }
                }
            }
        }
        Ok(packed)
    }

    /// A scale's bytes.
    fn put_scale(&self, to: &mut Vec<u8>, scale: f32) {
        match self.wide {
            true => to.extend(scale.to_le_bytes()),
            false => to.extend(half::f16::from_f32(scale).to_le_bytes()),
        }
    }
}
