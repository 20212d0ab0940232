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

    /// Cycles that a core with 512-bit vectors would take for one image with so many entries that are not zero, and for
    /// all weights. A model to choose by: both count the same work on other machines, in other units.
    pub fn cycles(&self, entries: u64) -> (f64, f64) {
        const LANES: i64 = 128;
        // Bytes that come from memory in a cycle.
        const MEMORY: f64 = 4.3;
        let lanes = self.lanes.known().unwrap_or(LANES);
        let (width, inner) = (self.width(), self.taps * self.channels);
        let tiles = (lanes as u64).div_ceil(width as u64) as f64;
        let (all, some) = ((self.n * inner) as f64, entries as f64);
        // A call for each tap of each tile, whose lanes are looked at first.
        let calls = (self.taps * self.bands) as f64 * tiles * 400.0;
        if self.codes.is_some() {
            return self.cycles_of_codes(lanes, tiles, all, some, calls);
        }
        let padded = tiles * width as f64;
        let dense = (all * lanes as f64 / 24.0).max(all * 4.0 / MEMORY);
        let products = match self.form() {
            Form::Numbers(0) => some * padded / 15.0,
            Form::Numbers(1) => some * padded / 9.0,
            _ => some * 0.7,
        };
        let turned = |p: Place| if p.lane == 1 { 0.07 } else { 0.35 };
        let mut moved = self.n as f64 * padded * (self.blocks().count as f64 * 0.1);
        if !self.in_place() {
            moved += (inner * self.bands) as f64 * padded * turned(self.x) + calls;
            moved += self.n as f64 * padded * (turned(self.y) - 0.07);
        }
        (products.max(some * 6.0 / MEMORY) + moved, dense)
    }

    /// Fitted to 22 layers of ResNet-50, BERT and others of which a fifth of the entries is not zero.
    fn cycles_of_codes(
        &self,
        lanes: i64,
        tiles: f64,
        all: f64,
        some: f64,
        calls: f64,
    ) -> (f64, f64) {
        // Vectors without lanes are left out.
        let vectors = (lanes as u64).div_ceil(16) as f64;
        let results = |lanes: f64| self.n as f64 * lanes;
        // What fits the second-level cache comes from there.
        let read = |bytes: f64| bytes / if bytes > 2e6 { 5.0 } else { 16.0 };
        let product = if vectors > 1.0 { 1.0 } else { 1.75 };
        let groups = (self.n / self.in_group() * self.blocks().count) as f64 * tiles * 80.0;
        let filled = (self.taps * self.channels * self.bands) as f64 * vectors * 16.0 * 0.3;
        let products = (some * vectors * product).max(read(some * 6.0));
        // Sums are turned, and made results of; dense products make them of registers.
        let sparse = products + groups + filled + calls + results(vectors * 16.0) * 1.3;
        let dense = (all * lanes as f64 / 16.0 * 0.8).max(read(all * 4.0));
        (sparse, dense + results(lanes as f64) * 0.3)
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
