//! The difference from the original model's results, with any choice of encodings, measured on the samples.
//!
//! `before => after`: a copy of the module takes its weights as inputs, and the original's result as one more; it gives
//! their distance. So it is compiled once, and a choice is measured by giving it other numbers. The distance is one of two:
//!
//! * where the results are predictions (logits, or what a softmax or sigmoid made of them): the Kullback-Leibler
//!   divergence of the predicted distribution from the original's, in nats, mean over predictions; and the share of predictions
//!   whose most probable class is the same;
//! * else the squared difference, relative to the squares of the original's results.

use super::apply::substitute;
use super::levels::Tried;
use super::samples::{Failure, Program, Samples, outputs};
use super::sites::{Site, matrix};
use super::{CompressError, Measured};
use lapidary_ir::builder::Builder;
use lapidary_ir::infer::first_fresh;
use lapidary_ir::ops::OpError;
use lapidary_ir::ops::compose::Len;
use lapidary_ir::{ElemType, Module, Type, ValueId};
use std::cell::Cell;
use std::collections::HashMap;
use std::sync::Arc;

/// Predictions that are enough to compare choices by.
const PREDICTIONS: usize = 4096;

/// Samples that are enough to compare choices by where results are not predictions.
const SAMPLES: usize = 64;

/// Bytes of original results, and of decoded weights, that are held at most.
const HELD_BYTES: usize = 1 << 30;

/// Bytes that all weights may have as `f32` inputs of the program that measures.
const MEASURED_BYTES: usize = 1 << 32;

/// What results are compared by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Distance {
    /// Divergence of predicted distributions, in nats.
    Divergence,
    /// Relative squared difference.
    Squares,
}

/// A distance from the original, on samples.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Difference {
    /// Mean divergence of a prediction, or the relative squared difference.
    pub loss: f64,
    /// Share of predictions with the original's most probable class; none of squares.
    pub agreement: Option<f64>,
    /// How the divergences of single predictions differ; none of squares.
    pub spread: Option<Spread>,
}

/// How divergences of single predictions are spread around their mean.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Spread {
    /// Standard error of the mean, as if predictions did not depend on each other.
    pub standard_error: f64,
    /// 95 % of predictions diverge no more.
    pub p95: f64,
    /// 99 % of predictions diverge no more.
    pub p99: f64,
}

impl Spread {
    fn of(mut losses: Vec<f64>) -> Option<Spread> {
        losses.sort_by(f64::total_cmp);
        let n = losses.len() as f64;
        let place = |share: f64| ((share * n).ceil() as usize).clamp(1, losses.len()) - 1;
        let mean = losses.iter().sum::<f64>() / n;
        let variance = losses.iter().map(|l| (l - mean).powi(2)).sum::<f64>() / n;
        (!losses.is_empty()).then(|| Spread {
            standard_error: (variance / n).sqrt(),
            p95: losses[place(0.95)],
            p99: losses[place(0.99)],
        })
    }
}

/// Which result is compared, and how.
struct Compared {
    value: ValueId,
    distance: Distance,
}

/// The result that says most: one named `logits`, or what a softmax or sigmoid made, else the first of floats.
fn compared(module: &Module) -> Option<Compared> {
    let outputs = &module.top().outputs;
    let float = |v: &ValueId| module.value(*v).ty.elem().is_some_and(|e| e.is_float());
    let named = |wanted: &[&str]| {
        let mut pairs = outputs.iter().zip(&module.output_names);
        pairs
            .find(|(v, name)| float(v) && wanted.contains(&name.as_str()))
            .map(|(&v, _)| v)
    };
    let logits = |value| Compared {
        value,
        distance: Distance::Divergence,
    };
    if let Some(value) = named(&["logits", "logit"]) {
        return Some(logits(value));
    }
    let activated = outputs.iter().find_map(|&v| {
        let node = module.node(module.producer(v)?);
        let last = || {
            node.int("axis")
                .is_ok_and(|a| a == -1 || Some(a + 1) == rank(module, v))
        };
        let fits = match node.op.name {
            "sigmoid" => true,
            "softmax" | "log_softmax" => last(),
            _ => false,
        };
        fits.then(|| node.operand(0)).flatten()
    });
    let squares = |value| Compared {
        value,
        distance: Distance::Squares,
    };
    activated
        .map(logits)
        .or_else(|| outputs.iter().copied().find(float).map(squares))
}

