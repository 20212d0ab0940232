//! The kernel of a sparse product.

use super::{Blocks, FOUR, Lanes, OfCodes, Place, Sparse};
use crate::schedules::activation::Activation;
use crate::schedules::codes::{self, Params, TailParams};
use crate::schedules::{add, add_const, mul_const};
use lapidary_abi::kernel::MAX_ROWS_INIT_I8;
use lapidary_ir::ElemType;
use lapidary_ir::kernel::build::KernelBuilder;
use lapidary_ir::kernel::contraction::{self, Epilogue, PANEL, RowsAt, load_sums};
use lapidary_ir::kernel::map::{Map, map};
use lapidary_ir::kernel::moves::{self, Move, moves};
use lapidary_ir::kernel::sparse::{Packed, Rows, SparseTile, sparse};
use lapidary_ir::kernel::{Axis, Binary, Buf, Extent, Kernel, TileElem, TileType, Var};

impl Sparse {
    /// The kernel. Parameters: `x`, the parts of [`PackedWeights`](super::PackedWeights), `lanes`? (the table), those of
    /// [`Params`], `bias`?, `residual`?, those of [`TailParams`], `y`, then those of `images` and `lanes` that are
    /// [`Num::Sym`](crate::schedules::Num::Sym).
    pub fn kernel(&self, name: &str) -> Kernel {
        let mut b = KernelBuilder::new(name);
        let [of_values, of_x, _] = self.form().elems();
        let x = b.buffer("x", of_x, false);
        let matrix = Packed {
            values: b.buffer("values", of_values, false),
            offsets: b.buffer("offsets", ElemType::U16, false),
            starts: b.buffer("starts", ElemType::U32, false),
            rows: b.buffer("rows", ElemType::U32, false),
        };
        let ranges = b.buffer("ranges", ElemType::U32, false);
        let table = (self.from == Lanes::Table).then(|| b.buffer("lanes", ElemType::I32, false));
        let of_codes = self.codes.as_ref();
        let params = of_codes.map(|of| of.codes.params(&mut b));
        let bias = self.bias.then(|| b.buffer("bias", ElemType::F32, false));
        let residual = self
            .residual
            .map(|at| (b.buffer("residual", ElemType::F32, false), at));
        let results = params.zip(of_codes).map(|(params, of)| Results {
            of,
            params,
            tail: of.tail.params(&mut b),
            bias,
        });
        let of_y = of_codes.map_or(ElemType::F32, |of| codes::result(Some(of.codes), &of.tail));
        let y = b.buffer("y", of_y, true);
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
            bias: bias.filter(|_| of_codes.is_none()).map(|buf| (buf, row0)),
            results,
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
    /// Codes are multiplied.
    results: Option<Results<'s>>,
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

/// What makes results of sums of codes.
struct Results<'s> {
    of: &'s OfCodes,
    params: Params,
    tail: TailParams,
    bias: Option<Buf>,
}

/// Lanes that results are made of at a time.
const LANES: u32 = MAX_ROWS_INIT_I8 as u32;
/// Most rows of the weights that results are made of at a time.
const MOST_ROWS: u32 = 128;

impl Writer<'_> {
    fn body(&mut self, b: &mut KernelBuilder) {
        let (spec, count) = (self.spec, self.blocks.count);
        let width = spec.width();
        if !spec.in_place() {
            let len = (self.blocks.taps * self.blocks.channels * width) as u32;
            self.panel = Some(match self.results {
                Some(_) => b.scratch(ElemType::U8, len * FOUR as u32),
                None => b.scratch(ElemType::F32, len),
            });
        }
        if self.results.is_some() {
            return self.body_of_codes(b);
        }
        let direct = |p: Place| p.lane == 1 || spec.is_column();
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

    /// All sums in scratch memory, then results of them.
    fn body_of_codes(&mut self, b: &mut KernelBuilder) {
        let (width, chunk) = (self.spec.width(), self.chunk());
        let rows = (self.spec.band_rows() as u64).next_multiple_of(u64::from(chunk));
        let sums = b.scratch(ElemType::I32, rows as u32 * width as u32);
        self.sums = Some(sums);
        let (zero, one, count) = (b.index(0), b.index(1), b.index(self.blocks.count));
        self.block(b, zero, None, None, true);
        if self.blocks.count > 1 {
            let partial = self.sums_rows(b);
            b.for_loop(one, count, 1, &[], |b, block, _| {
                self.block(b, block, partial, None, false);
                vec![]
            });
        }
        let Some(results) = &self.results else {
            unreachable!("codes are multiplied")
        };
        let all = b.index(width);
        let (here, rows) = (b.binary(Binary::Min, self.left, all), self.rows_here(b));
        b.for_loop(zero, here, LANES, &[], |b, lane, _| {
            b.for_loop(zero, rows, chunk, &[], |b, row, _| {
                self.results_of(b, results, sums, [lane, here], [row, rows]);
                vec![]
            });
            vec![]
        });
    }

    /// Rows of the weights that results are made of at a time.
    fn chunk(&self) -> u32 {
        let rows = self.spec.band_rows() as u64;
        rows.next_multiple_of(u64::from(PANEL))
            .min(u64::from(MOST_ROWS)) as u32
    }

    /// The results of some lanes and rows, from these up to these.
    fn results_of(
        &self,
        b: &mut KernelBuilder,
        results: &Results,
        sums: Buf,
        [lane, lanes_end]: [Var; 2],
        [row, rows_end]: [Var; 2],
    ) {
        let (spec, of, chunk) = (self.spec, results.of, self.chunk());
        let width = spec.width();
        let [lanes, cols] = [(lanes_end, lane), (rows_end, row)]
            .map(|(end, first)| b.binary(Binary::Sub, end, first));
        let column = add(b, self.row0, row);
        let pixel = add(b, self.lane0, lane);
        let mut rows_at = |place: Place| {
            let image = self.image_at(b, place);
            let pixel = mul_const(b, pixel, place.lane);
            let at = add(b, image, pixel);
            RowsAt {
                base: add(b, at, column),
                rows: Axis::stride(place.lane).valid(lanes),
            }
        };
        let c_at = rows_at(spec.y);
        let stages = of
            .tail
            .stages(&results.tail, column, |i| rows_at(of.residuals[i]));
        let scaled = of.codes.scaled(b, results.params, column);
        let (lo, hi) = of.codes.bounds(spec.lo, spec.hi);
        let skip = mul_const(b, row, width);
        let base = add(b, skip, lane);
        let acc = load_sums(b, sums, base, width, [LANES, chunk]);
        let exact = |n: i64| n % i64::from(chunk) == 0;
        let epilogue = Epilogue {
            scaled: Some(scaled),
            bias: results.bias.map(|buf| (buf, column)),
            residual: None,
            lo,
            hi,
            code: of.tail.code().or(of.codes.code()),
            stages,
            table: of.tail.table(&results.tail),
            c: self.y,
            c_at,
            cols: (!exact(spec.n) || !exact(spec.band_rows())).then_some(cols),
        };
        contraction::epilogue(b, acc, epilogue);
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
        add_const(b, image, at.first)
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
        let next = add_const(b, at, 1);
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
            form: self.spec.form(),
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
                fours: self.results.is_some(),
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
            fours: false,
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
        if spec.y.lane == 1 || spec.is_column() {
            let m = Move {
                fours: false,
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
                fours: false,
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
