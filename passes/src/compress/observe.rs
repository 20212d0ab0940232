//! Calibration: what the samples say of the inputs of each weight.
//!
//! `before => after`: a copy of the module gives, instead of its results, the moments of each value that a weight is
//! multiplied with: `x^T x`, sums of `x` and of `|x|`, the largest `|x|`, the number of rows. They are summed over samples, so
//! memory does not grow with the data; weights that read one value share them. Values whose moments do not fit together
//! into the memory limit are observed in several passes, each of which goes on where the one before it ended ([`Segments`]), and
//! the weights that read them are shown before the next begins: of a large model one pass's moments are held at a time.
//! The weights are the original ones in every pass: no layer sees the errors of the layers before it.

use super::levels::{Kept, Keys};
use super::samples::{Failure, Samples};
use super::segments::Segments;
pub(super) use super::sites::Source;
use super::sites::{Site, Usage};
use super::work::{Key, Store};
use super::{CompressError, Means, work};
use crate::methods::statistics::{Moments, Statistics};
use lapidary_ir::builder::Builder;
use lapidary_ir::infer::first_fresh;
use lapidary_ir::ops::OpError;
use lapidary_ir::ops::compose::Len;
use lapidary_ir::{ElemType, Module, NodeId, Tensor, ValueId};
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};

/// Weights with more inputs than this are not observed: `x^T x` alone would have a gigabyte.
const MAX_INPUTS: usize = 16384;

/// Outputs for each observed value.
const OUTPUTS: usize = 5;

/// Shows each of the `wanted` sites with the statistics of its inputs, once; none for those that the graph cannot show, or without
/// data.
///
/// # Errors
/// The module cannot be compiled for the samples, a run fails, or `see` does.
pub(super) fn visit(
    module: &Module,
    sites: &[Site],
    wanted: &[usize],
    means: &Means,
    kept: Kept,
    see: &mut dyn FnMut(usize, Option<&Statistics>) -> Result<(), CompressError>,
) -> Result<(), CompressError> {
    let (Some(samples), Keys::ByModel(key)) = (means.data, kept.keys) else {
        return wanted.iter().try_for_each(|&i| see(i, None));
    };
    let inputs = Inputs::of(module, sites);
    let mut waiting: BTreeMap<Source, Vec<usize>> = BTreeMap::new();
    for &i in wanted {
        match &inputs.sources[i][..] {
            [] => see(i, None)?,
            sources => sources
                .iter()
                .for_each(|&s| waiting.entry(s).or_default().push(i)),
        }
    }
    // Weights that are multiplied with several values wait for all of them.
    let mut sums: BTreeMap<usize, (usize, Moments)> = BTreeMap::new();
    let needed = waiting.keys().copied().collect();
    inputs.moments(
        &needed,
        samples,
        key,
        means,
        kept.store,
        &mut |source, moments| {
            let (alone, shared): (Vec<usize>, Vec<usize>) = waiting[&source]
                .iter()
                .partition(|&&i| inputs.sources[i].len() == 1);
            for i in shared {
                let (seen, sum) = sums
                    .entry(i)
                    .or_insert_with(|| (0, Moments::new(sites[i].shape[1])));
                sum.merge(&moments);
                *seen += 1;
                if *seen == inputs.sources[i].len()
                    && let Some((_, sum)) = sums.remove(&i)
                {
                    see(i, sum.into_statistics().as_ref())?;
                }
            }
            let statistics = match alone.is_empty() {
                true => None,
                false => moments.into_statistics(),
            };
            alone
                .into_iter()
                .try_for_each(|i| see(i, statistics.as_ref()))
        },
    )
}

/// Which sites [`visit`] shows with statistics, if their inputs are ever computed.
pub(super) fn observed(module: &Module, sites: &[Site], means: &Means) -> Vec<bool> {
    match means.data {
        None => vec![false; sites.len()],
        Some(_) => {
            let inputs = Inputs::of(module, sites);
            inputs.sources.iter().map(|s| !s.is_empty()).collect()
        }
    }
}

/// Gathers the moments of all values that weights are multiplied with, and keeps them in the store, where [`visit`] finds them.
///
/// # Errors
/// As [`visit`], or the store cannot be written.
pub(super) fn keep_all(
    module: &Module,
    sites: &[Site],
    means: &Means,
    store: &dyn Store,
) -> Result<(), CompressError> {
    let Some(samples) = means.data else {
        return Ok(());
    };
    let inputs = Inputs::of(module, sites);
    let key = work::key_of_model(module, samples.key());
    let missing = inputs
        .order
        .iter()
        .filter(|&&(s, n)| work::moments(store, of_source(key, s), n).is_none());
    let needed = missing.map(|&(s, _)| s).collect();
    inputs.moments(
        &needed,
        samples,
        key,
        means,
        store,
        &mut |source, moments| work::keep_moments(store, of_source(key, source), &moments),
    )
}

fn of_source(key: Key, source: Source) -> Key {
    key.bytes(format!("{source:?}").as_bytes())
}

/// The values that weights are multiplied with.
struct Inputs<'a> {
    module: &'a Module,
    sites: &'a [Site],
    usage: Usage,
    /// Of each site.
    sources: Vec<Vec<Source>>,
    /// All of them in the order of computation, with their lengths.
    order: Vec<(Source, usize)>,
}

