//! Sparse weights times dense activations: `y[n][p] = act(clamp(sum over t, c of w[n][t][c] * x(t, p, c) + bias[n] + residual[n][p]))`.
//!
//! ```text
//! grid (band of rows n, image, tile of lanes p)
//!   for each block of the inner extent (tap t, channels c):  what fits the level-1 cache as a panel
//!     panel[c][lane] = x                        gathered: pixels of a window, or tokens transposed
//!     groups of rows with equally many entries, times the panel
//! ```
//! Lanes are pixels or tokens, so a weight that is zero costs nothing and one that is not costs one broadcast. Which
//! entries there are is known when the weights are packed; the loops hold no pattern.
//!
//! Of codes, four consecutive channels are one *unit*: an entry has four weights, and is left out where all of them are
//! zero; the panel has the four codes of a lane beside each other. Numbers are units of one. Sums of codes go to scratch
//! memory, from where 16 lanes at a time are turned and made results of.

mod kernel;
mod pack;

pub use pack::PackedWeights;

use super::Num;
use super::activation::Activation;
use super::codes::{Codes, Tail};
use lapidary_ir::kernel::sparse::Form;
use lapidary_ir::speeds::{Speeds, Work};

/// Where the lanes of a tap are, in units of the input.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Lanes {
    /// Lane `p` is at `p * stride`; there is one tap.
    Stride(i64),
    /// A table `[tile][tap][lane]` of `i32` says it; negative: the lane reads zero.
    Table,
}

/// Where a tensor's element of row (or channel) `c` and lane `p` of an image is:
/// `image * image_stride + first + c * row + p * lane`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Place {
    /// Elements between images.
    pub image: i64,
    /// The first element.
    pub first: i64,
    /// Elements between rows.
    pub row: i64,
    /// Elements between lanes.
    pub lane: i64,
}

/// What products of codes have besides.
#[derive(Clone, Debug, PartialEq)]
pub struct OfCodes {
    /// How they are multiplied.
    pub codes: Codes,
    /// What a result's codes go through.
    pub tail: Tail,
    /// Where the residual of each of its stages is.
    pub residuals: Vec<Place>,
}

/// Codes of a unit.
pub const FOUR: i64 = 4;

/// Extents and epilogue of a product with sparse weights.
#[derive(Clone, Debug, PartialEq)]
pub struct Sparse {
    /// Rows of the weights (output channels).
    pub n: i64,
    /// Taps of the window.
    pub taps: i64,
    /// Units of channels, of each tap.
    pub channels: i64,
    /// Independent inputs.
    pub images: Num,
    /// Lanes of an image.
    pub lanes: Num,
    /// Where lanes are read.
    pub from: Lanes,
    /// Where the input's channels are, in units; its `lane` is [`Sparse::from`]'s.
    pub x: Place,
    /// Where the result is. Of codes its rows are consecutive.
    pub y: Place,
    /// Add a value per row.
    pub bias: bool,
    /// Add a tensor. Not of codes, as the activation.
    pub residual: Option<Place>,
    /// Lower bound of the result.
    pub lo: Option<f32>,
    /// Upper bound.
    pub hi: Option<f32>,
    /// Applied last.
    pub activation: Option<Activation>,
    /// Parts that the rows are cut into, for threads.
    pub bands: i64,
    /// Bytes of a panel that stay in the level-1 cache.
    pub panel_bytes: i64,
    /// Codes are multiplied.
    pub codes: Option<OfCodes>,
}

/// How the inner extent is cut into blocks.
#[derive(Clone, Copy, Debug)]
struct Blocks {
    /// Whole taps of a block; 1 where a tap is cut.
    taps: i64,
    /// Parts that a tap is cut into.
    parts: i64,
    /// Channels of a part.
    channels: i64,
    /// Blocks.
    count: i64,
}

impl Sparse {
    /// Which form is best for so many lanes.
    pub fn form(&self) -> Form {
        match (&self.codes, self.lanes) {
            (Some(_), Num::Const(n)) => Form::Codes((n.clamp(1, 64) as u32).next_multiple_of(16)),
            (Some(_), Num::Sym) => Form::Codes(64),
            (None, Num::Const(1)) => Form::Numbers(2),
            (None, Num::Const(n)) if n <= 32 => Form::Numbers(1),
            (None, _) => Form::Numbers(0),
        }
    }

    /// True if a single lane is computed, rows in vectors.
    pub fn is_column(&self) -> bool {
        self.form() == Form::Numbers(2)
    }

    /// Lanes of a tile.
    pub fn width(&self) -> i64 {
        i64::from(self.form().shape()[1])
    }

    fn in_group(&self) -> i64 {
        i64::from(self.form().shape()[0])
    }

    fn band_rows(&self) -> i64 {
        (self.n as u64).div_ceil(self.bands as u64) as i64
    }

    fn blocks(&self) -> Blocks {
        // Offsets in a panel are 16 bits.
        let most = (self.panel_bytes / 4 / self.width()).clamp(1, (1 << 16) / self.width());
        if self.channels <= most {
            let taps = (most / self.channels).min(self.taps);
            let count = (self.taps as u64).div_ceil(taps as u64) as i64;
            return Blocks {
                taps,
                parts: 1,
                channels: self.channels,
                count,
            };
        }
        let parts = (self.channels as u64).div_ceil(most as u64);
        let channels = (self.channels as u64).div_ceil(parts);
        let parts = (self.channels as u64).div_ceil(channels) as i64;
        Blocks {
            taps: 1,
            parts,
            channels: channels as i64,
            count: self.taps * parts,
        }
    }