fn rank(module: &Module, v: ValueId) -> Option<i64> {
    Some(module.value(v).ty.shape()?.len() as i64)
}

/// True if the results of a module with these weights are compared, on data: they can be, and the weights are not too many.
pub(super) fn is_measured(module: &Module, sites: &[Site], data: Option<&dyn Samples>) -> bool {
    let bytes: usize = sites.iter().map(|s| 4 * s.elements()).sum();
    data.is_some() && bytes <= MEASURED_BYTES && compared(module).is_some()
}

/// Measures choices.
pub(super) struct Meter<'s> {
    program: Box<dyn Program + 's>,
    module: &'s Module,
    distance: Distance,
    /// The original's results, for each sample that is used, with its number.
    originals: Vec<(usize, Vec<f32>)>,
    /// Predictions, or sums of squares, of each.
    weights: Vec<f64>,
    sites: &'s [Site],
    /// The level that each weight has in the program now.
    current: Vec<Option<usize>>,
    decoded: HashMap<(usize, usize), Arc<Vec<f32>>>,
    held: usize,
}

impl<'s> Meter<'s> {
    /// For the weights of a module; none if it gives nothing that can be compared, or its weights are too many.
    pub fn new(
        module: &'s Module,
        sites: &'s [Site],
        samples: &'s dyn Samples,
        progress: &dyn Fn(&str),
    ) -> Result<Option<Meter<'s>>, CompressError> {
        match is_measured(module, sites, Some(samples)) {
            true => Meter::between(module, module, sites, samples, progress),
            false => Ok(None),
        }
    }

    /// The same for the weights of another form of a module, which gives the same results.
    fn between(
        original: &Module,
        module: &'s Module,
        sites: &'s [Site],
        samples: &'s dyn Samples,
        progress: &dyn Fn(&str),
    ) -> Result<Option<Meter<'s>>, CompressError> {
        let (Some(compared), Some(own)) = (compared(original), compared(module)) else {
            return Ok(None);
        };
        if compared.distance != own.distance {
            return Ok(None);
        }
        let fresh = Cell::new(first_fresh(original));
        let mut original = original.clone();
        let result = result(&mut original, &compared, &fresh).map_err(CompressError::Graph)?;
        only(&mut original, vec![result]);
        let (originals, width) = originals(original, &compared, samples, progress)?;
        let loss = meter(module, sites, &own, originals[0].1.len() / width, width);
        let loss = loss.map_err(CompressError::Graph)?;
        let program = samples.prepare(loss).map_err(CompressError::Data)?;
        let weight = |(_, y): &(usize, Vec<f32>)| match compared.distance {
            Distance::Divergence => (y.len() / width.max(1)) as f64,
            Distance::Squares => y.iter().map(|&v| f64::from(v).powi(2)).sum(),
        };
        Ok(Some(Meter {
            program,
            distance: compared.distance,
            weights: originals.iter().map(weight).collect(),
            originals,
            module,
            sites,
            current: vec![None; sites.len()],
            decoded: HashMap::new(),
            held: 0,
        }))
    }

    /// What is measured.
    pub fn distance(&self) -> Distance {
        self.distance
    }

    /// Samples that are measured on.
    pub fn samples(&self) -> usize {
        self.originals.len()
    }

    /// The distance of the model whose weights have these levels, on every `stride`-th sample from `first` on.
    pub fn measure(
        &mut self,
        tried: &[Vec<Tried>],
        levels: &[usize],
        first: usize,
        stride: usize,
    ) -> Result<Difference, CompressError> {
        for (site, &level) in levels.iter().enumerate() {
            if self.current[site] != Some(level) {
                let values = self.values(tried, site, level)?;
                self.program
                    .set(site, &values)
                    .map_err(CompressError::Data)?;
                self.current[site] = Some(level);
            }
        }
        let (mut losses, mut agree, mut weight) = (vec![], 0.0, 0.0);
        for i in (first % self.originals.len()..self.originals.len()).step_by(stride.max(1)) {
            let (sample, original) = &self.originals[i];
            self.program
                .set(self.sites.len(), original)
                .map_err(CompressError::Data)?;
            let found = outputs(&mut *self.program, *sample).map_err(CompressError::Data)?;
            let mut found = found.into_iter().map(|v| v.into_iter().map(f64::from));
            losses.extend(found.next().into_iter().flatten());
            agree += found.next().into_iter().flatten().sum::<f64>();
            weight += self.weights[i];
        }
        let over = |v: f64| if weight > 0.0 { v / weight } else { 0.0 };
        let predicts = self.distance == Distance::Divergence;
        Ok(Difference {
            // Divergences are positive; what is below zero is rounding. What is not a number is no good choice.
            loss: match over(losses.iter().sum()) {
                loss if loss.is_nan() => f64::INFINITY,
                loss => loss.max(0.0),
            },
            agreement: predicts.then(|| over(agree)),
            spread: if predicts { Spread::of(losses) } else { None },
        })
    }

    fn values(
        &mut self,
        tried: &[Vec<Tried>],
        site: usize,
        level: usize,
    ) -> Result<Arc<Vec<f32>>, CompressError> {
        if let Some(values) = self.decoded.get(&(site, level)) {
            return Ok(values.clone());
        }
        let wrong = |reason: String| CompressError::Data(Failure::from(reason));
        let values: Vec<f32> = match tried[site][level].term() {
            None => {
                let values = matrix(self.module, &self.sites[site])?;
                values.data().iter().map(|&v| v as f32).collect()
            }
            Some(term) => {
                let tensor = term.decode().map_err(|e| wrong(e.reason))?;
                let values = tensor
                    .floats()
                    .ok_or_else(|| wrong("a term is not of floats".into()))?;
                values.iter().map(|&v| v as f32).collect()
            }
        };
        let values = Arc::new(values);
        if self.held + 4 * values.len() > HELD_BYTES {
            self.decoded.clear();
            self.held = 0;
        }
        self.held += 4 * values.len();
        self.decoded.insert((site, level), values.clone());
        Ok(values)
    }
}

