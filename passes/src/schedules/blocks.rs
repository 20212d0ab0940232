//! Products of 8-bit activations and weights of a few bits, both in blocks that share a scale:
//! `y[m][n] = act(clamp(a[m] w[n] + bias[n] + residual[m][n]))`.
//!
//! ```text
//! round: grid (chunk of blocks)                  numbers to blocks of codes, once for all products that read them
//! grid (panel of 16 columns, band of rows)       bands fastest: a panel stays in cache
//!   tile = clamp(product + bias)                 the micro-kernel, at once into the result where nothing else follows
//!   for each row: y = activation(clamp(tile + residual))
//! ```
//! A panel is one forward stream, which is what a single row is bound by.
//!
//! Activations that are not rounded meet the numbers that the weights are, a few blocks at a time:
//!
//! ```text
//! grid (panel of 32 columns, band of rows)
//!   tile = bias
//!   for each chunk of blocks: panel = weights as numbers, in scratch that stays in the first-level cache
//!     for each tile of up to 14 rows: tile += a panel      the micro-kernel for f32
//!   for each row: y = activation(clamp(tile + residual))
//! ```

use super::activation::Activation;
use super::epilogue::whole_lanes;
use super::{Num, add, even_rows, mul, mul_const};
use lapidary_ir::ElemType;
use lapidary_ir::kernel::blocks::{
    BlocksTile, Format, PANEL, RoundTile, UnpackTile, blocks, round, unpack,
};
use lapidary_ir::kernel::build::KernelBuilder;
use lapidary_ir::kernel::contraction::{self, Epilogue, GemmTile, Kind, MAX_ROWS, RowsAt};
use lapidary_ir::kernel::map::{Map, map};
use lapidary_ir::kernel::sparse::Rows;
use lapidary_ir::kernel::{Axis, Binary, Buf, Extent, Kernel, Literal, TileType, Var};

/// Rows of a band: a few of the micro-kernel's tiles.
const BAND: i64 = 48;

/// Blocks that are rounded by one block of the grid.
pub const CHUNK: u32 = 16;

/// Extents and epilogue of a product.
#[derive(Clone, Debug, PartialEq)]
pub struct Blocks {
    /// Rows.
    pub m: Num,
    /// Columns.
    pub n: i64,
    /// Blocks of a row.
    pub blocks: i64,
    /// How blocks are stored.
    pub format: Format,
    /// Add a row of `n` values.
    pub bias: bool,
    /// Add a tensor of the result's shape.
    pub residual: bool,
    /// Lower bound of the result.
    pub lo: Option<f32>,
    /// Upper bound of the result.
    pub hi: Option<f32>,
    /// Applied last.
    pub activation: Option<Activation>,
}

/// Columns of a panel of numbers.
const WIDE: u32 = contraction::PANEL;

/// Rows of a band of numbers: weights are unpacked once for all of them.
const WIDE_BAND: i64 = 8 * MAX_ROWS as i64;

/// Numbers of a column that are unpacked at once.
const UNPACKED: i64 = 256;

/// Where a block of the grid is.
#[derive(Clone, Copy)]
struct Place {
    row0: Var,
    col0: Var,
    /// Rows that there are.
    rows: Var,
    /// Columns that there are, where they may be fewer than the panel's.
    cols: Option<Var>,
}

impl Blocks {
    /// Where the block is that is `band` bands and `panel` panels in, each given with its length; of `m` by `n` in all.
    fn place(
        &self,
        b: &mut KernelBuilder,
        (band, height): (Var, i64),
        (panel, width): (Var, i64),
        [m, n]: [Var; 2],
    ) -> Place {
        let row0 = mul_const(b, band, height);
        let col0 = mul_const(b, panel, width);
        let left = b.binary(Binary::Sub, m, row0);
        let most = b.index(height);
        let whole = self.n % width == 0;
        Place {
            row0,
            col0,
            rows: b.binary(Binary::Min, left, most),
            cols: (!whole).then(|| b.binary(Binary::Sub, n, col0)),
        }
    }

    /// Bytes of a row of activations.
    pub fn row_bytes(&self) -> i64 {
        self.blocks * self.format.act_bytes()
    }

