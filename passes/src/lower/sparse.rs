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
    let (sparse, dense) = spec.times(entries, &low.target.speeds());
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
mod tests {
    use crate::lower::checks::{check, check_lowered, numbers};
    use crate::lower::codes::tests::{product, with_tail};
    use lapidary_ir::encodings::{Encoding, dense, int, sparse};
    use lapidary_ir::{Attr, Attrs, ElemType, Tensor};

    /// Input, filters, strides, pads.
    type Case = (
        &'static [usize],
        &'static [usize],
        &'static [i64],
        &'static [i64],
    );

    /// Random weights of which one in `keep` is not zero, unevenly over the rows.
    fn weights(shape: &[usize], keep: usize) -> Tensor {
        let all = numbers(shape, 31).to_f64s().expect("numbers");
        let some = all.iter().enumerate().map(|(i, &v)| {
            let spread = i.wrapping_mul(2_654_435_761) >> 7;
            if spread % keep == 0 || i % 97 < 2 {
                v
            } else {
                0.0
            }
        });
        Tensor::from_f64(lapidary_ir::ElemType::F32, shape.to_vec(), some.collect())
    }

    #[test]
    fn products_with_sparse_weights() {
        // Rows, inner extent, columns: one lane, few, many, with and without rests, more than a panel holds.
        let cases = [
            (1, 70, 45),
            (5, 40, 9),
            (16, 300, 130),
            (40, 33, 64),
            (130, 520, 70),
            (64, 96, 128),
        ];
        for (m, k, n) in cases {
            for (activation, residual, symbolic) in [
                ("", false, false),
                ("Relu", true, false),
                ("Gelu", true, false),
                ("Clip", true, true),
            ] {
                let (a, r): (&[usize], &[usize]) = (&[m, k], &[m, n]);
                let shapes: Vec<&[usize]> = if residual { vec![a, r] } else { vec![a] };
                let name = format!("{m} {k} {n} {activation}");
                let kernels = check(&name, &shapes, symbolic, |b, x| {
                    let (w, bias) = (weights(&[k, n], 12), numbers(&[n], 6));
                    let operands = vec![
                        Some(x[0]),
                        Some(b.constant(&w)),
                        Some(b.constant(&bias)),
                        x.get(1).copied(),
                    ];
                    let attrs: Attrs = [
                        ("activation".into(), Attr::Str(activation.into())),
                        ("activation_params".into(), Attr::Floats(vec![-0.5, 0.75])),
                    ]
                    .into();
                    b.node("fused_linear", operands, attrs, 1)
                        .expect("a product")[0]
                });
                assert_eq!(kernels, 1, "{name}");
            }
        }
    }

    #[test]
    fn convolutions_with_sparse_weights() {
        let ints = |v: &[i64]| Attr::Ints(v.to_vec());
        // Input, filters, strides, pads: products of pixels, windows, a single pixel, channels that are cut.
        let cases: &[Case] = &[
            (&[1, 24, 6, 7], &[33, 24, 1, 1], &[1, 1], &[0, 0, 0, 0]),
            (&[2, 12, 9, 10], &[40, 12, 3, 3], &[1, 1], &[1, 1, 1, 1]),
            (&[1, 200, 9, 8], &[7, 200, 3, 2], &[2, 1], &[1, 0, 0, 1]),
            (&[1, 90, 1, 1], &[50, 90, 1, 1], &[1, 1], &[0, 0, 0, 0]),
            (&[1, 30, 40], &[20, 30, 5], &[2], &[2, 1]),
        ];
        for (shape, filters, strides, pads) in cases {
            for (residual, symbolic) in [(false, false), (true, false), (false, true)] {
                let name = format!("{shape:?} {filters:?} {residual}");
                let out = |i: usize| {
                    let reach = shape[2 + i] as i64 + pads[i] + pads[strides.len() + i];
                    ((reach - filters[2 + i] as i64) / strides[i] + 1) as usize
                };
                let mut result = vec![shape[0], filters[0]];
                result.extend((0..strides.len()).map(out));
                let shapes: Vec<&[usize]> = match residual {
                    true => vec![shape, &result],
                    false => vec![shape],
                };
                check(&name, &shapes, symbolic, |b, x| {
                    let (w, bias) = (weights(filters, 14), numbers(&filters[..1], 6));
                    let operands = vec![
                        Some(x[0]),
                        Some(b.constant(&w)),
                        Some(b.constant(&bias)),
                        x.get(1).copied(),
                    ];
                    let attrs: Attrs = [
                        ("strides".into(), ints(strides)),
                        ("pads".into(), ints(pads)),
                        ("activation".into(), Attr::Str("Relu".into())),
                    ]
                    .into();
                    b.node("fused_conv", operands, attrs, 1).expect("pixels")[0]
                });
            }
        }
    }

