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

use super::activation::Activation;
use super::{Num, add, mul_const};
use lapidary_ir::ElemType;
use lapidary_ir::kernel::build::KernelBuilder;
use lapidary_ir::kernel::map::{Map, map};
use lapidary_ir::kernel::moves::{self, Move, moves};
use lapidary_ir::kernel::sparse::{Packed, Rows, SPARSE_SHAPES, SparseTile, sparse};
use lapidary_ir::kernel::{Axis, Binary, Buf, Extent, Kernel, TileElem, TileType, Var};

/// Where the lanes of a tap are, in elements of the input.
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

/// Extents and epilogue of a product with sparse weights.
#[derive(Clone, Debug, PartialEq)]
pub struct Sparse {
    /// Rows of the weights (output channels).
    pub n: i64,
    /// Taps of the window.
    pub taps: i64,
    /// Channels, of each tap.
    pub channels: i64,
    /// Independent inputs.
    pub images: Num,
    /// Lanes of an image.
    pub lanes: Num,
    /// Where lanes are read.
    pub from: Lanes,
    /// Where the input's channels are; its `lane` is [`Sparse::from`]'s.
    pub x: Place,
    /// Where the result is.
    pub y: Place,
    /// Add a value per row.
    pub bias: bool,
    /// Add a tensor.
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
}

/// The weights, packed: byte strings of one blob, each a multiple of 64 bytes long.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PackedWeights {
    /// `f32 [entry][R]`.
    pub values: Vec<u8>,
    /// `u16 [entry][R]`.
    pub offsets: Vec<u8>,
    /// `u32 [group + 1]`.
    pub starts: Vec<u8>,
    /// `u32 [group][R]`.
    pub rows: Vec<u8>,
    /// `u32 [band * blocks + 1]`: the groups of each block of a band.
    pub ranges: Vec<u8>,
}

impl PackedWeights {
    /// The parts in the order of the kernel's parameters, with their element types.
    pub fn parts(&self) -> [(ElemType, &Vec<u8>); 5] {
        [
            (ElemType::F32, &self.values),
            (ElemType::U16, &self.offsets),
            (ElemType::U32, &self.starts),
            (ElemType::U32, &self.rows),
            (ElemType::U32, &self.ranges),
        ]
    }
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
    /// Which tile shape is best for so many lanes.
    pub fn shape(&self) -> usize {
        match self.lanes {
            Num::Const(1) => 2,
            Num::Const(n) if n <= 32 => 1,
            _ => 0,
        }
    }

    /// Lanes of a tile.
    pub fn width(&self) -> i64 {
        SPARSE_SHAPES[self.shape()].1 as i64
    }

    fn in_group(&self) -> i64 {
        SPARSE_SHAPES[self.shape()].0 as i64
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
        self.shape() == 2 && self.x.row == 1 && self.from == Lanes::Stride(self.x.lane)
    }

    /// Tiles of an image's lanes, where their number is known.
    pub fn tiles(&self) -> Option<i64> {
        let n = self.lanes.known()? as u64;
        Some(n.div_ceil(self.width() as u64) as i64)
    }

