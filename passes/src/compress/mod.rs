//! Compression within a budget: weights get the encodings with the least error that fit it.
//!
//! `before => after`: `matmul(x, dense W)` becomes `matmul(x, transpose(affine{..; int}))`, and so for each weight that is
//! worth it. Every method proposes encodings of every weight, each with its measured error and its stored bytes; a
//! multiple-choice knapsack picks one for each weight, so that the mean error is least within the bytes: relative errors, each
//! as often as the weight has elements, so that no large weight is given up for many small ones. Its lower bound
//! says how far from the best choice it can be at most. A recipe fixes choices by name, so that a build is repeated
//! without searching.

mod recipe;

pub use recipe::{Budget, Entry, Level, Recipe};

use crate::methods::matrix::Matrix;
use crate::methods::{Candidate, Layer, METHODS, Method, MethodError, Settings};
use crate::search::knapsack::{self, Choice, KnapsackError};
use lapidary_ir::builder::Builder;
use lapidary_ir::infer::{first_fresh, infer_module};
use lapidary_ir::ops::OpError;
use lapidary_ir::ops::compose::Len;
use lapidary_ir::tensor::count;
use lapidary_ir::{Constant, ElemType, Module, NodeId, ValueId};
use std::borrow::Cow;
use std::cell::Cell;
use std::collections::{BTreeMap, HashMap, HashSet};

/// Weights with fewer elements stay as they are: biases, norms, small filters.
const MIN_ELEMENTS: usize = 2048;

/// What was made of the weights.
#[derive(Clone, Debug)]
pub struct Report {
    /// Each weight that a choice was made for, in the order of the program.
    pub weights: Vec<Chosen>,
    /// Bytes of all weights before, and after.
    pub bytes: (u64, u64),
    /// Mean relative error of an element, and its lower bound within the budget; none with a recipe.
    pub bound: Option<(f64, f64)>,
}

/// What became of a weight.
#[derive(Clone, Debug)]
pub struct Chosen {
    /// Its name.
    pub name: String,
    /// Rows (outputs) and columns (inputs).
    pub shape: [usize; 2],
    /// The model stores outputs as columns.
    pub by_columns: bool,
    /// The choice.
    pub level: Level,
    /// The term, without its bytes.
    pub encoding: String,
    /// Bytes before and after.
    pub bytes: (u64, u64),
    /// Relative error of the weights: ‖W - Ŵ‖² / ‖W‖².
    pub error: f64,
    /// What the method assumed or repaired.
    pub assumptions: Vec<String>,
}

