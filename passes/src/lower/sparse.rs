//! Products with weights that have many zeros: noticed, priced, and computed with what is not zero.
//!
//! Nothing is pruned here: only weights that are zero as found are left out, in constants and in terms that have a pattern of zeros.
//! Numbers that are not finite times a weight of zero are left out with it.

use super::blocked::{self, transposed};
use super::linear::dense;
use super::{KernelArg, Lowerer, Noticed, Options, WeightSource, codes, conv, linear};
use crate::schedules::Num;
use crate::schedules::codes::column_sums;
use crate::schedules::conv::{Conv, Pixels};
use crate::schedules::sparse::{FOUR, Lanes, OfCodes, PackedWeights, Place, Sparse};
use lapidary_ir::encodings::Encoding;
use lapidary_ir::ops::OpError;
use lapidary_ir::target::Target;
use lapidary_ir::{Constant, Dim, ElemType, Module, NodeId, ValueId};
use std::collections::HashSet;
use std::sync::Arc;

/// Weights looked at before all of them: where few of these are zero, few are.
const SAMPLE: usize = 1 << 14;
/// With a larger share that is not zero, nothing is gained.
const DENSE: f64 = 0.75;
/// A prediction that is no better than this is not worth another kernel.
const WORTHWHILE: f64 = 0.85;
/// Most lanes of all taps that a table lists: a large image has many, and each takes four bytes.
const MOST_LISTED: i64 = 1 << 22;
/// Operations worth waking another thread for.
const THREAD_WORK: i64 = 64 << 10;

/// Notices zeros in the weights of products, and decides which are computed with sparse weights.
pub fn find(low: &mut Lowerer) {
    for region in low.facts.module.reachable_regions() {
        for n in low.facts.module.region(region).nodes.clone() {
            if let Some(noticed) = notice(low, n) {
                low.sparse.insert(n, noticed);
            }
        }
    }
}

fn notice(low: &Lowerer, n: NodeId) -> Option<Noticed> {
    if !low.target.micro_kernels || !low.options.sparse {
        return None;
    }
    let (spec, w, matrix) = match low.facts.module.node(n).op.name {
        "conv" | "fused_conv" => {
            let plan = conv::plan(&low.facts, n)?;
            let spec = of_conv(low, n, &plan)?;
            let matrix = Matrix::filters(&spec);
            (spec, plan.filters?, matrix)
        }
        "quantized_conv" => {
            let plan = conv::plan(&low.facts, n)?;
            let spec = of_codes(low, &plan.conv.flattened())?;
            let matrix = Matrix::filters(&spec);
            (spec, plan.filters?, matrix)
        }
        "matmul" | "fused_linear" | "quantized_linear" => {
            let plan = linear::plan(&low.facts, n)?;
            let spec = of_linear(low, &plan)?;
            let (w, matrix) = of_product(low, &plan, &spec)?;
            (spec, w, matrix)
        }
        _ => return None,
    };
    let weights: u64 = w.shape().iter().map(|&d| d as u64).product();
    let bytes = dense(&w).ok()?;
    let size = if spec.codes.is_some() { 1 } else { 4 };
    let numbers = |bytes: &[u8]| bytes.chunks_exact(size).filter(|b| !is_zero(b)).count();
    let sample = &bytes[..bytes.len().min(size * SAMPLE)];
    if weights == 0 || numbers(sample) as f64 > DENSE * (sample.len() / size) as f64 {
        return None;
    }
    let nonzeros = numbers(&bytes) as u64;
    let entries = match spec.codes {
        Some(_) => matrix.entries(&spec, &bytes),
        None => nonzeros,
    };
    low.facts.module.sources.release(bytes.len());
    let bf16 = low.multiplies_bf16();
    let (sparse, dense) = spec.times(entries, bf16, &low.target.speeds());
    Some(Noticed {
        weight: name_of(low, n),
        weights,
        nonzeros,
        predicted: sparse / dense,
        sparse: sparse < WORTHWHILE * dense,
    })
}

