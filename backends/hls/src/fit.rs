//! Choosing foldings: the slowest circuit gets more processing elements, as long as the part has room, until a run is fast
//! enough, or until nothing can be made faster. Source: FINN's SetFolding, whose loop over layers this is.

use crate::cost::{Cost, cost};
use crate::folding::Folding;
use crate::parts::Part;
use lapidary_abi::program::{Arg, Program, Step};
use lapidary_ir::backend::Error;
use lapidary_ir::kernel::Kernel;
use std::collections::BTreeMap;

/// Share of a part's slices that circuits may take: beyond it, routing fails.
pub const USABLE: f64 = 0.7;
/// Most columns at once that are tried.
const MOST: u32 = 64;

/// What was chosen.
#[derive(Clone, Debug)]
pub struct Fit {
    /// Columns of a product at once, by kernel; kernels that no step launches have none.
    pub pe: BTreeMap<usize, u32>,
    /// Cycles of a run, one launch after the other.
    pub cycles: f64,
    /// Whether that is within the limit, if there was one.
    pub met: bool,
    /// Whether it fits the part.
    pub fits: bool,
}

impl Fit {
    /// The folding of a kernel.
    pub fn folding(&self, kernel: usize) -> Folding {
        Folding {
            pe: self.pe.get(&kernel).copied().unwrap_or(1),
        }
    }
}

/// Chooses foldings for a program. `cycles` is what a run may take.
///
/// # Errors
/// A kernel cannot be translated.
pub fn fit(
    program: &Program,
    kernels: &[Kernel],
    part: &Part,
    cycles: Option<f64>,
) -> Result<Fit, Error> {
    let mut launches: BTreeMap<usize, Vec<Vec<Option<i64>>>> = BTreeMap::new();
    for step in program.prepare.steps.iter().chain(&program.body.steps) {
        if let Step::Launch { kernel, args, .. } = step {
            let size = |a: &Arg| match a {
                Arg::Size(s) => s.as_const(),
                Arg::Buffer(_) => None,
            };
            let sizes = args.iter().map(size).collect();
            launches.entry(*kernel as usize).or_default().push(sizes);
        }
    }
    let at = |kernel: usize, pe: u32| -> Result<Cost, Error> {
        let mut sum = Cost::default();
        for sizes in &launches[&kernel] {
            let one = cost(&kernels[kernel], sizes, Folding { pe })?;
            sum.cycles += one.cycles;
            (sum.dsp, sum.lut) = (one.dsp, one.lut);
        }
        Ok(sum)
    };
    let mut chosen: BTreeMap<usize, (u32, Cost)> = BTreeMap::new();
    for &kernel in launches.keys() {
        chosen.insert(kernel, (1, at(kernel, 1)?));
    }
    let fits = |chosen: &BTreeMap<usize, (u32, Cost)>| {
        let sum = |of: fn(&Cost) -> f64| chosen.values().map(|c| of(&c.1)).sum::<f64>();
        sum(|c| c.dsp) <= USABLE * part.dsp as f64 && sum(|c| c.lut) <= USABLE * part.lut as f64
    };
    let total = |chosen: &BTreeMap<usize, (u32, Cost)>| -> f64 {
        chosen.values().map(|c| c.1.cycles).sum()
    };
    let enough = |now: f64| cycles.is_some_and(|limit| now <= limit);
    let mut open: Vec<usize> = launches.keys().copied().collect();
    while !enough(total(&chosen)) {
        let slowest = |a: &&usize, b: &&usize| {
            let of = |k: &usize| chosen[k].1.cycles;
            of(a).total_cmp(&of(b)).then(b.cmp(a))
        };
        let Some(&kernel) = open.iter().max_by(slowest) else {
            break;
        };
        let before = chosen[&kernel].clone();
        let pe = before.0 * 2;
        let faster = match pe <= MOST {
            true => Some(at(kernel, pe)?).filter(|c| c.cycles < before.1.cycles),
            false => None,
        };
        match faster {
            Some(cost) => {
                chosen.insert(kernel, (pe, cost));
                if !fits(&chosen) {
                    chosen.insert(kernel, before);
                    open.retain(|&k| k != kernel);
                }
            }
            None => open.retain(|&k| k != kernel),
        }
    }
    let now = total(&chosen);
    Ok(Fit {
        fits: fits(&chosen),
        met: cycles.is_none() || enough(now),
        pe: chosen.iter().map(|(&k, c)| (k, c.0)).collect(),
        cycles: now,
    })
}
