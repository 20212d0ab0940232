//! Structures that go as a whole: a recipe says which, by what score, and what share of them.
//!
//! `before => after`: groups of slices that depend on each other ([`Dependencies`]), such as a neuron's row of one weight and its
//! column of the next, are taken out of a module. Scores are made comparable within all groups of one kind (those with slices of
//! the same weights), and the lowest of all go until the share of their parameters is reached; one of each kind stays. What
//! was removed is known by names and places, so that the same can be removed from the network in another form ([`remove`]).
//! Sources: Ma et al., "LLM-Pruner: On the Structural Pruning of Large Language Models", section 3 (groups, and magnitudes of their
//! weights); An et al., "Fluctuation-based Adaptive Structured Pruning for Large Language Models", section 3 (fluctuations,
//! standardized scores, means that become biases).

use super::levels::{Kept, Keys};
use super::recipe::fits;
use super::sites::{Site, Source, Usage, View, find, in_use, matrix};
use super::work::Memory;
use super::{CompressError, Means, observe};
use crate::methods::structured::flap::{self, Structure, standardize};
use crate::methods::structured::fold::cut_with_means;
use crate::methods::structured::groups::{Dependencies, Group};
use lapidary_ir::{Module, ValueId};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Which structures go.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cut {
    /// Groups with a slice of a weight of such a name; `*` stands for any text.
    pub name: String,
    /// What tells those that matter least.
    #[serde(default)]
    pub method: Score,
    /// Share of these groups' parameters that goes.
    pub share: f64,
}

/// What is known of a structure's worth.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Score {
    /// Mean square of all its weights. Looks at no data.
    #[default]
    Magnitude,
    /// How much its values vary, and are multiplied with; their mean goes to the bias of the product that reads them.
    Flap,
}

/// What a cut took away.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Removed {
    /// Places of axes of constants, by name.
    pub slices: BTreeMap<(String, usize), BTreeSet<usize>>,
    /// Means of the inputs of weights, by name, which products keep of the inputs that go.
    pub means: BTreeMap<String, Vec<f64>>,
    /// Groups, of how many.
    pub groups: (usize, usize),
    /// Parameters, of how many.
    pub parameters: (usize, usize),
}

/// What sorts of slices a group has.
type Kind = Vec<(ValueId, usize)>;

/// Decides what goes.
///
/// # Errors
/// No group fits, the share is none, there is no data to look at, or a constant does not decode.
pub(super) fn choose(module: &Module, cut: &Cut, means: &Means) -> Result<Removed, CompressError> {
    let failed = |reason: &str| CompressError::Cut(cut.name.clone(), reason.to_owned());
    if !(0.0..1.0).contains(&cut.share) {
        return Err(failed("`share` is at least 0 and less than 1"));
    }
    (means.progress)(&format!("cut {}", cut.name));
    let dependencies = Dependencies::of(module);
    let named = |v: ValueId| fits(&cut.name, &module.value(v).name);
    let mut groups = groups_in_use(module, &dependencies);
    groups.retain(|g| g.members.iter().any(|m| named(m.value)));
    if groups.is_empty() {
        return Err(failed(
            "no weight of this name has channels, neurons or heads that can go alone",
        ));
    }
    let mut removed = Removed::default();
    let scores = match cut.method {
        Score::Magnitude => magnitudes(module, &groups)?,
        Score::Flap => fluctuations(module, &groups, cut, means, &mut removed.means)?,
    };
    let structures = structures(module, &groups, &scores);
    let mut gone: BTreeSet<usize> = flap::choose(&structures, cut.share).into_iter().collect();
    for places in kinds(&groups).values() {
        if places.iter().all(|k| gone.contains(k))
            && let Some(best) = places
                .iter()
                .max_by(|&&a, &&b| scores[a].total_cmp(&scores[b]))
        {
            gone.remove(best);
        }
    }
    for member in gone.iter().flat_map(|&k| &groups[k].members) {
        let name = module.value(member.value).name.clone();
        let slices = removed.slices.entry((name, member.axis)).or_default();
        slices.extend(&member.indices);
    }
    let count = |places: &mut dyn Iterator<Item = usize>| {
        places.map(|k| structures[k].parameters).sum::<usize>()
    };
    removed.groups = (gone.len(), groups.len());
    removed.parameters = (
        count(&mut gone.iter().copied()),
        count(&mut (0..groups.len())),
    );
    Ok(removed)
}