/// Where the weight of a row, tap and channel is.
#[derive(Clone, Copy)]
struct Matrix {
    row: i64,
    tap: i64,
    channel: i64,
    /// Weights are codes, in units of four channels.
    codes: bool,
}

impl Matrix {
    /// `[channel][row]`
    fn columns(spec: &Sparse) -> Matrix {
        Matrix {
            row: 1,
            tap: 0,
            channel: spec.n,
            codes: spec.codes.is_some(),
        }
    }

    /// `[row][channel]`
    fn rows(spec: &Sparse) -> Matrix {
        Matrix {
            row: spec.channels,
            tap: 0,
            channel: 1,
            codes: false,
        }
    }

    /// `[row][channel][tap]`
    fn filters(spec: &Sparse) -> Matrix {
        let codes = spec.codes.is_some();
        let channels = spec.channels * if codes { FOUR } else { 1 };
        Matrix {
            row: channels * spec.taps,
            tap: 1,
            channel: spec.taps,
            codes,
        }
    }

    /// The bits of a unit of weights that are not all zero.
    fn unit(self, bytes: &[u8], row: i64, tap: i64, channel: i64) -> Option<u32> {
        let at = |c: i64| (row * self.row + tap * self.tap + c * self.channel) as usize;
        if self.codes {
            let code = |i| bytes[at(FOUR * channel + i)];
            let bits = u32::from_le_bytes([code(0), code(1), code(2), code(3)]);
            return (bits != 0).then_some(bits);
        }
        let number = bytes[4 * at(channel)..].first_chunk()?;
        (!is_zero(number)).then_some(u32::from_le_bytes(*number))
    }

    /// Units that are not zero, in the order in which they lie.
    fn entries(self, spec: &Sparse, bytes: &[u8]) -> u64 {
        let there = |row, tap, channel| self.unit(bytes, row, tap, channel).is_some();
        let mut n = 0;
        if self.row == 1 {
            for channel in 0..spec.channels {
                n += (0..spec.n).filter(|&row| there(row, 0, channel)).count();
            }
        } else {
            for (row, channel) in (0..spec.n).flat_map(|r| (0..spec.channels).map(move |c| (r, c)))
            {
                n += (0..spec.taps).filter(|&t| there(row, t, channel)).count();
            }
        }
        n as u64
    }
}

/// The weights of a product, and how they lie: a constant, or a term that is used transposed.
fn of_product(low: &Lowerer, plan: &linear::Plan, spec: &Sparse) -> Option<(Constant, Matrix)> {
    let module = &low.facts.module;
    if let Some(w) = module.as_constant(plan.w) {
        return Some((w.clone(), Matrix::columns(spec)));
    }
    // Other terms are not decoded to look for zeros.
    let term = transposed(module, plan.w).filter(|t| has_zeros(t.encoding()))?;
    spec.codes
        .is_none()
        .then(|| (term.clone(), Matrix::rows(spec)))
}

/// True for a term with a pattern of zeros.
fn has_zeros(e: &Encoding) -> bool {
    e.ctor.name == "sparse" || e.children.iter().any(|c| has_zeros(c))
}

/// Compressed constants that are read by products with sparse weights alone: they stay as they are.
pub fn taken(module: &Module, target: &Target, options: &Options) -> HashSet<ValueId> {
    let constants = (0..module.value_count() as u32).filter_map(|v| module.as_constant(ValueId(v)));
    if !constants.into_iter().any(|c| has_zeros(c.encoding())) {
        return HashSet::new();
    }
    let low = Lowerer::new(module.clone(), target.clone(), options.clone());
    blocked::taken(module, |n, c| {
        has_zeros(c.encoding()) && notice(&low, n).is_some_and(|n| n.sparse)
    })
}

