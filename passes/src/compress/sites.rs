//! Where a module has weights that may be compressed, and what reads them.

use super::CompressError;
use crate::methods::matrix::Matrix;
use lapidary_ir::tensor::count;
use lapidary_ir::{Module, NodeId, ValueId};
use std::collections::{BTreeMap, HashMap, HashSet};

/// Weights with fewer elements stay as they are: biases, norms, small filters.
pub(super) const MIN_ELEMENTS: usize = 2048;

/// How a weight's elements are the matrix that methods see: rows are outputs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum View {
    /// As stored: a table of rows, or a matrix that is used transposed.
    Rows,
    /// Stored with outputs as columns.
    Columns,
    /// Filters `[O, ..]`, each a row.
    Filters,
}

/// A weight that may be compressed.
pub(super) struct Site {
    /// The constant.
    pub weight: ValueId,
    /// Its name, which recipes go by; no two have the same.
    pub name: String,
    /// How its elements are a matrix.
    pub view: View,
    /// Rows (outputs) and columns (inputs).
    pub shape: [usize; 2],
    /// Rows of it are looked up.
    pub looked_up: bool,
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
    /// There are statistics of its inputs.
    pub observed: bool,
    /// It is a table, too: rows of it are looked up.
    pub looked_up: bool,
}

impl Site {
    /// As others see it.
    pub fn described(&self, observed: bool) -> Weight {
        Weight {
            name: self.name.clone(),
            shape: self.shape,
            by_columns: self.view == View::Columns,
            observed,
            looked_up: self.looked_up,
        }
    }

    /// Elements of the weight.
    pub fn elements(&self) -> usize {
        self.shape[0] * self.shape[1]
    }
}

/// Constants that something reads.
pub(super) fn in_use(module: &Module) -> HashSet<ValueId> {
    let regions = module.reachable_regions();
    let read = regions.iter().flat_map(|&r| {
        let region = module.region(r);
        let operands = region.nodes.iter().flat_map(|&n| &module.node(n).operands);
        operands.flatten().chain(&region.outputs)
    });
    let constant = |v: &&ValueId| module.as_constant(**v).is_some();
    read.filter(constant).copied().collect()
}

/// Bytes of all constants.
pub(super) fn stored(module: &Module) -> u64 {
    let constants = in_use(module)
        .into_iter()
        .filter_map(|v| module.as_constant(v));
    constants.map(|c| c.stored_bytes() as u64).sum()
}

pub(super) fn bytes_of(module: &Module, site: &Site) -> u64 {
    module
        .as_constant(site.weight)
        .map_or(0, |c| c.stored_bytes() as u64)
}

/// Plain float weights that are used in one way only.
pub(super) fn find(module: &Module) -> Vec<Site> {
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
    let mut tables = HashSet::new();
    for &r in &regions {
        for &n in &module.region(r).nodes {
            for (i, v) in module.node(n).operands.iter().enumerate() {
                if let Some(v) = v.filter(|v| module.as_constant(*v).is_some()) {
                    note(v, view(module, n, i));
                    if i == 0 && module.node(n).op.name == "gather" {
                        tables.insert(v);
                    }
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
            looked_up: tables.contains(&v),
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
pub(super) fn matrix(module: &Module, site: &Site) -> Result<Matrix, CompressError> {
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

/// What a weight is multiplied with, as rows of its matrix see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Source {
    /// A value whose last axis is the inputs.
    Rows(ValueId),
    /// The windows of this convolution.
    Patches(NodeId),
}

/// Who reads what, in the top region.
pub(super) struct Usage {
    readers: HashMap<ValueId, Vec<(NodeId, usize)>>,
    places: HashMap<NodeId, usize>,
    producers: HashMap<ValueId, NodeId>,
}

impl Usage {
    /// Of a module.
    pub fn of(module: &Module) -> Usage {
        let mut usage = Usage {
            readers: HashMap::new(),
            places: HashMap::new(),
            producers: HashMap::new(),
        };
        for (place, &n) in module.top().nodes.iter().enumerate() {
            usage.places.insert(n, place);
            for (i, v) in module.node(n).operands.iter().enumerate() {
                if let Some(v) = *v {
                    usage.readers.entry(v).or_default().push((n, i));
                }
            }
            for &r in &module.node(n).results {
                usage.producers.insert(r, n);
            }
        }
        usage
    }

    /// Where in the order of computation a source is known.
    pub fn place(&self, source: Source) -> usize {
        let node = match source {
            Source::Rows(v) => self.producers.get(&v).copied(),
            Source::Patches(n) => Some(n),
        };
        node.and_then(|n| self.places.get(&n).copied()).unwrap_or(0)
    }

    /// What a weight is multiplied with, each once. A table whose rows are only looked up is multiplied with nothing.
    pub fn sources(&self, module: &Module, site: &Site) -> Vec<Source> {
        let mut found = vec![];
        self.follow(module, site.weight, &mut found);
        found.sort_unstable();
        found.dedup();
        found
    }

    fn follow(&self, module: &Module, weight: ValueId, found: &mut Vec<Source>) {
        for &(n, i) in self.readers.get(&weight).into_iter().flatten() {
            let node = module.node(n);
            let x = node.operand(0);
            match (node.op.name, i, x) {
                ("matmul", 1, Some(x)) => found.push(Source::Rows(x)),
                ("gemm", 1, Some(x)) if !node.flag("transA") => found.push(Source::Rows(x)),
                ("conv", 1, Some(_)) if node.int("group").is_ok_and(|g| g == 1) => {
                    found.push(Source::Patches(n));
                }
                ("transpose" | "cast", 0, _) => self.follow(module, node.results[0], found),
                _ => (),
            }
        }
    }
}
