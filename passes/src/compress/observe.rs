//! Calibration: what the samples say of the inputs of each weight.
//!
//! `before => after`: a copy of the module gives, instead of its results, the moments of each value that a weight is
//! multiplied with: `x^T x`, sums of `x` and of `|x|`, the largest `|x|`, the number of rows. They are summed over samples, so
//! memory does not grow with the data; weights that read one value share them. Values whose moments do not fit together
//! into the memory limit are observed in several passes, each of which computes the model up to the last value that it
//! observes. The weights are the original ones in every pass: no layer sees the errors of the layers before it.

use super::samples::{Failure, Samples};
pub(super) use super::sites::Source;
use super::sites::{Site, Usage};
use super::{CompressError, Means, work};
use crate::methods::statistics::{Moments, Statistics};
use lapidary_ir::builder::Builder;
use lapidary_ir::infer::first_fresh;
use lapidary_ir::ops::OpError;
use lapidary_ir::ops::compose::Len;
use lapidary_ir::{ElemType, Module, NodeId, Tensor, ValueId};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Bytes of the moments that one pass gathers; a value that alone has more gets a pass of its own.
const PASS_BYTES: u64 = 1 << 29;

/// Weights with more inputs than this are not observed: `x^T x` alone would have a gigabyte.
const MAX_INPUTS: usize = 16384;

/// Bytes of the moments of all values together, at most: they are all held until weights are tried.
const HELD_BYTES: u64 = 1 << 34;

/// Outputs for each observed value.
const OUTPUTS: usize = 5;

/// Sums of each observed value.
pub(super) type Observed = BTreeMap<Source, Moments>;

/// Statistics of the inputs of each weight; none for those that the graph cannot show, or without data.
///
/// # Errors
/// The module cannot be compiled for the samples, or a run fails.
pub(super) fn observe(
    module: &Module,
    sites: &[Site],
    means: &Means,
) -> Result<Vec<Option<Arc<Statistics>>>, CompressError> {
    let Some(samples) = means.data else {
        return Ok(vec![None; sites.len()]);
    };
    let usage = Usage::of(module);
    let sources: Vec<Vec<Source>> = sites.iter().map(|s| usage.sources(module, s)).collect();
    let mut inputs: BTreeMap<Source, usize> = BTreeMap::new();
    for (site, sources) in sites.iter().zip(&sources) {
        if site.shape[1] <= MAX_INPUTS {
            sources.iter().for_each(|&s| {
                inputs.insert(s, site.shape[1]);
            });
        }
    }
    let mut order: Vec<(Source, usize)> = inputs.into_iter().collect();
    order.sort_by_key(|&(s, _)| usage.place(s));
    let bytes: u64 = order.iter().map(|&(_, n)| 8 * (n as u64).pow(2)).sum();
    if bytes > HELD_BYTES {
        let gib = |bytes: u64| bytes >> 30;
        let reason = format!(
            "statistics of the inputs of all weights take {} GiB, more than the {} that are held at most; compress without data",
            gib(bytes),
            gib(HELD_BYTES)
        );
        return Err(CompressError::Data(reason.into()));
    }
    let key = work::key_of_moments(module, samples.key());
    let kept = means.store.and_then(|s| work::moments(s, key, &order));
    let moments = match kept {
        Some(moments) => moments,
        None => {
            let moments = gather(module, &order, samples, means)?;
            if let Some(store) = means.store {
                work::keep_moments(store, key, &moments)?;
            }
            moments
        }
    };
    // Most weights have one source; their statistics are shared.
    let mut single: BTreeMap<Source, Arc<Statistics>> = BTreeMap::new();
    let of_site = |sources: &Vec<Source>| {
        let [first, rest @ ..] = &sources[..] else {
            return None;
        };
        if rest.is_empty() {
            let shared = single.get(first).cloned();
            return shared.or_else(|| {
                let made = Arc::new(moments.get(first)?.statistics()?);
                single.insert(*first, made.clone());
                Some(made)
            });
        }
        let mut sum = moments.get(first)?.clone();
        for source in rest {
            sum.merge(moments.get(source)?);
        }
        sum.statistics().map(Arc::new)
    };
    Ok(sources.iter().map(of_site).collect())
}