/// The transpositions of such constants are never stored.
pub fn leave_unstored(low: &mut Lowerer) {
    let chosen = low.sparse.iter().filter(|(_, noticed)| noticed.sparse);
    let weights = chosen.filter_map(|(&n, _)| low.facts.module.node(n).operand(1));
    let terms = weights.filter(|&w| transposed(&low.facts.module, w).is_some());
    let terms: Vec<ValueId> = terms.collect();
    low.facts.inlined.extend(terms);
}

/// The weight's name in the model, or else the node's: nodes that rewriting made are named for others.
fn name_of(low: &Lowerer, n: NodeId) -> String {
    let node = low.facts.module.node(n);
    let quantized = matches!(node.op.name, "quantized_linear" | "quantized_conv");
    let module = &low.facts.module;
    let weight = node.operand(if quantized { 2 } else { 1 }).map(|w| {
        let term = module
            .producer(w)
            .filter(|_| transposed(module, w).is_some());
        let w = term.and_then(|t| module.node(t).operand(0)).unwrap_or(w);
        module.value(w).name.clone()
    });
    weight
        .filter(|w| !w.is_empty())
        .unwrap_or_else(|| node.name.clone())
}

fn is_zero(bytes: &[u8]) -> bool {
    let bits = bytes.iter().rev().fold(0u32, |n, &b| n << 8 | u32::from(b));
    bits << 1 == 0
}

/// True if a node is computed with sparse weights.
pub fn is_chosen(low: &Lowerer, n: NodeId) -> bool {
    low.sparse.get(&n).is_some_and(|s| s.sparse)
}

/// The share of the first-level cache that a panel takes.
fn panel_bytes(low: &Lowerer) -> i64 {
    low.target.l1_bytes as i64 * 3 / 4
}

/// Parts of the rows, so that each thread has work.
fn with_bands(low: &Lowerer, mut spec: Sparse) -> Sparse {
    let images = spec.images.known().unwrap_or(1);
    let blocks = images.saturating_mul(spec.tiles().unwrap_or(1)).max(1) as u64;
    let threads = u64::from(low.target.threads.max(1));
    let lanes = spec.lanes.known().unwrap_or(0);
    // The last tile has fewer lanes, so that there must be more parts than threads to share them evenly.
    let uneven = spec.codes.is_some() && lanes > spec.width() && lanes % spec.width() != 0;
    // A single lane has no panel that each part would fill again.
    let wanted = if spec.is_column() || uneven && threads > 1 {
        4 * threads
    } else {
        threads
    };
    let most = (spec.n as u64 / 64).max(1);
    spec.bands = wanted.div_ceil(blocks).clamp(1, most) as i64;
    // Sums that are carried from block to block of the inner extent stay in the second-level cache.
    let sums = spec.n as u64 * spec.width() as u64 * 4;
    spec.bands = spec
        .bands
        .max(sums.div_ceil(low.target.l2_bytes / 4) as i64);
    // No part without rows.
    let rows = (spec.n as u64).div_ceil(spec.bands as u64);
    spec.bands = (spec.n as u64).div_ceil(rows) as i64;
    spec
}

fn of_linear(low: &Lowerer, plan: &linear::Plan) -> Option<Sparse> {
    let (n, k) = (plan.n.as_const()?, plan.k.as_const()?);
    if plan.gemm.w_batched || plan.batch.as_const() != Some(1) {
        return None;
    }
    let rows = |columns: i64| Place {
        image: 0,
        first: 0,
        row: 1,
        lane: columns,
    };
    let codes = plan.gemm.codes.map(|codes| OfCodes {
        codes,
        tail: plan.gemm.tail.clone(),
        residuals: vec![rows(n); plan.gemm.tail.stages.len()],
    });
    let unit = if codes.is_some() { FOUR } else { 1 };
    if k % unit != 0 {
        return None;
    }
    let k = k / unit;
    let spec = Sparse {
        n,
        taps: 1,
        channels: k,
        images: Num::Const(1),
        lanes: plan.m.as_const().map_or(Num::Sym, Num::Const),
        from: Lanes::Stride(k),
        x: rows(k),
        y: rows(n),
        bias: plan.bias.is_some(),
        residual: plan.residual.map(|_| rows(n)),
        lo: plan.gemm.lo,
        hi: plan.gemm.hi,
        activation: plan.gemm.activation,
        bands: 1,
        panel_bytes: panel_bytes(low),
        codes,
    };
    Some(with_bands(low, spec))
}