/// Why nothing was compressed.
#[derive(Debug, thiserror::Error)]
pub enum CompressError {
    /// There is no weight to compress.
    #[error("no weight has at least {MIN_ELEMENTS} elements and is a matrix, filters or a table")]
    NoWeights,
    /// A recipe names a method that there is not.
    #[error("there is no method `{0}`; there are: keep, {1}")]
    Unknown(String, String),
    /// A method cannot do what the recipe asks.
    #[error("`{weight}`: {method}: {error}")]
    Method {
        /// The weight.
        weight: String,
        /// The method.
        method: String,
        /// Why not.
        error: MethodError,
    },
    /// The budget is too small.
    #[error("the budget is {budget} bytes, the smallest that the methods reach is {least}")]
    Budget {
        /// Bytes asked.
        budget: u64,
        /// Least bytes.
        least: u64,
    },
    /// The choice failed.
    #[error(transparent)]
    Knapsack(#[from] KnapsackError),
    /// A weight does not decode.
    #[error("`{0}`: {1}")]
    Weight(String, String),
    /// The graph could not be changed.
    #[error("{}", .0.0)]
    Graph(OpError),
}

/// How a weight's elements are the matrix that methods see: rows are outputs.
#[derive(Clone, Copy, Debug, PartialEq)]
enum View {
    /// As stored: a table of rows, or a matrix that is used transposed.
    Rows,
    /// Stored with outputs as columns.
    Columns,
    /// Filters `[O, ..]`, each a row.
    Filters,
}

/// A weight that may be compressed.
struct Site {
    weight: ValueId,
    name: String,
    view: View,
    shape: [usize; 2],
}

/// What every weight is tried with, from large to small. They need no data.
fn levels() -> Vec<Level> {
    let of = |method: &str, bits, group, clip| Level {
        method: method.to_owned(),
        bits,
        group,
        symmetric: false,
        clip,
    };
    vec![
        Level::keep(),
        of("palette", 8, 0, false),
        of("fp8", 8, 0, false),
        of("rtn", 8, 0, false),
        of("rtn", 8, 64, false),
        of("rtn", 6, 64, false),
        of("rtn", 5, 32, false),
        of("rtn", 5, 128, false),
        of("rtn", 4, 32, true),
        of("rtn", 4, 128, true),
        of("hqq", 4, 64, false),
        of("nf4", 4, 64, false),
        of("mxfp4", 4, 32, false),
        of("palette", 4, 0, false),
        of("rtn", 3, 32, true),
        of("hqq", 3, 64, false),
        of("palette", 3, 0, false),
        of("rtn", 2, 16, true),
        of("hqq", 2, 32, false),
        of("palette", 2, 0, false),
        of("ternary", 2, 64, false),
        of("binary", 1, 64, false),
    ]
}

/// A weight that may be compressed, for those who choose what it is tried with.
#[derive(Clone, Debug, PartialEq)]
pub struct Weight {
    /// Its name.
    pub name: String,
    /// Rows (outputs) and columns (inputs).
    pub shape: [usize; 2],
    /// The model stores outputs as columns.
    pub by_columns: bool,
}

impl Site {
    fn weight(&self) -> Weight {
        Weight {
            name: self.name.clone(),
            shape: self.shape,
            by_columns: self.view == View::Columns,
        }
    }
}

/// The weights of a module that may be compressed, in the order of the program.
pub fn weights(module: &Module) -> Vec<Weight> {
    find(module).iter().map(Site::weight).collect()
}

/// Compresses the weights of a module; `progress` is told each weight's name as it is begun.
///
/// # Errors
/// The budget cannot be met, the recipe names what there is not, or a weight does not decode.
pub fn compress(
    module: &mut Module,
    budget: Budget,
    progress: &dyn Fn(&str),
) -> Result<Report, CompressError> {
    compress_among(module, budget, &|_| levels(), progress)
}

/// As [`compress`], with what each weight is tried with: a file's format may hold some encodings only.
///
/// # Errors
/// As [`compress`].
pub fn compress_among(
    module: &mut Module,
    budget: Budget,
    levels: &dyn Fn(&Weight) -> Vec<Level>,
    progress: &dyn Fn(&str),
) -> Result<Report, CompressError> {
    let sites = find(module);
    if sites.is_empty() {
        return Err(CompressError::NoWeights);
    }
    let all = stored(module);
    let own: u64 = sites.iter().map(|s| bytes_of(module, s)).sum();
    let elements: f64 = sites.iter().map(|s| (s.shape[0] * s.shape[1]) as f64).sum();
    let budget = match budget {
        Budget::Share(share) => all as f64 * share - (all - own) as f64,
        Budget::Bytes(bytes) => bytes as f64 - (all - own) as f64,
        Budget::Bits(bits) => elements * bits / 8.0,
    };
    let (mut tried, mut items) = (vec![], vec![]);
    for site in &sites {
        progress(&site.name);
        let matrix = matrix(module, site)?;
        // Only what the choice is made by is kept: the chosen term is made once more.
        let measured = levels(&site.weight()).into_iter().filter_map(|level| {
            let candidate = propose(site, || Ok(Cow::Borrowed(&matrix)), &level).ok()?;
            let (error, bytes) =
                candidate.map_or((0.0, bytes_of(module, site)), |c| (c.error, c.bytes));
            let costs = vec![bytes as f64];
            let error = error * (site.shape[0] * site.shape[1]) as f64 / elements;
            Some((level, Choice { error, costs }))
        });
        let (levels, choices): (Vec<Level>, Vec<Choice>) = measured.unzip();
        tried.push(levels);
        items.push(choices);
        module.sources.release(bytes_of(module, site) as usize);
    }
    let solution = knapsack::solve(&items, &[budget.max(0.0)], knapsack::Limits::default());
    let solution = solution.map_err(|e| match e {
        KnapsackError::Budget { least, .. } => CompressError::Budget {
            budget: (budget.max(0.0) + (all - own) as f64) as u64,
            least: least.iter().sum::<f64>() as u64 + (all - own),
        },
        other => other.into(),
    })?;
    let chosen = tried.into_iter().zip(&solution.chosen);
    let chosen = chosen.map(|(mut levels, &i)| levels.swap_remove(i));
    let mut report = apply(module, &sites, chosen.collect(), progress)?;
    report.bound = Some((solution.error, solution.bound));
    Ok(report)
}

/// Compresses as a recipe says; weights that it does not name stay as they are.
///
/// # Errors
/// As [`compress`].
pub fn follow(
    module: &mut Module,
    recipe: &Recipe,
    progress: &dyn Fn(&str),
) -> Result<Report, CompressError> {
    let sites = find(module);
    let level = |site: &Site| {
        let entry = recipe
            .weights
            .iter()
            .find(|e| recipe::fits(&e.name, &site.name));
        entry.map_or_else(Level::keep, |e| e.level.clone())
    };
    let levels = sites.iter().map(level).collect();
    apply(module, &sites, levels, progress)
}

impl Report {
    /// The recipe that gives the same again.
    pub fn recipe(&self) -> Recipe {
        let entry = |c: &Chosen| Entry {
            name: c.name.clone(),
            level: c.level.clone(),
        };
        Recipe {
            weights: self.weights.iter().map(entry).collect(),
        }
    }
}

/// Bytes of all constants.
fn stored(module: &Module) -> u64 {
    let constants = (0..module.value_count()).filter_map(|v| module.as_constant(ValueId(v as u32)));
    constants.map(|c| c.stored_bytes() as u64).sum()
}

fn bytes_of(module: &Module, site: &Site) -> u64 {
    module
        .as_constant(site.weight)
        .map_or(0, |c| c.stored_bytes() as u64)
}

/// Plain float weights that are used in one way only.
fn find(module: &Module) -> Vec<Site> {
    let mut views: BTreeMap<ValueId, Option<View>> = BTreeMap::new();
    let mut order = vec![];
    let mut note = |v: ValueId, view: Option<View>| {
        let known = views.entry(v).or_insert_with(|| {
            order.push(v);
            view
        });
        if *known != view {
            *known = None;
        }
    };
    let regions = module.reachable_regions();
    for &r in &regions {
        for &n in &module.region(r).nodes {
            for (i, v) in module.node(n).operands.iter().enumerate() {
                if let Some(v) = v.filter(|v| module.as_constant(*v).is_some()) {
                    note(v, view(module, n, i));
                }
            }
        }
        // A result is not a weight.
        module.region(r).outputs.iter().for_each(|&v| note(v, None));
    }
    let mut seen = HashSet::new();
    let site = |v: ValueId| {
        let (view, constant) = (views[&v]?, module.as_constant(v)?);
        let plain =
            constant.elem().is_float() && constant.elem().bits() >= 16 && !constant.is_compressed();
        let shape = constant.shape();
        let (&rows, inner) = shape.split_first()?;
        let shape = match view {
            View::Columns => [inner.first().copied()?, rows],
            _ => [rows, count(inner)],
        };
        let name = &module.value(v).name;
        // Names are what recipes go by.
        let name = if name.is_empty() || !seen.insert(name.clone()) {
            format!("{name}#{}", v.0)
        } else {
            name.clone()
        };
        (plain && shape[0] * shape[1] >= MIN_ELEMENTS).then_some(Site {
            weight: v,
            name,
            view,
            shape,
        })
    };
    order.into_iter().filter_map(site).collect()
}

/// How operand `i` of a node is used as a weight.
fn view(module: &Module, n: NodeId, i: usize) -> Option<View> {
    let node = module.node(n);
    let rank = module.value(node.operand(i)?).ty.shape()?.len();
    match (node.op.name, i) {
        ("matmul", 1) if rank == 2 => Some(View::Columns),
        ("gemm", 1) if rank == 2 => Some(if node.flag("transB") {
            View::Rows
        } else {
            View::Columns
        }),
        ("conv", 1) if rank >= 2 => Some(View::Filters),
        ("gather", 0) if rank == 2 && node.int("axis").ok()? == 0 => Some(View::Rows),
        ("transpose", 0) if rank == 2 => Some(View::Rows),
        _ => None,
    }
}

/// The weight as methods see it.
fn matrix(module: &Module, site: &Site) -> Result<Matrix, CompressError> {
    let bad = |reason: &str| CompressError::Weight(site.name.clone(), reason.to_owned());
    let constant = module
        .as_constant(site.weight)
        .ok_or_else(|| bad("is no constant"))?;
    let tensor = constant.decode().map_err(|e| bad(&e.reason))?;
    let values = tensor
        .floats()
        .ok_or_else(|| bad("is not of floats"))?
        .to_vec();
    let [rows, cols] = site.shape;
    let matrix = match site.view {
        View::Columns => Matrix::new(cols, rows, values).map(|m| m.transpose()),
        View::Rows | View::Filters => Matrix::new(rows, cols, values),
    };
    matrix.ok_or_else(|| bad("has another number of elements than its shape"))
}

/// What a level makes of a weight; none if it stays as it is.
fn propose<'m>(
    site: &Site,
    matrix: impl FnOnce() -> Result<Cow<'m, Matrix>, CompressError>,
    level: &Level,
) -> Result<Option<Candidate>, CompressError> {
    if level.keeps() {
        return Ok(None);
    }
    let matrix = matrix()?;
    let fails = |error| CompressError::Method {
        weight: site.name.clone(),
        method: level.method.clone(),
        error,
    };
    let method = method(&level.method)?;
    let layer = Layer::new(&matrix, None).map_err(fails)?;
    let settings = Settings {
        bits: level.bits,
        group_len: level.group,
        symmetric: level.symmetric,
        clip: level.clip,
        ..Settings::default()
    };
    (method.propose)(&layer, &settings).map(Some).map_err(fails)
}

