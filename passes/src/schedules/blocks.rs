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

use super::activation::Activation;
use super::epilogue::whole_lanes;
use super::{Num, add, mul, mul_const};
use lapidary_ir::ElemType;
use lapidary_ir::kernel::blocks::{BlocksTile, Format, PANEL, RoundTile, blocks, round};
use lapidary_ir::kernel::build::KernelBuilder;
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

/// Where a block of the grid is.
struct Place {
    row0: Var,
    col0: Var,
    /// Rows that there are.
    rows: Var,
    /// Columns that there are, where they may be fewer than the panel's.
    cols: Option<Var>,
}

impl Blocks {
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
        let row0 = mul_const(&mut b, band, self.band());
        let col0 = mul_const(&mut b, panel, i64::from(PANEL));
        let left = b.binary(Binary::Sub, m.var, row0);
        let most = b.index(self.band());
        let rows = b.binary(Binary::Min, left, most);
        let n = b.index(self.n);
        let whole = self.n % i64::from(PANEL) == 0;
        let cols = (!whole).then(|| b.binary(Binary::Sub, n, col0));
        let place = Place {
            row0,
            col0,
            rows,
            cols,
        };
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
            let from = residual.map(|buf| place.rows_of(&mut b, buf, n));
            self.finish(&mut b, &place, tile, from, y_rows);
        }
        b.finish()
    }

    /// Adds the residual, clamps and applies the activation, row by row.
    fn finish(
        &self,
        b: &mut KernelBuilder,
        place: &Place,
        tile: Rows,
        residual: Option<Rows>,
        y: Rows,
    ) {
        let zero = b.index(0);
        let of = |b: &mut KernelBuilder, rows: Rows, r: Var| {
            let skip = mul(b, r, rows.stride);
            add(b, rows.base, skip)
        };
        let columns = Axis {
            valid: place.cols,
            ..Axis::stride(1)
        };
        b.for_loop(zero, place.rows, 1, &[], |b, r, _| {
            let (from, to) = (of(b, tile, r), of(b, y, r));
            if let Some(residual) = residual {
                let mut x = b.load(tile.buf, from, &[PANEL], vec![Axis::stride(1)]);
                let at = of(b, residual, r);
                let added = b.load(residual.buf, at, &[PANEL], vec![columns.clone()]);
                x = b.binary(Binary::Add, x, added);
                for (bound, f) in [(self.lo, Binary::Max), (self.hi, Binary::Min)] {
                    if let Some(bound) = bound {
                        let ty = TileType::of(ElemType::F32, &[PANEL]);
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
                let all = b.index(i64::from(PANEL));
                let n = place
                    .cols
                    .map_or(all, |cols| b.binary(Binary::Min, cols, all));
                let lanes = whole_lanes(Num::Const(self.n), PANEL);
                map(
                    b,
                    Map {
                        activation,
                        lanes: lanes.unwrap_or(4),
                        src: (tile.buf, from),
                        dst: (y.buf, to),
                        n,
                        whole: lanes.is_some(),
                    },
                );
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
