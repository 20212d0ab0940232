//! Products with weights that have many zeros: noticed, priced, and computed with what is not zero.
//!
//! Nothing is pruned here: only weights that are zero as found are left out. Numbers that are not finite times a weight
//! of zero are left out with it.

use super::linear::dense;
use super::{KernelArg, Lowerer, Noticed, WeightSource, conv, linear};
use crate::schedules::Num;
use crate::schedules::sparse::{Lanes, PackedWeights, Place, Sparse};
use lapidary_ir::ops::OpError;
use lapidary_ir::{Constant, Dim, ElemType, NodeId, ValueId};
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
    let (spec, w) = match low.facts.module.node(n).op.name {
        "conv" | "fused_conv" => {
            let plan = conv::plan(&low.facts, n)?;
            (of_conv(low, n, &plan)?, plan.w)
        }
        "matmul" | "fused_linear" => {
            let plan = linear::plan(&low.facts, n)?;
            let w = low.facts.module.as_constant(plan.w)?.clone();
            (of_linear(low, &plan)?, w)
        }
        _ => return None,
    };
    let weights: u64 = w.shape().iter().map(|&d| d as u64).product();
    let bytes = dense(&w).ok()?;
    let numbers = |bytes: &[u8]| bytes.chunks_exact(4).filter(|b| !is_zero(b)).count();
    let sample = &bytes[..bytes.len().min(4 * SAMPLE)];
    if weights == 0 || numbers(sample) as f64 > DENSE * (sample.len() / 4) as f64 {
        return None;
    }
    let nonzeros = numbers(&bytes) as u64;
    low.facts.module.sources.release(bytes.len());
    let (sparse, dense) = spec.cycles(nonzeros);
    Some(Noticed {
        weight: name_of(low, n),
        weights,
        nonzeros,
        predicted: sparse / dense,
        sparse: sparse < WORTHWHILE * dense,
    })
}

/// The weight's name in the model, or else the node's: nodes that rewriting made are named for others.
fn name_of(low: &Lowerer, n: NodeId) -> String {
    let node = low.facts.module.node(n);
    let weight = node
        .operand(1)
        .map(|w| low.facts.module.value(w).name.clone());
    weight
        .filter(|w| !w.is_empty())
        .unwrap_or_else(|| node.name.clone())
}

fn is_zero(bytes: &[u8]) -> bool {
    let bits = bytes.iter().rev().fold(0u32, |n, &b| n << 8 | u32::from(b));
    bits << 1 == 0
}

fn number(bytes: &[u8], i: i64) -> f32 {
    let at = 4 * i as usize;
    f32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
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
    // A single lane has no panel that each part would fill again.
    let wanted = if spec.shape() == 2 {
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
    };
    Some(with_bands(low, spec))
}

/// The steps of a matrix product.
pub fn linear(low: &mut Lowerer, n: NodeId, plan: linear::Plan) -> Result<(), OpError> {
    let spec = of_linear(low, &plan).ok_or_else(no_schedule)?;
    let w = low.facts.module.as_constant(plan.w).cloned();
    let w = w.ok_or_else(no_schedule)?;
    let columns = spec.n;
    let product = Product {
        x: plan.a,
        bias: plan.bias,
        residual: plan.residual,
        y: low.facts.module.node(n).results[0],
        table: None,
        lanes: plan.m.clone(),
        images: Dim::from(1i64),
    };
    product.launch(low, spec, w, move |row, _, channel| channel * columns + row)
}