impl<'a> Inputs<'a> {
    fn of(module: &'a Module, sites: &'a [Site]) -> Inputs<'a> {
        let usage = Usage::of(module);
        let mut inputs: BTreeMap<Source, usize> = BTreeMap::new();
        let sources = sites.iter().map(|site| {
            if site.shape[1] > MAX_INPUTS {
                return vec![];
            }
            let found = usage.sources(module, site);
            inputs.extend(found.iter().map(|&s| (s, site.shape[1])));
            found
        });
        let sources = sources.collect();
        let mut order: Vec<(Source, usize)> = inputs.into_iter().collect();
        order.sort_by_key(|&(s, _)| usage.place(s));
        Inputs {
            module,
            sites,
            usage,
            sources,
            order,
        }
    }

    /// Shows the moments of the `needed` values: those that are kept, then the others, pass by pass. A pass is always computed
    /// whole, needed or not, and all from the first to the last that is: so whoever asks for what, the numbers are the same.
    fn moments(
        &self,
        needed: &BTreeSet<Source>,
        samples: &dyn Samples,
        key: Key,
        means: &Means,
        store: &dyn Store,
        see: &mut dyn FnMut(Source, Moments) -> Result<(), CompressError>,
    ) -> Result<(), CompressError> {
        if needed.is_empty() {
            return Ok(());
        }
        let mut missing = BTreeSet::new();
        for &(source, inputs) in &self.order {
            if needed.contains(&source) {
                match work::moments(store, of_source(key, source), inputs) {
                    Some(moments) => see(source, moments)?,
                    None => {
                        missing.insert(source);
                    }
                }
            }
        }
        let passes = in_passes(&self.order, means.pass_bytes);
        let missed = |pass: &Vec<(Source, usize)>| pass.iter().any(|(s, _)| missing.contains(s));
        let Some(last) = passes.iter().rposition(missed) else {
            return Ok(());
        };
        let mut segments = Segments::new(self.module, self.sites, samples, store, key);
        for (k, pass) in passes[..=last].iter().enumerate() {
            let begun = format!("calibrate: pass {} of {}", k + 1, passes.len());
            let progress = |sample: usize| {
                (means.progress)(&format!(
                    "{begun}, sample {} of {}",
                    sample + 1,
                    samples.count()
                ));
            };
            let ends_at = pass.iter().map(|&(s, _)| self.usage.place(s)).max();
            let wanted = pass.iter().enumerate();
            let mut sums: BTreeMap<usize, Moments> = wanted
                .filter(|(_, (s, _))| missing.contains(s))
                .map(|(i, &(_, inputs))| (i, Moments::new(inputs)))
                .collect();
            segments.run(
                ends_at.unwrap_or(0),
                k + 1 == passes.len(),
                |module| probe(module, pass),
                &progress,
                &mut |i, values| match sums.get_mut(&(i / OUTPUTS)) {
                    Some(sum) => sum.add_part(i % OUTPUTS, values).map_err(Failure::from),
                    None => Ok(()),
                },
            )?;
            for (i, sum) in sums {
                see(pass[i].0, sum)?;
            }
            self.module.sources.release(usize::MAX);
        }
        segments.clear();
        Ok(())
    }
}

/// Cuts a list of values into passes; a value that alone has more than these bytes gets a pass of its own.
fn in_passes(order: &[(Source, usize)], most: u64) -> Vec<Vec<(Source, usize)>> {
    let mut passes: Vec<Vec<(Source, usize)>> = vec![];
    let mut bytes = u64::MAX;
    for &(source, inputs) in order {
        let own = 4 * (inputs as u64).pow(2);
        if bytes.saturating_add(own) > most {
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

/// Adds the moments of these values to a module, [`OUTPUTS`] for each, in the order that [`Moments::add_part`] knows.
fn probe(module: &mut Module, observed: &[(Source, usize)]) -> Result<Vec<ValueId>, OpError> {
    let fresh = Cell::new(first_fresh(module));
    let mut outputs = vec![];
    for &(source, inputs) in observed {
        let rows = match source {
            Source::Rows(x) => {
                let mut b = Builder::new(module, Module::TOP, "calibrate", &fresh);
                let x = b.cast(x, ElemType::F32)?;
                b.reshape(x, &[Len::N(-1), Len::N(inputs as i64)])?
            }
            Source::Patches(conv) => patches(module, conv, inputs, &fresh)?,
        };
        let mut b = Builder::new(module, Module::TOP, "calibrate", &fresh);
        let shape = b.op("shape", &[rows])?;
        let count = b.slice(shape, 0, 0, 1)?;
        let count = b.cast(count, ElemType::F32)?;
        let columns = b.transpose(rows, &[1, 0])?;
        let gram = b.op("matmul", &[columns, rows])?;
        let abs = b.op("abs", &[rows])?;
        let sums = b.reduce("reduce_sum", rows, &[0], false)?;
        let abs_sums = b.reduce("reduce_sum", abs, &[0], false)?;
        let abs_max = b.reduce("reduce_max", abs, &[0], false)?;
        outputs.extend([count, gram, sums, abs_sums, abs_max]);
    }
    Ok(outputs)
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