/// Takes out of a module what was removed from the same network, perhaps in another form.
///
/// # Errors
/// In this form something else depends on what goes.
pub fn remove(module: &mut Module, removed: &Removed) -> Result<(), CompressError> {
    let Some(((first, _), _)) = removed.slices.first_key_value() else {
        return Ok(());
    };
    let failed = |reason: String| CompressError::Cut(first.clone(), reason);
    let dependencies = Dependencies::of(module);
    let place = |v: ValueId, axis: usize| (module.value(v).name.clone(), axis);
    let mut groups = groups_in_use(module, &dependencies);
    groups.retain(|g| {
        g.members.iter().any(|m| {
            let slices = removed.slices.get(&place(m.value, m.axis));
            slices.is_some_and(|s| m.indices.iter().any(|i| s.contains(i)))
        })
    });
    let mut found: BTreeMap<(String, usize), BTreeSet<usize>> = BTreeMap::new();
    for m in groups.iter().flat_map(|g| &g.members) {
        found
            .entry(place(m.value, m.axis))
            .or_default()
            .extend(&m.indices);
    }
    if found != removed.slices {
        return Err(failed(
            "what goes is tied to what has to stay in a program of this form (heads, where keys and values are kept)".to_owned(),
        ));
    }
    let usage = Usage::of(module);
    let sites = find(module);
    let mut means: HashMap<ValueId, &Vec<f64>> = HashMap::new();
    for site in &sites {
        let Some(mean) = removed.means.get(&site.name) else {
            continue;
        };
        for source in usage.sources(module, site) {
            if let Source::Rows(x) = source {
                means.insert(x, mean);
            }
        }
    }
    let mean = |v: ValueId| means.get(&v).map(|m| m.to_vec());
    cut_with_means(module, &dependencies, &groups, &mean).map_err(|e| failed(e.to_string()))
}

/// Groups of constants that something reads: of others several may have one name.
fn groups_in_use<'d>(module: &Module, dependencies: &'d Dependencies) -> Vec<&'d Group> {
    let read = in_use(module);
    let whole = |g: &&Group| g.members.iter().all(|m| read.contains(&m.value));
    dependencies.groups().iter().filter(whole).collect()
}

/// Groups by what they have slices of.
fn kinds(groups: &[&Group]) -> BTreeMap<Kind, Vec<usize>> {
    let mut kinds: BTreeMap<Kind, Vec<usize>> = BTreeMap::new();
    for (k, group) in groups.iter().enumerate() {
        let kind = group.members.iter().map(|m| (m.value, m.axis)).collect();
        kinds.entry(kind).or_default().push(k);
    }
    kinds
}

/// Elements of a slice of an axis of a constant, and how long the axis is.
fn slice(module: &Module, v: ValueId, axis: usize) -> (usize, usize) {
    let shape = module.as_constant(v).map_or(&[][..], |c| c.shape());
    let len = shape.get(axis).copied().unwrap_or(1).max(1);
    (shape.iter().product::<usize>() / len, len)
}

/// Scores that can be compared, with the parameters of each group.
fn structures(module: &Module, groups: &[&Group], scores: &[f64]) -> Vec<Structure> {
    let mut structures: Vec<Structure> = groups
        .iter()
        .map(|g| {
            let own = |m: &crate::methods::structured::groups::Member| {
                slice(module, m.value, m.axis).0 * m.indices.len()
            };
            Structure {
                score: 0.0,
                parameters: g.members.iter().map(own).sum(),
            }
        })
        .collect();
    for places in kinds(groups).values() {
        let own: Vec<f64> = places.iter().map(|&k| scores[k]).collect();
        for (&k, score) in places.iter().zip(standardize(&own)) {
            structures[k].score = score;
        }
    }
    structures
}