    /// Bytes of a panel.
    pub fn panel_bytes(&self) -> i64 {
        self.blocks * self.format.panel_bytes()
    }

    /// Panels.
    pub fn panels(&self) -> i64 {
        (self.n as u64).div_ceil(u64::from(PANEL)) as i64
    }

    /// Rows of a band.
    pub fn band(&self) -> i64 {
        self.m.known().map_or(BAND, |m| m.clamp(1, BAND))
    }

    /// The kernel. Parameters: `a` (blocks of codes), `w` (panels), `bias`?, `residual`?, `y`, then `m` if it is [`Num::Sym`].
    pub fn kernel(&self, name: &str) -> Kernel {
        let mut b = KernelBuilder::new(name);
        let a = b.buffer("a", ElemType::U8, false);
        let w = b.buffer("w", ElemType::U8, false);
        let bias = self.bias.then(|| b.buffer("bias", ElemType::F32, false));
        let residual = self
            .residual
            .then(|| b.buffer("residual", ElemType::F32, false));
        let y = b.buffer("y", ElemType::F32, true);
        let m = self.m.bind(&mut b, "m");
        let panel = b.grid(Extent::Const(self.panels() as u64));
        let band = b.grid(m.tiles(self.band() as u32));

        let zero = b.index(0);
        let n = b.index(self.n);
        let place = self.place(
            &mut b,
            (band, self.band()),
            (panel, i64::from(PANEL)),
            [m.var, n],
        );
        let Place {
            row0,
            col0,
            rows,
            cols,
        } = place;
        let a_stride = b.index(self.row_bytes());
        let a_base = mul(&mut b, row0, a_stride);
        let w_base = mul_const(&mut b, panel, self.panel_bytes());
        let count = b.index(self.blocks);
        let y_rows = place.rows_of(&mut b, y, n);
        let later = residual.is_some() || self.activation.is_some();
        let tile = later.then(|| {
            let width = b.index(i64::from(PANEL));
            Rows {
                buf: b.scratch(ElemType::F32, self.band() as u32 * PANEL),
                base: zero,
                stride: width,
            }
        });
        blocks(
            &mut b,
            BlocksTile {
                format: self.format,
                rows: self.m.known().map_or(4, |m| m.clamp(1, 4)) as u32,
                first: zero,
                end: rows,
                blocks: count,
                a: Rows {
                    buf: a,
                    base: a_base,
                    stride: a_stride,
                },
                w: (w, w_base),
                bias: bias.map(|buf| (buf, col0)),
                lo: self.lo.filter(|_| residual.is_none()),
                hi: self.hi.filter(|_| residual.is_none()),
                c: tile.unwrap_or(y_rows),
                cols,
            },
        );
        if let Some(tile) = tile {
            let after = After {
                n: self.n,
                width: PANEL,
                residual: residual.map(|buf| place.rows_of(&mut b, buf, n)),
                lo: self.lo.filter(|_| residual.is_some()),
                hi: self.hi.filter(|_| residual.is_some()),
                activation: self.activation,
            };
            after.finish(&mut b, (place.rows, place.cols), tile, y_rows);
        }
        b.finish()
    }
}

/// What is done with a tile in scratch memory on its way to the result.
struct After {
    /// Columns of the result.
    n: i64,
    /// Columns of the tile.
    width: u32,
    /// Rows to add.
    residual: Option<Rows>,
    lo: Option<f32>,
    hi: Option<f32>,
    activation: Option<Activation>,
}