    #[test]
    fn products_of_sparse_codes() {
        // One vector of lanes, many, with and without rests, more than a panel holds.
        for (m, k, n) in [(16, 1200, 260), (50, 512, 160), (130, 520, 100)] {
            for form in [
                (9, 0, false, None),
                (9, 100, true, None),
                (9, 77, false, Some(ElemType::I8)),
                (9, 0, true, Some(ElemType::U8)),
                (9, -1, true, None),
            ] {
                let symbolic = m == 130;
                let name = format!("{m} {k} {n} {form:?}");
                let lowered = check_lowered(&name, &[&[m, k]], symbolic, |b, x| {
                    product(b, x[0], "quantized_linear", &[k, n], form, &[])
                });
                let noticed = &lowered.report.noticed;
                assert!(noticed.len() == 1 && noticed[0].sparse, "{noticed:?}");
            }
            let lowered = check_lowered("tail", &[&[m, k], &[m, n]], false, |b, x| {
                with_tail(b, x[0], x[1], "quantized_linear", &[k, n], 9, &[])
            });
            assert!(lowered.report.noticed[0].sparse, "{m} {k} {n}");
        }
    }

    /// Terms with a pattern of zeros are multiplied as they are: nothing is decoded when a model is loaded, or stored dense.
    #[test]
    fn products_of_sparse_terms() {
        for (m, k, n) in [(1, 1200, 260), (50, 512, 160)] {
            for rows in [false, true] {
                let w = weights(&[n, k], if rows { 30 } else { 9 });
                let term = term(&w, rows);
                let lowered = check_lowered("terms", &[&[m, k]], false, |b, x| {
                    let w = b.term(&std::sync::Arc::new(term));
                    let w = b.transpose(w, &[1, 0]).expect("a matrix");
                    b.op("matmul", &[x[0], w]).expect("fits")
                });
                assert!(lowered.report.noticed[0].sparse, "{m} {rows}");
                assert!(lowered.program.prepare.steps.is_empty());
                assert!(lowered.program.weights_bytes < (n * k) as u64 * 2);
            }
        }
        // What something else reads is decoded, once for both.
        let w = weights(&[160, 512], 9);
        let shared = check_lowered("shared", &[&[50, 512]], false, |b, x| {
            let w = b.term(&std::sync::Arc::new(term(&w, false)));
            let t = b.transpose(w, &[1, 0]).expect("a matrix");
            let y = b.op("matmul", &[x[0], t]).expect("fits");
            b.op("matmul", &[y, w]).expect("fits")
        });
        assert!(shared.report.noticed.is_empty() && !shared.program.prepare.steps.is_empty());
    }

    /// The values of a matrix that are not zero, by rows or marked in a bitmap.
    fn term(w: &Tensor, by_rows: bool) -> Encoding {
        let (n, k) = (w.shape()[0], w.shape()[1]);
        let all = w.to_f64s().expect("numbers");
        let kept: Vec<usize> = (0..n * k).filter(|&i| all[i] != 0.0).collect();
        let values = kept.iter().map(|&i| all[i]).collect();
        let values = dense::from_tensor(&Tensor::from_f64(ElemType::F32, [kept.len()], values));
        if !by_rows {
            let marks = int::pack(all.iter().map(|&v| u8::from(v != 0.0)), 1);
            return sparse::bitmap(
                vec![n, k],
                values,
                int::int(ElemType::U8, 1, vec![n, k], marks.into()),
            );
        }
        let integers = |elem, v: Vec<usize>| {
            let v: Vec<i128> = v.into_iter().map(|v| v as i128).collect();
            dense::from_tensor(&Tensor::from_int(elem, [v.len()], v))
        };
        let starts = (0..=n)
            .map(|r| kept.partition_point(|&i| i < r * k))
            .collect();
        let columns = kept.iter().map(|&i| i % k).collect();
        sparse::rows(
            [n, k],
            values,
            integers(ElemType::U32, starts),
            integers(ElemType::U16, columns),
        )
    }