    /// Cycles that a core with 512-bit vectors would take for one image with so many weights that are not zero, and for
    /// all weights. A model to choose by: both count the same work on other machines, in other units.
    pub fn cycles(&self, nonzeros: u64) -> (f64, f64) {
        const LANES: i64 = 128;
        // Bytes that come from memory in a cycle.
        const MEMORY: f64 = 4.3;
        let lanes = self.lanes.known().unwrap_or(LANES);
        let (width, inner) = (self.width(), self.taps * self.channels);
        let padded = (lanes as f64 / width as f64).ceil() * width as f64;
        let (all, some) = ((self.n * inner) as f64, nonzeros as f64);
        let dense = (all * lanes as f64 / 24.0).max(all * 4.0 / MEMORY);
        let products = match self.shape() {
            0 => some * padded / 15.0,
            1 => some * padded / 9.0,
            _ => some * 0.7,
        };
        let turned = |p: Place| if p.lane == 1 { 0.07 } else { 0.35 };
        let mut moved = self.n as f64 * padded * (self.blocks().count as f64 * 0.1);
        if !self.in_place() {
            moved += (inner * self.bands) as f64 * padded * turned(self.x);
            // A call for each tap of each tile, whose lanes are looked at first.
            moved += (self.taps * self.bands) as f64 * padded / width as f64 * 400.0;
            moved += self.n as f64 * padded * (turned(self.y) - 0.07);
        }
        (products.max(some * 6.0 / MEMORY) + moved, dense)
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

    /// Packs the weights; `weight(row, tap, channel)`.
    pub fn pack(&self, weight: impl Fn(i64, i64, i64) -> f32) -> PackedWeights {
        let (r, blocks, width) = (self.in_group() as usize, self.blocks(), self.width());
        let mut out = PackedWeights::default();
        let put = |to: &mut Vec<u8>, v: usize| to.extend((v as u32).to_le_bytes());
        let (mut entry, mut group) = (0, 0);
        put(&mut out.starts, entry);
        put(&mut out.ranges, group);
        for band in 0..self.bands {
            let first = band * self.band_rows();
            let rows = first..(first + self.band_rows()).min(self.n);
            for block in 0..blocks.count {
                let mut lists: Vec<(usize, Vec<(u16, f32)>)> = rows
                    .clone()
                    .map(|row| {
                        let here = self.entries(blocks, block, width, |t, c| weight(row, t, c));
                        ((row - first) as usize, here)
                    })
                    .collect();
                lists.sort_by_key(|(row, list)| (std::cmp::Reverse(list.len()), *row));
                for rows in lists.chunks(r) {
                    let most = rows[0].1.len();
                    // A row that is missing is the group's first again: the same sum is stored twice.
                    let rows: Vec<_> = (0..r).map(|i| rows.get(i).unwrap_or(&rows[0])).collect();
                    for t in 0..most {
                        for (_, list) in &rows {
                            let (offset, value) = list.get(t).copied().unwrap_or((0, 0.0));
                            out.values.extend(value.to_le_bytes());
                            out.offsets.extend(offset.to_le_bytes());
                        }
                    }
                    rows.iter().for_each(|(row, _)| put(&mut out.rows, *row));
                    (entry, group) = (entry + most, group + 1);
                    put(&mut out.starts, entry);
                }
                put(&mut out.ranges, group);
            }
        }
        for part in [
            &mut out.values,
            &mut out.offsets,
            &mut out.starts,
            &mut out.rows,
            &mut out.ranges,
        ] {
            part.resize(part.len().max(1).next_multiple_of(64), 0);
        }
        out
    }

    /// A row's entries in a block: offsets into the panel, and values.
    fn entries(
        &self,
        blocks: Blocks,
        block: i64,
        width: i64,
        weight: impl Fn(i64, i64) -> f32,
    ) -> Vec<(u16, f32)> {
        let (tap, part) = (block / blocks.parts * blocks.taps, block % blocks.parts);
        let channels = part * blocks.channels..((part + 1) * blocks.channels).min(self.channels);
        let mut out = vec![];
        for t in tap..(tap + blocks.taps).min(self.taps) {
            for c in channels.clone() {
                let value = weight(t, c);
                if value != 0.0 {
                    let at = (t - tap) * blocks.channels + c - channels.start;
                    out.push(((at * width) as u16, value));
                }
            }
        }
        out
    }

    /// The kernel. Parameters: `x`, the parts of [`PackedWeights`], `lanes`? (the table), `bias`?, `residual`?, `y`, then
    /// those of `images` and `lanes` that are [`Num::Sym`].
    pub fn kernel(&self, name: &str) -> Kernel {
        let mut b = KernelBuilder::new(name);
        let x = b.buffer("x", ElemType::F32, false);
        let matrix = Packed {
            values: b.buffer("values", ElemType::F32, false),
            offsets: b.buffer("offsets", ElemType::U16, false),
            starts: b.buffer("starts", ElemType::U32, false),
            rows: b.buffer("rows", ElemType::U32, false),
        };
        let ranges = b.buffer("ranges", ElemType::U32, false);
        let table = (self.from == Lanes::Table).then(|| b.buffer("lanes", ElemType::I32, false));
        let bias = self.bias.then(|| b.buffer("bias", ElemType::F32, false));
        let residual = self
            .residual
            .map(|at| (b.buffer("residual", ElemType::F32, false), at));
        let y = b.buffer("y", ElemType::F32, true);
        let images = self.images.bind(&mut b, "images");
        let lanes = self.lanes.bind(&mut b, "lanes");
        let band = b.grid(Extent::Const(self.bands as u64));
        let image = b.grid(images.tiles(1));
        let tile = b.grid(lanes.tiles(self.width() as u32));

        let lane0 = mul_const(&mut b, tile, self.width());
        let left = b.binary(Binary::Sub, lanes.var, lane0);
        let whole = self.lanes.known().is_some_and(|n| n % self.width() == 0);
        let row0 = mul_const(&mut b, band, self.band_rows());
        let mut writer = Writer {
            spec: self,
            blocks: self.blocks(),
            x,
            matrix,
            ranges,
            table,
            bias: bias.map(|buf| (buf, row0)),
            residual,
            y,
            band,
            image,
            tile,
            lane0,
            left,
            cols: (!whole).then_some(left),
            row0,
            panel: None,
            sums: None,
        };
        writer.body(&mut b);
        b.finish()
    }
}

/// The kernel being written.
struct Writer<'s> {
    spec: &'s Sparse,
    blocks: Blocks,
    x: Buf,
    matrix: Packed,
    ranges: Buf,
    table: Option<Buf>,
    bias: Option<(Buf, Var)>,
    residual: Option<(Buf, Place)>,
    y: Buf,
    band: Var,
    image: Var,
    tile: Var,
    lane0: Var,
    /// Lanes of the tile that exist.
    left: Var,
    /// The same where they may be fewer than the tile's.
    cols: Option<Var>,
    row0: Var,
    panel: Option<Buf>,
    /// Scratch `[band's rows][width]`, where results are not written at once.
    sums: Option<Buf>,
}