    /// True if a single lane reads the input where it is.
    fn in_place(&self) -> bool {
        self.is_column() && self.x.row == 1 && self.from == Lanes::Stride(self.x.lane)
    }

    /// Tiles of an image's lanes, where their number is known.
    pub fn tiles(&self) -> Option<i64> {
        let n = self.lanes.known()? as u64;
        Some(n.div_ceil(self.width() as u64) as i64)
    }

    /// Nanoseconds that one thread takes for one image with so many entries that are not zero, and for all weights, if these are
    /// numbers as `f32` or `bf16`. The amounts were fitted to layers of ResNet-50, BERT and others; how fast each is done is the machine's.
    pub fn times(&self, entries: u64, bf16: bool, speeds: &Speeds) -> (f64, f64) {
        const LANES: i64 = 128;
        let lanes = self.lanes.known().unwrap_or(LANES);
        let (width, inner) = (self.width(), self.taps * self.channels);
        let tiles = (lanes as u64).div_ceil(width as u64) as f64;
        let (all, some) = ((self.n * inner) as f64, entries as f64);
        let time = |work, units: f64| units / speeds.rate(work, 0.0);
        // A call for each tap of each tile, whose lanes are looked at first.
        let calls = time(Work::Call, (self.taps * self.bands) as f64 * tiles * 8.0);
        if self.codes.is_some() {
            return self.times_of_codes(lanes, tiles, [all, some], calls, speeds);
        }
        // Other weights are read between two runs, so that these come from memory.
        let read = |bytes: f64| bytes / speeds.bandwidth(u64::MAX, 1);
        let padded = tiles * width as f64;
        let (work, size) = match bf16 {
            true => (Work::GemmBf16, 2.0),
            false => (Work::Gemm, 4.0),
        };
        let products = 2.0 * all * lanes as f64 / speeds.rate(work, lanes as f64);
        let dense = products.max(read(all * size));
        let products = match self.form() {
            Form::Numbers(0) => time(Work::Sparse, 2.0 * some * padded),
            Form::Numbers(1) => time(Work::SparseFew, 2.0 * some * padded),
            _ => time(Work::SparseColumn, 2.0 * some),
        };
        let turned = |p: Place, elements: f64| match p.lane {
            1 => time(Work::Copy, elements),
            _ => time(Work::Move, elements),
        };
        let results = self.n as f64 * padded;
        let mut moved = time(Work::Copy, results * self.blocks().count as f64 * 1.4);
        if !self.in_place() {
            moved += turned(self.x, (inner * self.bands) as f64 * padded) + calls;
            moved += (turned(self.y, results) - time(Work::Copy, results)).max(0.0);
        }
        (products.max(read(some * 6.0)) + moved, dense)
    }

    fn times_of_codes(
        &self,
        lanes: i64,
        tiles: f64,
        [all, some]: [f64; 2],
        calls: f64,
        speeds: &Speeds,
    ) -> (f64, f64) {
        let time = |work, units: f64| units / speeds.rate(work, 0.0);
        // Vectors without lanes are left out.
        let vectors = (lanes as u64).div_ceil(16) as f64;
        let results = |lanes: f64| self.n as f64 * lanes;
        let read = |bytes: f64| bytes / speeds.bandwidth(bytes as u64, 1);
        let groups = (self.n / self.in_group() * self.blocks().count) as f64 * tiles;
        let filled = (self.taps * self.channels * self.bands) as f64 * vectors * 16.0;
        // A product of fours is eight operations.
        let products = 8.0 * some * vectors * 16.0 / speeds.rate(Work::SparseCodes, vectors * 16.0);
        let products = products.max(read(some * 6.0));
        // Sums are turned, and made results of; dense products make them of registers.
        let sparse = products
            + time(Work::Scalar, groups * 160.0)
            + time(Work::Copy, filled * 4.2)
            + calls
            + time(Work::Scalar, results(vectors * 16.0) * 2.6);
        let dense = 8.0 * all * lanes as f64 / speeds.rate(Work::GemmCodes, lanes as f64);
        let dense = dense.max(read(all * 4.0));
        (
            sparse,
            dense + time(Work::Scalar, results(lanes as f64) * 0.6),
        )
    }

    /// The lanes' table, if `at(tap, lane)` says where a lane is: `None` for one that reads zero.
    pub fn table(&self, at: impl Fn(i64, i64) -> Option<i64>) -> Vec<u8> {
        let (tiles, lanes) = (self.tiles().unwrap_or(0), self.lanes.known().unwrap_or(0));
        let mut out = vec![];
        for tile in 0..tiles {
            for tap in 0..self.taps {
                for lane in tile * self.width()..(tile + 1) * self.width() {
                    let place = (lane < lanes).then(|| at(tap, lane)).flatten();
                    out.extend((place.unwrap_or(-1) as i32).to_le_bytes());
                }
            }
        }
        out
    }
}