/// The difference of another form of a module from it, on the samples; none if it gives nothing that can be compared.
pub(super) fn compare(
    original: &Module,
    changed: &Module,
    samples: &dyn Samples,
    progress: &dyn Fn(&str),
) -> Result<Option<Measured>, CompressError> {
    let Some(mut meter) = Meter::between(original, changed, &[], samples, progress)? else {
        return Ok(None);
    };
    Ok(Some(Measured {
        distance: meter.distance(),
        difference: meter.measure(&[], &[], 0, 1)?,
        samples: (meter.samples(), samples.count()),
    }))
}

/// Leaves these results and what they need.
pub(super) fn only(module: &mut Module, outputs: Vec<ValueId>) {
    module.output_names = (0..outputs.len()).map(|i| format!("result{i}")).collect();
    module.region_mut(Module::TOP).outputs = outputs;
    module.remove_dead_nodes();
}

/// The compared value as `f32[rows,classes]` of logarithms of probabilities, or `f32[n]` for squares. One logit is that of the
/// second of two classes.
fn result(module: &mut Module, compared: &Compared, fresh: &Cell<u32>) -> Result<ValueId, OpError> {
    let ty = module.value(compared.value).ty.clone();
    let classes = ty.shape().and_then(<[_]>::last).and_then(|d| d.as_const());
    let mut b = Builder::new(module, Module::TOP, "difference", fresh);
    let y = b.cast(compared.value, ElemType::F32)?;
    let logits = match (compared.distance, classes) {
        (Distance::Squares, _) => return b.reshape(y, &[Len::N(-1)]),
        (_, Some(n)) if n > 1 => b.reshape(y, &[Len::N(-1), Len::N(n)])?,
        _ => {
            let y = b.reshape(y, &[Len::N(-1), Len::N(1)])?;
            let zero = b.lit(y, 0.0)?;
            let other = b.op("mul", &[y, zero])?;
            b.concat(&[other, y], 1)?
        }
    };
    b.op_with("log_softmax", &[logits], [("axis", (-1i64).into())])
}