fn method(name: &str) -> Result<&'static Method, CompressError> {
    METHODS
        .iter()
        .copied()
        .find(|m| m.name == name)
        .ok_or_else(|| {
            let names: Vec<&str> = METHODS.iter().map(|m| m.name).collect();
            CompressError::Unknown(name.to_owned(), names.join(", "))
        })
}

/// Puts the terms of the chosen levels in the place of the weights.
fn apply(
    module: &mut Module,
    sites: &[Site],
    levels: Vec<Level>,
    progress: &dyn Fn(&str),
) -> Result<Report, CompressError> {
    let before = stored(module);
    let fresh = Cell::new(first_fresh(module));
    let (mut weights, mut terms, mut after) = (vec![], HashMap::new(), before);
    for (site, level) in sites.iter().zip(levels) {
        progress(&site.name);
        let own = bytes_of(module, site);
        let mut chosen = Chosen {
            name: site.name.clone(),
            shape: site.shape,
            by_columns: site.view == View::Columns,
            level,
            encoding: "dense".to_owned(),
            bytes: (own, own),
            error: 0.0,
            assumptions: vec![],
        };
        let read = || matrix(module, site).map(Cow::Owned);
        if let Some(candidate) = propose(site, read, &chosen.level)? {
            chosen.encoding = candidate.encoding.to_string();
            chosen.bytes.1 = candidate.bytes;
            chosen.error = candidate.error;
            chosen.assumptions = candidate.assumptions;
            after = after - own + candidate.bytes;
            let term = module.add_constant(&site.name, Constant::new(candidate.encoding));
            terms.insert(site.weight, (term, site));
        }
        module.sources.release(own as usize);
        weights.push(chosen);
    }
    let wide: HashSet<ValueId> = terms
        .keys()
        .copied()
        .filter(|&v| is_widened(module, v))
        .collect();
    for r in module.reachable_regions() {
        replace(module, r, &terms, &wide, &fresh).map_err(CompressError::Graph)?;
    }
    if !wide.is_empty() {
        infer_module(module);
        drop_idle_casts(module);
    }
    Ok(Report {
        weights,
        bytes: (before, after),
        bound: None,
    })
}