    #[test]
    fn convolutions_of_sparse_codes() {
        let ints = |v: &[i64]| Attr::Ints(v.to_vec());
        // Products of pixels of several images, windows, channels that are cut, few pixels, every second pixel, one axis.
        let cases: &[Case] = &[
            (&[2, 320, 6, 7], &[133, 320, 1, 1], &[1, 1], &[0, 0, 0, 0]),
            (&[2, 64, 9, 10], &[80, 64, 3, 3], &[1, 1], &[1, 1, 1, 1]),
            (&[1, 240, 9, 8], &[100, 240, 3, 2], &[2, 1], &[1, 0, 0, 1]),
            (&[1, 800, 4, 4], &[150, 800, 1, 1], &[1, 1], &[0, 0, 0, 0]),
            (&[1, 576, 13, 13], &[130, 576, 1, 1], &[2, 2], &[0, 0, 0, 0]),
            (&[1, 64, 60], &[196, 64, 5], &[2], &[2, 1]),
        ];
        for &(shape, filters, strides, pads) in cases {
            let out = |i: usize| {
                let reach = shape[2 + i] as i64 + pads[i] + pads[strides.len() + i];
                ((reach - filters[2 + i] as i64) / strides[i] + 1) as usize
            };
            let mut result = vec![shape[0], filters[0]];
            result.extend((0..strides.len()).map(out));
            let attrs = [("strides", ints(strides)), ("pads", ints(pads))];
            for (form, symbolic) in [
                ((9, 0, false, None), false),
                ((9, 77, true, Some(ElemType::I8)), false),
                ((9, 100, true, Some(ElemType::U8)), true),
            ] {
                let name = format!("{shape:?} {filters:?} {form:?}");
                let lowered = check_lowered(&name, &[shape], symbolic, |b, x| {
                    product(b, x[0], "quantized_conv", filters, form, &attrs)
                });
                let noticed = &lowered.report.noticed;
                assert!(
                    noticed.len() == 1 && noticed[0].sparse,
                    "{name} {noticed:?}"
                );
            }
            check("tail", &[shape, &result], false, |b, x| {
                with_tail(b, x[0], x[1], "quantized_conv", filters, 9, &attrs)
            });
        }
    }

    #[test]
    fn half_of_each_four_is_no_gain_for_codes() {
        let lowered = check_lowered("2:4", &[&[64, 64]], false, |b, x| {
            let half = (0..64 * 96).map(|i| {
                if i / 96 % 4 < 2 {
                    1 + i as i128 % 90
                } else {
                    0
                }
            });
            let w = Tensor::from_int(ElemType::I8, [64, 96], half.collect());
            let (s, z) = (
                b.scalar(ElemType::F32, 0.01),
                b.constant(&Tensor::from_int(ElemType::U8, [], vec![9])),
            );
            let a = b.op("quantize_linear", &[x[0], s, z]).expect("codes");
            let w = b.constant(&w);
            let scale = b.constant(&Tensor::from_f64(ElemType::F32, [96], vec![1e-4; 96]));
            let operands = [Some(a), Some(z), Some(w), Some(scale)];
            b.multi("quantized_linear", &operands, &[], 1)
                .expect("a product")[0]
        });
        let noticed = &lowered.report.noticed;
        assert_eq!(
            (noticed[0].nonzeros, noticed[0].sparse),
            (64 * 96 / 2, false)
        );
    }
}