impl After {
    /// Goes over so many rows and columns of a tile: adds the residual, clamps and applies the activation.
    fn finish(&self, b: &mut KernelBuilder, (rows, cols): (Var, Option<Var>), tile: Rows, y: Rows) {
        let zero = b.index(0);
        let of = |b: &mut KernelBuilder, rows: Rows, r: Var| {
            let skip = mul(b, r, rows.stride);
            add(b, rows.base, skip)
        };
        let columns = Axis {
            valid: cols,
            ..Axis::stride(1)
        };
        let shape = [self.width];
        let changed = self.residual.is_some() || self.lo.is_some() || self.hi.is_some();
        b.for_loop(zero, rows, 1, &[], |b, r, _| {
            let (from, to) = (of(b, tile, r), of(b, y, r));
            if changed || self.activation.is_none() {
                let mut x = b.load(tile.buf, from, &shape, vec![Axis::stride(1)]);
                if let Some(residual) = self.residual {
                    let at = of(b, residual, r);
                    let added = b.load(residual.buf, at, &shape, vec![columns.clone()]);
                    x = b.binary(Binary::Add, x, added);
                }
                for (bound, f) in [(self.lo, Binary::Max), (self.hi, Binary::Min)] {
                    if let Some(bound) = bound {
                        let ty = TileType::of(ElemType::F32, &shape);
                        let bound = b.constant(ty, Literal::Float(f64::from(bound)));
                        x = b.binary(f, x, bound);
                    }
                }
                match self.activation {
                    Some(_) => b.store(tile.buf, from, vec![Axis::stride(1)], x),
                    None => b.store(y.buf, to, vec![columns.clone()], x),
                }
            }
            if let Some(activation) = self.activation {
                let all = b.index(i64::from(self.width));
                let n = cols.map_or(all, |cols| b.binary(Binary::Min, cols, all));
                let lanes = whole_lanes(Num::Const(self.n), PANEL);
                let m = Map {
                    activation,
                    lanes: lanes.unwrap_or(4),
                    src: (tile.buf, from),
                    dst: (y.buf, to),
                    n,
                    whole: lanes.is_some(),
                };
                map(b, m);
            }
            vec![]
        });
    }
}

impl Place {
    /// The band's rows of a tensor of rows of `n`, from the panel's first column on.
    fn rows_of(&self, b: &mut KernelBuilder, buf: Buf, n: Var) -> Rows {
        let skip = mul(b, self.row0, n);
        Rows {
            buf,
            base: add(b, skip, self.col0),
            stride: n,
        }
    }
}

impl Blocks {
    /// Rows of a band of the kernel for numbers.
    pub fn wide_band(&self) -> i64 {
        self.m.known().map_or(WIDE_BAND, |m| m.clamp(1, WIDE_BAND))
    }

    /// Panels of numbers; each is two of [`Blocks::panels`], the last of which may have no column.
    pub fn wide_panels(&self) -> i64 {
        (self.n as u64).div_ceil(u64::from(WIDE)) as i64
    }