/// True for a weight of a small float type of which nothing is used but its numbers as `f32`: a term, which decodes to
/// `f32`, need not be rounded to that type.
fn is_widened(module: &Module, v: ValueId) -> bool {
    module.value(v).ty.elem() != Some(ElemType::F32)
        && module.reachable_regions().into_iter().all(|r| {
            let region = module.region(r);
            let reads = |n: &&NodeId| module.node(**n).operands.contains(&Some(v));
            !region.outputs.contains(&v)
                && region.nodes.iter().filter(reads).all(|&n| {
                    let node = module.node(n);
                    let moves = matches!(node.op.name, "transpose" | "gather")
                        && node.operand(0) == Some(v);
                    let casts =
                        node.op.name == "cast" && node.elem_attr("to") == Some(ElemType::F32);
                    casts || moves && is_widened(module, node.results[0])
                })
        })
}

/// Lets what reads a cast of `f32` to `f32` read its operand.
fn drop_idle_casts(module: &mut Module) {
    for r in module.reachable_regions() {
        for n in module.region(r).nodes.clone() {
            let node = module.node(n);
            let (result, operand) = (node.results[0], node.operand(0));
            let is_f32 = |v: ValueId| module.value(v).ty.elem() == Some(ElemType::F32);
            if let Some(x) =
                operand.filter(|&x| node.op.name == "cast" && is_f32(x) && is_f32(result))
            {
                module.replace_uses(result, x);
            }
        }
    }
    module.remove_dead_nodes();
}