/// A convolution of codes whose padding is in the input or none.
fn of_codes(low: &Lowerer, c: &Conv) -> Option<Sparse> {
    let [of_x, of_y] = [c.input, c.output].map(|[h, w]| h.checked_mul(w));
    let (of_x, of_y) = (of_x?, of_y?);
    let pixels = |at: Pixels, pixels: i64, unit: i64| {
        let whole = at.pitch % unit == 0 && at.first % unit == 0;
        whole.then_some(Place {
            image: pixels.checked_mul(at.pitch)? / unit,
            first: at.first / unit,
            row: 1,
            lane: at.pitch / unit,
        })
    };
    let x = pixels(c.x, of_x, FOUR)?;
    let listed = of_y.checked_mul(c.kernel[0] * c.kernel[1])?;
    let from = match c.is_product() {
        true => Lanes::Stride(x.lane),
        false if listed <= MOST_LISTED => Lanes::Table,
        false => return None,
    };
    let fits = i32::try_from(of_x.checked_mul(x.lane)?).is_ok();
    if c.groups != 1 || c.channels % FOUR != 0 || !fits || c.residual.is_some() {
        return None;
    }
    let dense = Pixels::dense(c.out_channels);
    let residual = |i| {
        let at = c.tail_residuals.get(i).copied().unwrap_or(dense);
        pixels(at, of_y, 1)
    };
    let residuals = (0..c.tail.stages.len()).map(residual);
    let spec = Sparse {
        n: c.out_channels,
        taps: c.kernel[0] * c.kernel[1],
        channels: c.channels / FOUR,
        images: c.batch,
        lanes: Num::Const(of_y),
        from,
        x,
        y: pixels(c.y, of_y, 1)?,
        bias: c.bias,
        residual: None,
        lo: c.lo,
        hi: c.hi,
        activation: None,
        bands: 1,
        panel_bytes: panel_bytes(low),
        codes: Some(OfCodes {
            codes: c.codes?,
            tail: c.tail.clone(),
            residuals: residuals.collect::<Option<_>>()?,
        }),
    };
    Some(with_bands(low, spec))
}

/// Where the pixels of an image are, if that can be counted.
fn pixels(low: &Lowerer, v: ValueId, channels: i64, pixels: i64) -> Option<Place> {
    Some(match low.facts.channels.get(&v) {
        Some(c) => Place {
            image: pixels.checked_mul(c.pitch)?,
            first: c.first,
            row: 1,
            lane: c.pitch,
        },
        None => Place {
            image: pixels.checked_mul(channels)?,
            first: 0,
            row: pixels,
            lane: 1,
        },
    })
}

fn of_conv(low: &Lowerer, n: NodeId, plan: &conv::Plan) -> Option<Sparse> {
    let y = *low.facts.module.node(n).results.first()?;
    let c = &plan.conv;
    let of_x = c.input[0].checked_mul(c.input[1])?;
    let of_y = c.output[0].checked_mul(c.output[1])?;
    let x = pixels(low, plan.x, c.channels, of_x)?;
    let far = of_x.checked_mul(x.lane)?;
    let listed = of_y.checked_mul(c.kernel[0] * c.kernel[1])?;
    let from = match c.is_product() {
        true => Lanes::Stride(x.lane),
        false if listed <= MOST_LISTED => Lanes::Table,
        false => return None,
    };
    if c.groups != 1 || c.codes.is_some() || i32::try_from(far).is_err() {
        return None;
    }
    let residual = match plan.residual {
        Some(r) => Some(pixels(low, r, c.out_channels, of_y)?),
        None => None,
    };
    let spec = Sparse {
        n: c.out_channels,
        taps: c.kernel[0] * c.kernel[1],
        channels: c.channels,
        images: c.batch,
        lanes: Num::Const(of_y),
        from,
        x,
        y: pixels(low, y, c.out_channels, of_y)?,
        bias: plan.bias.is_some(),
        residual,
        lo: c.lo,
        hi: c.hi,
        activation: c.activation,
        bands: 1,
        panel_bytes: panel_bytes(low),
        codes: None,
    };
    Some(with_bands(low, spec))
}