/// Runs the passes over all samples.
fn gather(
    module: &Module,
    order: &[(Source, usize)],
    samples: &dyn Samples,
    means: &Means,
) -> Result<Observed, CompressError> {
    let passes = in_passes(order);
    let mut moments: Observed = order.iter().map(|&(s, n)| (s, Moments::new(n))).collect();
    for (k, pass) in passes.iter().enumerate() {
        let probe = probe(module, pass).map_err(CompressError::Graph)?;
        let mut program = samples.prepare(probe).map_err(CompressError::Data)?;
        for sample in 0..samples.count() {
            (means.progress)(&format!(
                "calibrate: pass {} of {}, sample {} of {}",
                k + 1,
                passes.len(),
                sample + 1,
                samples.count()
            ));
            let outputs = program.run(sample).map_err(CompressError::Data)?;
            for ((source, _), found) in pass.iter().zip(outputs.chunks(OUTPUTS)) {
                let (Some(sum), [gram, sums, abs_sums, abs_max, rows]) =
                    (moments.get_mut(source), found)
                else {
                    return Err(CompressError::Data("a run has too few outputs".into()));
                };
                let rows = rows.first().copied().unwrap_or(0.0) as u64;
                sum.add(rows, gram, sums, abs_sums, abs_max)
                    .map_err(|reason| CompressError::Data(Failure::from(reason)))?;
            }
        }
    }
    Ok(moments)
}

/// Cuts a list of values into passes.
fn in_passes(order: &[(Source, usize)]) -> Vec<Vec<(Source, usize)>> {
    let mut passes: Vec<Vec<(Source, usize)>> = vec![];
    let mut bytes = u64::MAX;
    for &(source, inputs) in order {
        let own = 4 * (inputs as u64).pow(2);
        if bytes.saturating_add(own) > PASS_BYTES {
            passes.push(vec![]);
            bytes = 0;
        }
        bytes += own;
        if let Some(pass) = passes.last_mut() {
            pass.push((source, inputs));
        }
    }
    passes
}

/// The module with the moments of these values as its results, [`OUTPUTS`] for each.
fn probe(module: &Module, observed: &[(Source, usize)]) -> Result<Module, OpError> {
    let mut module = module.clone();
    let fresh = Cell::new(first_fresh(&module));
    let mut outputs = vec![];
    for &(source, inputs) in observed {
        let rows = match source {
            Source::Rows(x) => {
                let mut b = Builder::new(&mut module, Module::TOP, "calibrate", &fresh);
                let x = b.cast(x, ElemType::F32)?;
                b.reshape(x, &[Len::N(-1), Len::N(inputs as i64)])?
            }
            Source::Patches(conv) => patches(&mut module, conv, inputs, &fresh)?,
        };
        let mut b = Builder::new(&mut module, Module::TOP, "calibrate", &fresh);
        let columns = b.transpose(rows, &[1, 0])?;
        let gram = b.op("matmul", &[columns, rows])?;
        let abs = b.op("abs", &[rows])?;
        let sums = b.reduce("reduce_sum", rows, &[0], false)?;
        let abs_sums = b.reduce("reduce_sum", abs, &[0], false)?;
        let abs_max = b.reduce("reduce_max", abs, &[0], false)?;
        let shape = b.op("shape", &[rows])?;
        let count = b.slice(shape, 0, 0, 1)?;
        let count = b.cast(count, ElemType::F32)?;
        outputs.extend([gram, sums, abs_sums, abs_max, count]);
    }
    module.region_mut(Module::TOP).outputs = outputs;
    module.output_names = (0..module.top().outputs.len())
        .map(|i| format!("moment{i}"))
        .collect();
    module.remove_dead_nodes();
    Ok(module)
}

/// The windows that a convolution reads, one in each row: a convolution with filters that each pick one element.
fn patches(
    module: &mut Module,
    conv: NodeId,
    inputs: usize,
    fresh: &Cell<u32>,
) -> Result<ValueId, OpError> {
    let node = module.node(conv).clone();
    let x = node.need(0)?;
    let filters = module.value(node.need(1)?).ty.shape().unwrap_or_default();
    let mut shape: Vec<usize> = filters
        .iter()
        .map(|d| d.as_const().unwrap_or(0) as usize)
        .collect();
    if let Some(first) = shape.first_mut() {
        *first = inputs;
    }
    let mut picks = vec![0.0; inputs * inputs];
    (0..inputs).for_each(|i| picks[i * inputs + i] = 1.0);
    let rank = shape.len();
    let mut b = Builder::new(module, Module::TOP, "calibrate", fresh);
    let picks = b.constant(&Tensor::from_f64(ElemType::F32, shape, picks));
    let x = b.cast(x, ElemType::F32)?;
    let windows = b.node("conv", vec![Some(x), Some(picks)], node.attrs.clone(), 1)?[0];
    let perm: Vec<usize> = [0].into_iter().chain(2..rank).chain([1]).collect();
    let last = b.transpose(windows, &perm)?;
    b.reshape(last, &[Len::N(-1), Len::N(inputs as i64)])
}