/// Lets the nodes of a region read the terms, each in the weight's own shape, and type unless it is one of `wide`.
fn replace(
    module: &mut Module,
    region: lapidary_ir::RegionId,
    terms: &HashMap<ValueId, (ValueId, &Site)>,
    wide: &HashSet<ValueId>,
    fresh: &Cell<u32>,
) -> Result<(), OpError> {
    let nodes = std::mem::take(&mut module.region_mut(region).nodes);
    let mut made: HashMap<ValueId, ValueId> = HashMap::new();
    for n in nodes {
        for i in 0..module.node(n).operands.len() {
            let Some(v) = module.node(n).operands[i] else {
                continue;
            };
            let Some(&(term, site)) = terms.get(&v) else {
                continue;
            };
            let value = match made.get(&v) {
                Some(&value) => value,
                None => {
                    let info = module.value(v);
                    let own = info.ty.elem().filter(|_| !wide.contains(&v));
                    let elem = own.unwrap_or(ElemType::F32);
                    let shape = info.ty.shape().unwrap_or_default().to_vec();
                    let mut b = Builder::new(module, region, &site.name, fresh);
                    let value = as_before(&mut b, term, site, elem, &shape)?;
                    made.insert(v, value);
                    value
                }
            };
            module.node_mut(n).operands[i] = Some(value);
        }
        module.region_mut(region).nodes.push(n);
    }
    Ok(())
}