impl Writer<'_> {
    fn body(&mut self, b: &mut KernelBuilder) {
        let (spec, count) = (self.spec, self.blocks.count);
        let width = spec.width();
        let direct = |p: Place| p.lane == 1 || spec.shape() == 2;
        if !spec.in_place() {
            let rows = self.blocks.taps * self.blocks.channels;
            self.panel = Some(b.scratch(ElemType::F32, (rows * width) as u32));
        }
        let turned = self.residual.filter(|(_, at)| !direct(*at));
        let at_once = direct(spec.y) && spec.activation.is_none();
        if count > 1 || !at_once || turned.is_some() {
            // The last columns that are moved out may be read past the rows.
            let rows = (spec.band_rows() as u64).next_multiple_of(u64::from(moves::MOST));
            self.sums = Some(b.scratch(ElemType::F32, rows as u32 * width as u32));
        }
        if let (Some((buf, at)), Some(sums)) = (turned, self.sums) {
            self.turn_in(b, buf, at, sums);
        }
        let first = match self.residual {
            Some((buf, at)) if turned.is_none() => Some(self.rows_of(b, buf, at)),
            Some(_) => self.sums_rows(b),
            None => None,
        };
        let result = match at_once {
            true => Some(self.rows_of(b, self.y, spec.y)),
            false => self.sums_rows(b),
        };
        let zero = b.index(0);
        let last = b.index(count - 1);
        let partial = self.sums_rows(b);
        self.block(b, zero, first, (count == 1).then_some(result), true);
        if count > 2 {
            let one = b.index(1);
            b.for_loop(one, last, 1, &[], |b, block, _| {
                self.block(b, block, partial, None, false);
                vec![]
            });
        }
        if count > 1 {
            self.block(b, last, partial, Some(result), false);
        }
        if let (Some(sums), false) = (self.sums, at_once) {
            if let Some(activation) = spec.activation {
                self.activate(b, sums, activation);
            }
            self.move_out(b, sums);
        }
    }

    /// Rows of the band in scratch.
    fn sums_rows(&self, b: &mut KernelBuilder) -> Option<Rows> {
        let buf = self.sums?;
        Some(Rows {
            buf,
            base: b.index(0),
            stride: b.index(self.spec.width()),
        })
    }

    /// Rows of the band in a tensor, from the tile's first lane on.
    fn rows_of(&self, b: &mut KernelBuilder, buf: Buf, at: Place) -> Rows {
        let base = self.element(b, at, at.row, at.lane);
        Rows {
            buf,
            base,
            stride: b.index(at.row),
        }
    }

    /// Where the band's first row and the tile's first lane are.
    fn element(&self, b: &mut KernelBuilder, at: Place, row: i64, lane: i64) -> Var {
        let image = self.image_at(b, at);
        let row = mul_const(b, self.row0, row);
        let lane = mul_const(b, self.lane0, lane);
        let sum = add(b, image, row);
        add(b, sum, lane)
    }

    fn image_at(&self, b: &mut KernelBuilder, at: Place) -> Var {
        let image = mul_const(b, self.image, at.image);
        super::add_const(b, image, at.first)
    }

    /// One block of the inner extent: its panel, then its groups. `result`: where the last block's sums go.
    fn block(
        &self,
        b: &mut KernelBuilder,
        block: Var,
        init: Option<Rows>,
        result: Option<Option<Rows>>,
        is_first: bool,
    ) {
        let x = self.fill(b, block);
        let at = mul_const(b, self.band, self.blocks.count);
        let at = add(b, at, block);
        let next = super::add_const(b, at, 1);
        let [first, end] = [at, next].map(|at| {
            let group = b.load(self.ranges, at, &[], vec![]);
            b.cast(group, TileElem::Index)
        });
        let (lo, hi) = match result {
            Some(_) => (self.spec.lo, self.spec.hi),
            None => (None, None),
        };
        let partial = self.sums_rows(b);
        let Some(c) = result.flatten().or(partial) else {
            unreachable!("results go to the tensor or to scratch")
        };
        let tile = SparseTile {
            shape: self.spec.shape(),
            matrix: self.matrix,
            first,
            end,
            x,
            init,
            bias: self.bias.filter(|_| is_first),
            lo,
            hi,
            c,
            cols: self.cols,
        };
        sparse(b, tile);
    }

    /// Gathers a block's panel; where it is.
    fn fill(&self, b: &mut KernelBuilder, block: Var) -> (Buf, Var) {
        let (spec, blocks) = (self.spec, self.blocks);
        let parts = b.index(blocks.parts);
        let (of_tap, part) = match blocks.parts {
            1 => (block, b.index(0)),
            _ => (
                b.binary(Binary::FloorDiv, block, parts),
                b.binary(Binary::Mod, block, parts),
            ),
        };
        let channel0 = mul_const(b, part, blocks.channels);
        let Some(panel) = self.panel else {
            let at = self.image_at(b, spec.x);
            let base = add(b, at, channel0);
            return (self.x, base);
        };
        let end = b.index(spec.channels);
        let rest = b.binary(Binary::Sub, end, channel0);
        let most = b.index(blocks.channels);
        let channels = b.binary(Binary::Min, rest, most);
        let tap0 = mul_const(b, of_tap, blocks.taps);
        let taps_end = b.index(spec.taps);
        let rest = b.binary(Binary::Sub, taps_end, tap0);
        let most = b.index(blocks.taps);
        let taps = b.binary(Binary::Min, rest, most);
        let zero = b.index(0);
        b.for_loop(zero, taps, 1, &[], |b, t, _| {
            let tap = add(b, tap0, t);
            let (at, mask, base) = self.lanes(b, tap);
            let skip = mul_const(b, channel0, spec.x.row);
            let src = add(b, base, skip);
            let skip = mul_const(b, t, blocks.channels * spec.width());
            let m = Move {
                src: (self.x, src, b.index(spec.x.row)),
                at,
                mask,
                dst: (panel, skip, b.index(spec.width())),
                rows: channels,
                cols: None,
            };
            moves(b, m);
            vec![]
        });
        (panel, zero)
    }

    /// Offsets of a tap's lanes, which of them exist, and what they count from.
    fn lanes(&self, b: &mut KernelBuilder, tap: Var) -> (Var, Option<Var>, Var) {
        let (spec, width) = (self.spec, self.spec.width() as u32);
        let image = self.image_at(b, spec.x);
        let tile = TileType {
            elem: TileElem::Index,
            shape: vec![width],
        };
        if let (Lanes::Table, Some(table)) = (spec.from, self.table) {
            let row = mul_const(b, self.tile, spec.taps);
            let row = add(b, row, tap);
            let at = mul_const(b, row, spec.width());
            let at = b.load(table, at, &[width], vec![Axis::stride(1)]);
            let at = b.cast(at, TileElem::Index);
            let zero = b.constant(tile, lapidary_ir::kernel::Literal::Int(0));
            let there = b.binary(Binary::Ge, at, zero);
            return (at, Some(there), image);
        }
        let stride = match spec.from {
            Lanes::Stride(s) => s,
            Lanes::Table => unreachable!("a table has a buffer"),
        };
        let iota = b.iota(width);
        let step = b.index(stride);
        let at = b.binary(Binary::Mul, iota, step);
        let first = mul_const(b, self.lane0, stride);
        let base = add(b, image, first);
        let mask = self.cols.map(|left| b.binary(Binary::Lt, iota, left));
        (at, mask, base)
    }

    /// Brings a residual whose lanes are not consecutive into scratch.
    fn turn_in(&self, b: &mut KernelBuilder, buf: Buf, at: Place, sums: Buf) {
        let width = self.spec.width();
        let iota = b.iota(width as u32);
        let step = b.index(at.lane);
        let offsets = b.binary(Binary::Mul, iota, step);
        let mask = self.cols.map(|left| b.binary(Binary::Lt, iota, left));
        let (base, rows) = (self.element(b, at, at.row, at.lane), self.rows_here(b));
        let m = Move {
            src: (buf, base, b.index(at.row)),
            at: offsets,
            mask,
            dst: (sums, b.index(0), b.index(width)),
            rows,
            cols: None,
        };
        moves(b, m);
    }

    /// Rows of this band.
    fn rows_here(&self, b: &mut KernelBuilder) -> Var {
        let (all, most) = (b.index(self.spec.n), b.index(self.spec.band_rows()));
        let rest = b.binary(Binary::Sub, all, self.row0);
        b.binary(Binary::Min, rest, most)
    }

    fn activate(&self, b: &mut KernelBuilder, sums: Buf, activation: Activation) {
        let rows = self.rows_here(b);
        let all = mul_const(b, rows, self.spec.width());
        let first = (sums, b.index(0));
        let m = Map {
            activation,
            lanes: self.spec.width() as u32,
            src: first,
            dst: first,
            n: all,
            whole: true,
        };
        map(b, m);
    }

    /// Copies the band's results from scratch to the tensor.
    fn move_out(&self, b: &mut KernelBuilder, sums: Buf) {
        let (spec, width) = (self.spec, self.spec.width());
        let (zero, rows) = (b.index(0), self.rows_here(b));
        let base = self.element(b, spec.y, spec.y.row, spec.y.lane);
        if spec.y.lane == 1 || spec.shape() == 2 {
            let m = Move {
                src: (sums, zero, b.index(width)),
                at: b.iota(width as u32),
                mask: None,
                dst: (self.y, base, b.index(spec.y.row)),
                rows,
                cols: self.cols,
            };
            return moves(b, m);
        }
        let most = i64::from(moves::MOST);
        let (step, lanes) = (b.index(width), b.index(width));
        let here = b.binary(Binary::Min, self.left, lanes);
        b.for_loop(zero, rows, moves::MOST, &[], |b, row, _| {
            let iota = b.iota(moves::MOST);
            let at = b.binary(Binary::Mul, iota, step);
            let from = mul_const(b, row, width);
            let to = mul_const(b, row, spec.y.row);
            let to = add(b, base, to);
            let exact = spec.n % most == 0 && spec.band_rows() % most == 0;
            let m = Move {
                src: (sums, from, b.index(1)),
                at,
                mask: None,
                dst: (self.y, to, b.index(spec.y.lane)),
                rows: here,
                cols: (!exact).then(|| b.binary(Binary::Sub, rows, row)),
            };
            moves(b, m);
            vec![]
        });
    }
}