/// The steps of a matrix product.
pub fn linear(low: &mut Lowerer, n: NodeId, plan: linear::Plan) -> Result<(), OpError> {
    let spec = of_linear(low, &plan).ok_or_else(no_schedule)?;
    let (w, matrix) = of_product(low, &plan, &spec).ok_or_else(no_schedule)?;
    let columns = spec.n as usize;
    let k = w.shape().iter().product::<usize>() / columns;
    let sums: codes::Sums = Arc::new(move |bytes, out| {
        column_sums(bytes, [1, k, columns], |_, kk, j| kk * columns + j, out);
    });
    let made = match &spec.codes {
        Some(of) => codes::params(low, n, of.codes, columns, sums)?,
        None => vec![],
    };
    let product = Product {
        x: plan.a,
        made,
        bias: plan.bias,
        added: match &spec.codes {
            Some(_) => codes::tail_operands(low, n, &plan.tail),
            None => plan.residual.into_iter().collect(),
        },
        y: low.facts.module.node(n).results[0],
        table: None,
        lanes: plan.m.clone(),
        images: Dim::from(1i64),
    };
    product.launch(low, spec, w, matrix)
}

/// The steps of a convolution of codes, whose input, result and tail are where `c` says; false if these have no schedule.
pub fn conv_of_codes(low: &mut Lowerer, n: NodeId, c: &Conv, at: CodesAt) -> Result<bool, OpError> {
    let c = c.flattened();
    let (Some(spec), Some(codes)) = (of_codes(low, &c), c.codes) else {
        if let Some(noticed) = low.sparse.get_mut(&n) {
            noticed.sparse = false;
        }
        return Ok(false);
    };
    let w = codes::constant(low, n)?;
    let own = c.clone();
    let sums: codes::Sums = Arc::new(move |bytes, out| own.sums(bytes, out));
    let table =
        (spec.from == Lanes::Table).then(|| spec.table(|tap, lane| place(&c, &spec, tap, lane)));
    let product = Product {
        x: at.x,
        made: codes::params(low, n, codes, c.out_channels as usize, sums)?,
        bias: at.bias,
        added: codes::tail_operands(low, n, at.tail),
        y: at.y,
        table,
        lanes: Dim::from(c.output[0] * c.output[1]),
        images: match c.batch {
            Num::Const(n) => Dim::from(n),
            Num::Sym => at.images.clone(),
        },
    };
    let matrix = Matrix::filters(&spec);
    product.launch(low, spec, w, matrix)?;
    Ok(true)
}

/// Where a convolution of codes finds what it needs.
pub struct CodesAt<'a> {
    pub x: ValueId,
    pub bias: Option<ValueId>,
    pub tail: &'a [codes::TailValues],
    pub y: ValueId,
    pub images: &'a Dim,
}

/// The element that a tap of a lane's window is, unless it is in the padding.
fn place(c: &Conv, spec: &Sparse, tap: i64, lane: i64) -> Option<i64> {
    let (ky, kx) = (tap / c.kernel[1], tap % c.kernel[1]);
    let (oy, ox) = (lane / c.output[1], lane % c.output[1]);
    let at = |o: i64, k: i64, axis: usize| {
        let i = o * c.strides[axis] + k * c.dilations[axis] - c.pads[axis];
        (0..c.input[axis]).contains(&i).then_some(i)
    };
    let (y, x) = (at(oy, ky, 0)?, at(ox, kx, 1)?);
    Some((y * c.input[1] + x) * spec.x.lane)
}