fn as_before(
    b: &mut Builder,
    term: ValueId,
    site: &Site,
    elem: ElemType,
    shape: &[lapidary_ir::Dim],
) -> Result<ValueId, OpError> {
    let value = b.cast(term, elem)?;
    match site.view {
        View::Rows => Ok(value),
        View::Columns => b.transpose(value, &[1, 0]),
        View::Filters => {
            let lens: Vec<Len> = shape
                .iter()
                .map(|d| Len::N(d.as_const().unwrap_or(-1)))
                .collect();
            b.reshape(value, &lens)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lapidary_ir::tensor::Value;
    use lapidary_ir::{Tensor, Type, eval};

    fn weight(shape: &[usize], seed: u64) -> Tensor {
        let n: usize = shape.iter().product();
        Tensor::from_f64(
            ElemType::F32,
            shape,
            lapidary_ir::random::SplitMix64::new(seed).normals(n),
        )
    }

    /// A table, a product, a transposed one with a bias, and filters.
    fn network() -> Module {
        let (mut m, fresh) = (Module::new("net"), Cell::new(0));
        let ids = m.add_input(Module::TOP, "ids", Type::tensor(ElemType::I64, [3i64]));
        let image = m.add_input(
            Module::TOP,
            "image",
            Type::tensor(ElemType::F32, [1i64, 8, 5, 5]),
        );
        let named =
            |m: &mut Module, name: &str, t: &Tensor| m.add_constant(name, Constant::from_tensor(t));
        let table = named(&mut m, "table", &weight(&[100, 64], 1));
        let w = named(&mut m, "w", &weight(&[64, 48], 2));
        let v = named(&mut m, "v", &weight(&[80, 48], 3));
        let bias = named(&mut m, "bias", &weight(&[80], 4));
        let filters = named(&mut m, "filters", &weight(&[32, 8, 3, 3], 5));
        let mut b = Builder::new(&mut m, Module::TOP, "n", &fresh);
        let x = b.op("gather", &[table, ids]).expect("fits");
        let x = b.op("matmul", &[x, w]).expect("fits");
        let x = b
            .op_with("gemm", &[x, v, bias], [("transB", 1i64.into())])
            .expect("fits");
        let y = b.op("conv", &[image, filters]).expect("fits");
        for (v, name) in [(x, "x"), (y, "y")] {
            m.region_mut(Module::TOP).outputs.push(v);
            m.output_names.push(name.into());
        }
        m
    }

    fn run(m: &Module) -> Vec<f64> {
        let inputs: Vec<Value> = vec![
            Tensor::ints(&[7, 0, 99]).into(),
            weight(&[1, 8, 5, 5], 6).into(),
        ];
        let out = eval::run(m, inputs).expect("runs");
        out.iter()
            .flat_map(|v| v.as_tensor().and_then(Tensor::to_f64s).expect("numbers"))
            .collect()
    }

    fn distance(a: &[f64], b: &[f64]) -> f64 {
        let (far, own) = a.iter().zip(b).fold((0.0, 0.0), |(f, o), (x, y)| {
            (f + (x - y).powi(2), o + x * x)
        });
        far / own
    }

    #[test]
    fn budgets_are_kept_and_more_of_it_is_better() {
        let dense = run(&network());
        let mut last = f64::INFINITY;
        for share in [0.1, 0.15, 0.3, 0.6, 1.0] {
            let mut m = network();
            let report = compress(&mut m, Budget::Share(share), &|_| ()).expect("fits");
            assert_eq!(report.weights.len(), 4);
            assert!(
                report.bytes.1 as f64 <= share * report.bytes.0 as f64,
                "{share}"
            );
            let (error, bound) = report.bound.expect("searched");
            assert!(bound <= error + 1e-12 && error <= last + 1e-12);
            last = error;
            // Relative errors of two products in a row add up, roughly.
            let worst = report.weights.iter().map(|w| w.error).fold(0.0, f64::max);
            assert!(distance(&dense, &run(&m)) <= 4.0 * worst + 1e-9, "{share}");
            let sum: u64 = (0..m.value_count())
                .filter_map(|v| m.as_constant(ValueId(v as u32)))
                .map(|c| c.encoding())
                .filter(|e| e.is_compressed())
                .map(|e| e.stored_bytes())
                .sum();
            let said: u64 = report
                .weights
                .iter()
                .filter(|w| w.level.method != "keep")
                .map(|w| w.bytes.1)
                .sum();
            assert_eq!(sum, said);
        }
        assert_eq!(last, 0.0);
    }

    /// As checkpoints are imported: `matmul(x, cast(transpose(W of bf16)))`, and rows of the same table.
    #[test]
    fn numbers_of_small_types_are_not_rounded_twice() {
        let (mut m, fresh) = (Module::new("net"), Cell::new(0));
        let ids = m.add_input(Module::TOP, "ids", Type::tensor(ElemType::I64, [3i64]));
        let w = weight(&[96, 64], 1).floats().expect("floats").to_vec();
        let w = m.add_constant(
            "w",
            Constant::from_tensor(&Tensor::from_f64(ElemType::BF16, [96, 64], w)),
        );
        let mut b = Builder::new(&mut m, Module::TOP, "n", &fresh);
        let x = b.op("gather", &[w, ids]).expect("fits");
        let x = b.cast(x, ElemType::F32).expect("fits");
        let t = b.transpose(w, &[1, 0]).expect("fits");
        let t = b.cast(t, ElemType::F32).expect("fits");
        let y = b.op("matmul", &[x, t]).expect("fits");
        m.region_mut(Module::TOP).outputs.push(y);
        m.output_names.push("y".into());
        let before = m.clone();
        let report = compress(&mut m, Budget::Bits(8.5), &|_| ()).expect("fits");
        assert_eq!(
            (report.weights.len(), report.weights[0].bytes.0),
            (1, 2 * 96 * 64)
        );
        assert!(m.top().nodes.iter().all(|&n| m.node(n).op.name != "cast"));
        let of = |m: &Module| {
            let out = eval::run(m, vec![Tensor::ints(&[7, 0, 95]).into()]).expect("runs");
            out[0]
                .as_tensor()
                .and_then(Tensor::to_f64s)
                .expect("numbers")
        };
        assert!(distance(&of(&before), &of(&m)) < 1e-3);
    }

    #[test]
    fn a_recipe_repeats_a_build() {
        let (mut a, mut b) = (network(), network());
        let report = compress(&mut a, Budget::Bits(3.5), &|_| ()).expect("fits");
        let text = toml::to_string(&report.recipe()).expect("writes");
        let recipe: Recipe = toml::from_str(&text).expect("reads back");
        let again = follow(&mut b, &recipe, &|_| ()).expect("fits");
        assert_eq!(recipe, again.recipe());
        assert_eq!(run(&a), run(&b));
    }

    #[test]
    fn a_recipe_may_keep_weights() {
        let recipe =
            "[[weight]]\nname = 'w'\nmethod = 'keep'\n[[weight]]\nname = '*'\nmethod = 'rtn'";
        let recipe: Recipe = toml::from_str(recipe).expect("reads");
        let report = follow(&mut network(), &recipe, &|_| ()).expect("fits");
        for w in &report.weights {
            assert_eq!(w.bytes.0 == w.bytes.1, w.name == "w", "{}", w.name);
        }
    }

    #[test]
    fn what_cannot_be_met_is_said() {
        assert!(matches!(
            compress(&mut network(), Budget::Share(0.01), &|_| ()),
            Err(CompressError::Budget { .. })
        ));
        let unknown = Recipe {
            weights: vec![Entry {
                name: "*".into(),
                level: Level {
                    method: "magic".into(),
                    bits: 4,
                    group: 0,
                    symmetric: false,
                    clip: false,
                },
            }],
        };
        assert!(matches!(
            follow(&mut network(), &unknown, &|_| ()),
            Err(CompressError::Unknown(..))
        ));
        assert!(matches!(
            compress(&mut Module::new("empty"), Budget::Bits(4.0), &|_| ()),
            Err(CompressError::NoWeights)
        ));
    }
}