    /// The kernel for activations that are numbers. Parameters: `a` (`f32`), `w` (an even number of panels), `bias`?, `residual`?,
    /// `y`, then `m` if it is [`Num::Sym`]. `zero` is the zero point where columns have none of their own.
    pub fn kernel_of_numbers(&self, name: &str, zero: i32) -> Kernel {
        let mut b = KernelBuilder::new(name);
        let a = b.buffer("a", ElemType::F32, false);
        let w = b.buffer("w", ElemType::U8, false);
        let bias = self.bias.then(|| b.buffer("bias", ElemType::F32, false));
        let residual = self
            .residual
            .then(|| b.buffer("residual", ElemType::F32, false));
        let y = b.buffer("y", ElemType::F32, true);
        let m = self.m.bind(&mut b, "m");
        let panel = b.grid(Extent::Const(self.wide_panels() as u64));
        let band = b.grid(m.tiles(self.wide_band() as u32));
        let block = i64::from(self.format.block);
        let chunk = (UNPACKED / block).clamp(1, self.blocks);
        let numbers = b.scratch(ElemType::F32, (chunk * block) as u32 * WIDE);
        let sums = b.scratch(ElemType::F32, self.wide_band() as u32 * WIDE);

        let none = b.index(0);
        let n = b.index(self.n);
        let place = self.place(
            &mut b,
            (band, self.wide_band()),
            (panel, i64::from(WIDE)),
            [m.var, n],
        );
        let Place {
            row0,
            col0,
            rows,
            cols,
        } = place;
        let width = b.index(i64::from(WIDE));
        let tile = Rows {
            buf: sums,
            base: none,
            stride: width,
        };
        let ty = TileType::of(ElemType::F32, &[WIDE]);
        let first = match bias {
            Some(buf) => {
                let columns = Axis {
                    valid: cols,
                    ..Axis::stride(1)
                };
                b.load(buf, col0, &[WIDE], vec![columns])
            }
            None => b.constant(ty, Literal::Float(0.0)),
        };
        b.for_loop(none, rows, 1, &[], |b, r, _| {
            let to = mul_const(b, r, i64::from(WIDE));
            b.store(sums, to, vec![Axis::stride(1)], first);
            vec![]
        });
        let k = self.blocks * block;
        let a_base = mul_const(&mut b, row0, k);
        let count = b.index(self.blocks);
        let w_base = mul_const(&mut b, panel, 2 * self.panel_bytes());
        b.for_loop(none, count, chunk as u32, &[], |b, at, _| {
            let left = b.binary(Binary::Sub, count, at);
            let most = b.index(chunk);
            let here = b.binary(Binary::Min, left, most);
            let skip = mul_const(b, at, self.format.panel_bytes());
            let from = add(b, w_base, skip);
            for half in 0..2 {
                let base = super::add_const(b, from, half * self.panel_bytes());
                let to = b.index(half * i64::from(PANEL));
                let t = UnpackTile {
                    format: self.format,
                    zero,
                    blocks: here,
                    w: (w, base),
                    y: Rows {
                        buf: numbers,
                        base: to,
                        stride: width,
                    },
                };
                unpack(b, t);
            }
            let k_here = mul_const(b, here, block);
            let skip = mul_const(b, at, block);
            let a_base = add(b, a_base, skip);
            let tile_rows = even_rows(self.m, MAX_ROWS);
            b.for_loop(none, rows, tile_rows, &[], |b, r, _| {
                let rows_left = b.binary(Binary::Sub, rows, r);
                let skip = mul_const(b, r, k);
                let base = add(b, a_base, skip);
                let spec = GemmTile {
                    kind: Kind::F32,
                    rows: tile_rows,
                    a,
                    b: numbers,
                    b_base: none,
                    k: k_here,
                    taps: 1,
                    width: WIDE,
                };
                let acc = contraction::gemm(b, spec, |_, _| RowsAt {
                    base,
                    rows: Axis::stride(k).valid(rows_left),
                });
                let at = RowsAt {
                    base: mul_const(b, r, i64::from(WIDE)),
                    rows: Axis::stride(i64::from(WIDE)).valid(rows_left),
                };
                let plus = Epilogue {
                    scaled: None,
                    bias: None,
                    residual: Some((sums, at.clone())),
                    lo: None,
                    hi: None,
                    code: None,
                    stages: vec![],
                    table: None,
                    c: sums,
                    c_at: at,
                    cols: None,
                };
                contraction::epilogue(b, acc, plus);
                vec![]
            });
            vec![]
        });
        let after = After {
            n: self.n,
            width: WIDE,
            residual: residual.map(|buf| place.rows_of(&mut b, buf, n)),
            lo: self.lo,
            hi: self.hi,
            activation: self.activation,
        };
        let y_rows = place.rows_of(&mut b, y, n);
        after.finish(&mut b, (place.rows, place.cols), tile, y_rows);
        b.finish()
    }
}

/// The kernel that rounds numbers. Parameters: `x`, `y` (blocks of codes), then the number of blocks if it is [`Num::Sym`].
pub fn rounding(name: &str, block: u32, factor: i32, blocks: Num) -> Kernel {
    let mut b = KernelBuilder::new(name);
    let x = b.buffer("x", ElemType::F32, false);
    let y = b.buffer("y", ElemType::U8, true);
    let count = blocks.bind(&mut b, "blocks");
    let chunk = b.grid(count.tiles(CHUNK));
    let (zero, most) = (b.index(0), b.index(i64::from(CHUNK)));
    let first = mul(&mut b, chunk, most);
    let end = add(&mut b, first, most);
    let end = b.binary(Binary::Min, end, count.var);
    round(
        &mut b,
        RoundTile {
            block,
            factor,
            first,
            end,
            x: (x, zero),
            y: (y, zero),
        },
    );
    b.finish()
}