/// Mean squares of groups' weights.
fn magnitudes(module: &Module, groups: &[&Group]) -> Result<Vec<f64>, CompressError> {
    // Sums of squares along each axis that some group has a slice of; each constant is decoded once.
    let mut axes: BTreeMap<ValueId, BTreeSet<usize>> = BTreeMap::new();
    for m in groups.iter().flat_map(|g| &g.members) {
        axes.entry(m.value).or_default().insert(m.axis);
    }
    let mut sums: BTreeMap<(ValueId, usize), Vec<f64>> = BTreeMap::new();
    for (v, axes) in axes {
        let bad =
            |reason: &str| CompressError::Weight(module.value(v).name.clone(), reason.to_owned());
        let constant = module.as_constant(v).ok_or_else(|| bad("is no constant"))?;
        let tensor = constant.decode().map_err(|e| bad(&e.reason))?;
        let values = tensor.to_f64s().ok_or_else(|| bad("is not of numbers"))?;
        for axis in axes {
            let (_, len) = slice(module, v, axis);
            let inner: usize = tensor.shape()[axis + 1..].iter().product();
            let mut own = vec![0.0; len];
            let squares = values.iter().enumerate();
            squares.for_each(|(i, x)| own[i / inner.max(1) % len] += x * x);
            sums.insert((v, axis), own);
        }
        module.sources.release(constant.stored_bytes());
    }
    let mean = |g: &&Group| {
        let (mut square, mut count) = (0.0, 0);
        for m in &g.members {
            let own = &sums[&(m.value, m.axis)];
            square += m.indices.iter().map(|&i| own[i]).sum::<f64>();
            count += slice(module, m.value, m.axis).0 * m.indices.len();
        }
        square / count.max(1) as f64
    };
    Ok(groups.iter().map(mean).collect())
}

/// FLAP's scores of groups, by the weights that read their values; and the means of these weights' inputs.
fn fluctuations(
    module: &Module,
    groups: &[&Group],
    cut: &Cut,
    means: &Means,
    inputs: &mut BTreeMap<String, Vec<f64>>,
) -> Result<Vec<f64>, CompressError> {
    let failed = |reason: &str| CompressError::Cut(cut.name.clone(), reason.to_owned());
    if means.data.is_none() {
        return Err(failed("flap looks at data: give it by --calibrate"));
    }
    let sites = find(module);
    let reads = |site: &Site| {
        let axis = usize::from(site.view != View::Columns);
        let mut members = groups.iter().flat_map(|g| &g.members);
        members.any(|m| (m.value, m.axis) == (site.weight, axis))
    };
    let wanted: Vec<usize> = (0..sites.len()).filter(|&i| reads(&sites[i])).collect();
    let memory = Memory::default();
    let kept = Kept {
        store: means.store.or(means.scratch).unwrap_or(&memory),
        keys: Keys::of(module, means),
    };
    let mut columns: HashMap<(ValueId, usize), Vec<f64>> = HashMap::new();
    observe::visit(module, &sites, &wanted, means, kept, &mut |i, known| {
        let site = &sites[i];
        if let Some(known) = known {
            let axis = usize::from(site.view != View::Columns);
            let scores = flap::scores(&matrix(module, site)?, known);
            // All places of a filter are one channel's.
            let (_, len) = slice(module, site.weight, axis);
            let each = scores.chunks(scores.len().max(1) / len);
            let own = each.map(|taps| taps.iter().sum()).collect();
            columns.insert((site.weight, axis), own);
            inputs.insert(site.name.clone(), known.mean.clone());
        }
        Ok(())
    })?;
    let score = |g: &&Group| {
        let read = g.members.iter().filter_map(|m| {
            let own = columns.get(&(m.value, m.axis))?;
            let sum: f64 = m.indices.iter().map(|&i| own[i]).sum();
            Some(sum / m.indices.len().max(1) as f64)
        });
        let read: Vec<f64> = read.collect();
        let nobody = || failed("flap knows of no product that reads these values");
        match read.is_empty() {
            true => Err(nobody()),
            false => Ok(read.iter().sum()),
        }
    };
    groups.iter().map(score).collect()
}