/// The steps of a convolution.
pub fn conv(low: &mut Lowerer, n: NodeId, plan: conv::Plan) -> Result<(), OpError> {
    let spec = of_conv(low, n, &plan).ok_or_else(no_schedule)?;
    let c = &plan.conv;
    let table =
        (spec.from == Lanes::Table).then(|| spec.table(|tap, lane| place(c, &spec, tap, lane)));
    let product = Product {
        x: plan.x,
        made: vec![],
        bias: plan.bias,
        added: plan.residual.into_iter().collect(),
        y: low.facts.module.node(n).results[0],
        table,
        lanes: Dim::from(c.output[0] * c.output[1]),
        images: plan.batch.clone(),
    };
    let matrix = Matrix::filters(&spec);
    let filters =
        (plan.filters.clone()).ok_or_else(|| OpError::new("the filters are not constant"))?;
    product.launch(low, spec, filters, matrix)
}

fn no_schedule() -> OpError {
    OpError::new("weights that were noticed as sparse have no schedule")
}

/// What a launch needs besides the schedule.
struct Product {
    x: ValueId,
    /// Parameters of codes.
    made: Vec<ValueId>,
    bias: Option<ValueId>,
    /// A residual, or the operands of a tail.
    added: Vec<ValueId>,
    y: ValueId,
    table: Option<Vec<u8>>,
    lanes: Dim,
    images: Dim,
}

impl Product {
    /// Launches the kernel.
    fn launch(
        self,
        low: &mut Lowerer,
        spec: Sparse,
        w: Constant,
        matrix: Matrix,
    ) -> Result<(), OpError> {
        let bytes = dense(&w).map_err(OpError::new)?;
        let there = |row, tap, channel| matrix.unit(&bytes, row, tap, channel).is_some();
        let (parts, entries) = spec.sizes(there);
        low.facts.module.sources.release(bytes.len());
        let own = spec.clone();
        let made = move || -> Result<Vec<u8>, String> {
            let bytes = dense(&w)?;
            let packed: PackedWeights =
                own.pack(|row, tap, channel| matrix.unit(&bytes, row, tap, channel));
            Ok(packed.parts().into_iter().flatten().copied().collect())
        };
        let weights = low.made_together(&parts, WeightSource::Made(Arc::new(made)));
        let mut values: Vec<ValueId> = [self.x].into_iter().chain(weights).collect();
        if let Some(table) = self.table {
            let n = table.len() / 4;
            let source = WeightSource::Bytes(table.into());
            values.push(low.made_weight(ElemType::I32, vec![n], source));
        }
        values.extend(self.made);
        values.extend(self.bias);
        values.extend(self.added);
        values.push(self.y);
        let mut args: Vec<KernelArg> = values.into_iter().map(KernelArg::Value).collect();
        for (num, size) in [(spec.images, &self.images), (spec.lanes, &self.lanes)] {
            if num == Num::Sym {
                args.push(KernelArg::Size(size.clone()));
            }
        }
        let width = Dim::from(spec.width());
        let grid = Dim::from(spec.bands) * &self.images * self.lanes.ceil_div(&width);
        let unit = if spec.codes.is_some() { FOUR } else { 1 };
        let work = 2 * unit * entries as i64;
        let flops = Dim::from(work) * &self.images * &self.lanes;
        let per_block = work / spec.bands * spec.width();
        let grain = (THREAD_WORK / per_block.max(1)).clamp(1, 1 << 20) as u32;
        low.launch(spec.kernel("sparse"), &args, &grid, grain, &flops)
    }
}

#[cfg(test)]
mod tests;