/// The steps of a convolution.
pub fn conv(low: &mut Lowerer, n: NodeId, plan: conv::Plan) -> Result<(), OpError> {
    let spec = of_conv(low, n, &plan).ok_or_else(no_schedule)?;
    let c = &plan.conv;
    let place = |tap: i64, lane: i64| {
        let (ky, kx) = (tap / c.kernel[1], tap % c.kernel[1]);
        let (oy, ox) = (lane / c.output[1], lane % c.output[1]);
        let at = |o: i64, k: i64, axis: usize| {
            let i = o * c.strides[axis] + k * c.dilations[axis] - c.pads[axis];
            (0..c.input[axis]).contains(&i).then_some(i)
        };
        let (y, x) = (at(oy, ky, 0)?, at(ox, kx, 1)?);
        Some((y * c.input[1] + x) * spec.x.lane)
    };
    let table = (spec.from == Lanes::Table).then(|| spec.table(place));
    let product = Product {
        x: plan.x,
        bias: plan.bias,
        residual: plan.residual,
        y: low.facts.module.node(n).results[0],
        table,
        lanes: Dim::from(c.output[0] * c.output[1]),
        images: plan.batch.clone(),
    };
    let (channels, taps) = (spec.channels, spec.taps);
    product.launch(low, spec, plan.w, move |row, tap, channel| {
        (row * channels + channel) * taps + tap
    })
}

fn no_schedule() -> OpError {
    OpError::new("weights that were noticed as sparse have no schedule")
}

/// What a launch needs besides the schedule.
struct Product {
    x: ValueId,
    bias: Option<ValueId>,
    residual: Option<ValueId>,
    y: ValueId,
    table: Option<Vec<u8>>,
    lanes: Dim,
    images: Dim,
}

impl Product {
    /// Launches the kernel; `element` says where the weight of a row, tap and channel is.
    fn launch(
        self,
        low: &mut Lowerer,
        spec: Sparse,
        w: Constant,
        element: impl Fn(i64, i64, i64) -> i64 + Send + Sync + 'static,
    ) -> Result<(), OpError> {
        let read = 4 * w.shape().iter().product::<usize>();
        let pack = {
            let spec = spec.clone();
            move || -> Result<PackedWeights, String> {
                let bytes = dense(&w)?;
                Ok(spec.pack(|row, tap, channel| number(&bytes, element(row, tap, channel))))
            }
        };
        // Only its size for now: the bytes are made again when they are written.
        let packed = pack().map_err(OpError::new)?;
        let parts = packed.parts().map(|(elem, bytes)| (elem, bytes.len()));
        let nonzeros = parts[0].1 / 4;
        drop(packed);
        low.facts.module.sources.release(read);
        let made = move || Ok(pack()?.parts().iter().flat_map(|p| p.1.clone()).collect());
        let weights = low.made_together(&parts, WeightSource::Made(Arc::new(made)));
        let mut values: Vec<ValueId> = [self.x].into_iter().chain(weights).collect();
        if let Some(table) = self.table {
            let n = table.len() / 4;
            let source = WeightSource::Bytes(table.into());
            values.push(low.made_weight(ElemType::I32, vec![n], source));
        }
        values.extend(
            [self.bias, self.residual, Some(self.y)]
                .into_iter()
                .flatten(),
        );
        let mut args: Vec<KernelArg> = values.into_iter().map(KernelArg::Value).collect();
        for (num, size) in [(spec.images, &self.images), (spec.lanes, &self.lanes)] {
            if num == Num::Sym {
                args.push(KernelArg::Size(size.clone()));
            }
        }
        let width = Dim::from(spec.width());
        let grid = Dim::from(spec.bands) * &self.images * self.lanes.ceil_div(&width);
        let flops = Dim::from(2 * nonzeros as i64) * &self.images * &self.lanes;
        let per_block = 2 * nonzeros as i64 / spec.bands * spec.width();
        let grain = (THREAD_WORK / per_block.max(1)).clamp(1, 1 << 20) as u32;
        low.launch(spec.kernel("sparse"), &args, &grid, grain, &flops)
    }
}

#[cfg(test)]
mod tests {
    use crate::lower::checks::{check, numbers};
    use lapidary_ir::{Attr, Attrs, Tensor};

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
        type Case = (
            &'static [usize],
            &'static [usize],
            &'static [i64],
            &'static [i64],
        );
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
}