/// The original's results on as many samples as are enough, spread evenly; and classes of a prediction.
fn originals(
    module: Module,
    compared: &Compared,
    samples: &dyn Samples,
    progress: &dyn Fn(&str),
) -> Result<(Vec<(usize, Vec<f32>)>, usize), CompressError> {
    let width = module.value(module.top().outputs[0]).ty.clone();
    let width = width
        .shape()
        .and_then(<[_]>::last)
        .and_then(|d| d.as_const());
    let width = match compared.distance {
        Distance::Squares => 1,
        Distance::Divergence => width.unwrap_or(1).max(1) as usize,
    };
    let mut program = samples.prepare(module).map_err(CompressError::Data)?;
    let mut run = |sample: usize| {
        let found = outputs(&mut *program, sample).map_err(CompressError::Data)?;
        Ok::<_, CompressError>(found.into_iter().next().unwrap_or_default())
    };
    let first = run(0)?;
    let all = samples.count();
    let enough = match compared.distance {
        Distance::Divergence => PREDICTIONS.div_ceil((first.len() / width).max(1)),
        Distance::Squares => SAMPLES,
    };
    let held = (HELD_BYTES / (4 * first.len().max(1))).max(1);
    let wanted = enough.min(held).min(all);
    let mut found = vec![(0, first)];
    for k in 1..wanted {
        progress(&format!("original: sample {} of {wanted}", k + 1));
        let sample = k * all / wanted;
        found.push((sample, run(sample)?));
    }
    Ok((found, width))
}

/// The module with its weights, and the original's result, as inputs: the distance of each prediction and the number of
/// agreements, or the sum of squares.
fn meter(
    module: &Module,
    sites: &[Site],
    compared: &Compared,
    rows: usize,
    width: usize,
) -> Result<Module, OpError> {
    let mut module = module.clone();
    let mut values = HashMap::new();
    for site in sites {
        let ty = Type::tensor(ElemType::F32, site.shape.map(|n| n as i64));
        let input = module.add_input(Module::TOP, &format!("weight {}", site.name), ty);
        values.insert(site.weight, (input, site));
    }
    substitute(&mut module, &values)?;
    let fresh = Cell::new(first_fresh(&module));
    let own = result(&mut module, compared, &fresh)?;
    let dims = [rows as i64, width as i64];
    let ty = match compared.distance {
        Distance::Squares => Type::tensor(ElemType::F32, [(rows * width) as i64]),
        Distance::Divergence => Type::tensor(ElemType::F32, dims),
    };
    let original = module.add_input(Module::TOP, "original", ty);
    let mut b = Builder::new(&mut module, Module::TOP, "difference", &fresh);
    let outputs = match compared.distance {
        Distance::Squares => {
            let difference = b.op("sub", &[own, original])?;
            let squares = b.op("mul", &[difference, difference])?;
            vec![b.reduce("reduce_sum", squares, &[0], false)?]
        }
        Distance::Divergence => {
            let share = b.op("exp", &[original])?;
            let ratio = b.op("sub", &[original, own])?;
            let terms = b.op("mul", &[share, ratio])?;
            let losses = b.reduce("reduce_sum", terms, &[1], false)?;
            let mut best = |x| b.op_with("arg_max", &[x], [("axis", 1i64.into())]);
            let (ours, theirs) = (best(own)?, best(original)?);
            let same = b.op("equal", &[ours, theirs])?;
            let same = b.cast(same, ElemType::F32)?;
            vec![losses, b.reduce("reduce_sum", same, &[0, 1], false)?]
        }
    };
    only(&mut module, outputs);
    Ok(module)
}
