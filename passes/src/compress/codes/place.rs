//! Which values become codes, and who reads them.

use super::Scope;
use lapidary_ir::{ElemType, Module, NodeId, ValueId};
use std::collections::{BTreeMap, HashMap, HashSet};

/// What of a value's numbers counts for its range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Counted {
    /// All of them.
    All,
    /// What is not far below the largest along this axis: a softmax alone reads it.
    Scores(i64),
    /// Nothing: they are known to lie between 0 and 1.
    Shares,
}

/// A value that becomes codes.
#[derive(Debug)]
pub(super) struct Place {
    /// The value.
    pub value: ValueId,
    /// Its range's number: parts of one value have the same.
    pub range: usize,
    /// What counts for the range.
    pub counted: Counted,
    /// Every reader reads the codes, not only `uses`: what is stored then are codes alone.
    pub everywhere: bool,
    /// Nodes and operands that read the codes.
    pub uses: HashSet<(NodeId, usize)>,
}

/// A product with a weight.
#[derive(Debug)]
pub(super) struct Product {
    /// The node; operand 1 is the weight.
    pub node: NodeId,
    /// Axis of the weight's outputs.
    pub axis: usize,
    /// What its left operand is made of.
    pub reads: Vec<ValueId>,
}

/// What is to become codes.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Values, in the order of the program.
    pub places: Vec<Place>,
    /// Number of ranges.
    pub ranges: usize,
    /// Products whose left operands are some of them, or parts of some.
    pub products: Vec<Product>,
}

/// Functions of one number, which are tables where they read codes.
const FUNCTIONS: &[&str] = &[
    "gelu",
    "sigmoid",
    "tanh",
    "swish",
    "mish",
    "hard_swish",
    "hard_sigmoid",
    "elu",
    "selu",
    "celu",
    "softplus",
    "softsign",
    "erf",
];

/// Ops that move the elements of operand 0, which therefore do so with codes.
const MOVERS: &[&str] = &[
    "reshape",
    "flatten",
    "transpose",
    "squeeze",
    "unsqueeze",
    "max_pool",
    "gather",
    "slice",
    "identity",
];

/// The values of the top region that become codes.
pub(super) fn find(module: &Module, scope: Scope) -> Found {
    let constant = constants(module);
    let is_code = |v: ValueId| {
        module
            .producer(v)
            .is_some_and(|n| module.node(n).op.name == "dequantize_linear")
    };
    let fits = |v: ValueId| {
        module.value(v).ty.elem() == Some(ElemType::F32)
            && !constant.contains_key(&v)
            && !is_code(v)
    };
    let mut ranges = Ranges::default();
    let mut places: BTreeMap<ValueId, Place> = BTreeMap::new();
    let mut products = vec![];
    for &n in &module.top().nodes {
        let product = product(module, n, &constant);
        let mut reads = vec![];
        match (module.node(n).op.name, &product) {
            ("matmul" | "gemm", None) if scope == Scope::All => {
                let both = [0, 1].into_iter();
                let computed = both.filter(|&i| {
                    let v = module.node(n).operand(i);
                    v.is_some_and(|v| !constant.contains_key(&v))
                });
                reads.extend(computed.map(|i| (i, Counted::All)));
            }
            ("conv" | "matmul" | "gemm", Some(_)) => reads.push((0, Counted::All)),
            (_, _) if scope == Scope::Products => (),
            ("softmax", _) => {
                let axis = module.node(n).int("axis").unwrap_or(-1);
                reads.push((0, Counted::Scores(axis)));
            }
            ("layer_normalization" | "rms_normalization", _) => reads.push((0, Counted::All)),
            (name, _) if FUNCTIONS.contains(&name) => reads.push((0, Counted::All)),
            _ => (),
        }
        // A convolution's inputs are the bulk of what is stored between operations.
        let everywhere = scope == Scope::All || module.node(n).op.name == "conv";
        let (mut all_fit, mut read) = (true, vec![]);
        for (operand, counted) in reads {
            let Some(v) = module.node(n).operand(operand) else {
                continue;
            };
            let roots = roots(module, v, (n, operand));
            if !roots.iter().all(|r| fits(r.value)) {
                all_fit = false;
                continue;
            }
            let mut shared: Option<usize> = None;
            for root in roots {
                let shares = made_by(module, root.value, "softmax");
                let counted = match shares {
                    true => Counted::Shares,
                    false => counted,
                };
                let place = places.entry(root.value).or_insert_with(|| Place {
                    value: root.value,
                    range: ranges.add(),
                    counted,
                    everywhere: false,
                    uses: HashSet::new(),
                });
                if place.counted != counted {
                    place.counted = Counted::All;
                }
                read.push(root.value);
                place.everywhere |= everywhere;
                place.uses.insert(root.read);
                match shared {
                    Some(other) => ranges.unite(other, place.range),
                    None => shared = Some(place.range),
                }
            }
        }
        let complete = |product| Product {
            reads: read,
            ..product
        };
        products.extend(product.filter(|_| all_fit).map(complete));
    }
    for (v, read) in addends(module, &places, &products) {
        let place = places.entry(v).or_insert_with(|| Place {
            value: v,
            range: ranges.add(),
            counted: Counted::All,
            everywhere: false,
            uses: HashSet::new(),
        });
        place.uses.insert(read);
    }
    let mut numbers: HashMap<usize, usize> = HashMap::new();
    let places = places.into_values().map(|mut place| {
        let next = numbers.len();
        place.range = *numbers.entry(ranges.root(place.range)).or_insert(next);
        place
    });
    let places = places.collect();
    Found {
        places,
        ranges: numbers.len(),
        products,
    }
}

/// Results of convolutions that are added to something and stored as codes then: as codes themselves they are added while the
/// convolution has them in registers.
fn addends(
    module: &Module,
    places: &BTreeMap<ValueId, Place>,
    products: &[Product],
) -> Vec<(ValueId, (NodeId, usize))> {
    let convolutions: HashSet<ValueId> = products
        .iter()
        .map(|p| module.node(p.node))
        .filter(|node| node.op.name == "conv")
        .map(|node| node.results[0])
        .collect();
    let mut found = vec![];
    for place in places.values().filter(|p| p.everywhere) {
        let Some(mut n) = module.producer(place.value) else {
            continue;
        };
        if module.node(n).op.name == "relu"
            && let Some(before) = module.node(n).operand(0).and_then(|v| module.producer(v))
        {
            n = before;
        }
        let sum = module.node(n);
        if sum.op.name == "add" {
            let operands = sum.operands.iter().enumerate();
            let made = operands.filter_map(|(i, v)| Some(((*v)?, (n, i))));
            found.extend(made.filter(|(v, _)| convolutions.contains(v)));
        }
    }
    found
}

/// A product of a value of floats with a weight of plain numbers.
fn product(module: &Module, n: NodeId, constant: &HashMap<ValueId, bool>) -> Option<Product> {
    let node = module.node(n);
    let weight = node.operand(1).filter(|w| constant.get(w) == Some(&true))?;
    let ty = &module.value(weight).ty;
    let rank = ty.shape()?.len();
    let axis = match node.op.name {
        "conv" => 0,
        "matmul" if rank == 2 => 1,
        "gemm"
            if rank == 2 && !node.flag("transA") && node.float("alpha").unwrap_or(1.0) == 1.0 =>
        {
            usize::from(!node.flag("transB"))
        }
        _ => return None,
    };
    (ty.elem() == Some(ElemType::F32)).then_some(Product {
        node: n,
        axis,
        reads: vec![],
    })
}

/// Where a value's elements were computed, and who reads that on the way.
struct Root {
    value: ValueId,
    read: (NodeId, usize),
}

fn roots(module: &Module, v: ValueId, read: (NodeId, usize)) -> Vec<Root> {
    if let Some(n) = module.producer(v) {
        let node = module.node(n);
        let (name, alone) = (node.op.name, node.results.len() == 1);
        if alone
            && MOVERS.contains(&name)
            && let Some(x) = node.operand(0)
            && module.as_constant(x).is_none()
        {
            return roots(module, x, (n, 0));
        }
        // Rows of which nothing may be seen are 0, which is a code as well.
        if name == "where"
            && node.operand(1).is_some_and(|v| is_zero(module, v))
            && let Some(x) = node.operand(2)
        {
            return roots(module, x, (n, 2));
        }
        if alone && name == "concat" {
            let parts = node.operands.iter().enumerate();
            return parts
                .filter_map(|(i, x)| Some(roots(module, (*x)?, (n, i))))
                .flatten()
                .collect();
        }
    }
    vec![Root { value: v, read }]
}

fn is_zero(module: &Module, v: ValueId) -> bool {
    let small = module
        .as_constant(v)
        .filter(|c| c.shape().iter().all(|&n| n == 1));
    let number = small.and_then(|c| c.decode().ok()?.to_f64s());
    number.as_deref() == Some(&[0.0])
}

fn made_by(module: &Module, v: ValueId, op: &str) -> bool {
    module
        .producer(v)
        .is_some_and(|n| module.node(n).op.name == op)
}

/// Values of the top region that depend on nothing but constants, constants included; and whether all of these are plain numbers.
fn constants(module: &Module) -> HashMap<ValueId, bool> {
    let mut found = HashMap::new();
    for &n in &module.top().nodes {
        let node = module.node(n);
        for &v in node.operands.iter().flatten() {
            if let Some(constant) = module.as_constant(v) {
                found.insert(v, !constant.is_compressed());
            }
        }
        let operands = node.operands.iter().flatten();
        let known: Option<Vec<bool>> = operands.map(|v| found.get(v).copied()).collect();
        if let Some(plain) = known.filter(|k| !k.is_empty() && node.regions.is_empty()) {
            let plain = plain.into_iter().all(|p| p);
            found.extend(node.results.iter().map(|&r| (r, plain)));
        }
    }
    found
}

/// Ranges, some of which turn out to be one.
#[derive(Default)]
struct Ranges(Vec<usize>);

impl Ranges {
    fn add(&mut self) -> usize {
        self.0.push(self.0.len());
        self.0.len() - 1
    }

    fn root(&self, mut i: usize) -> usize {
        while self.0[i] != i {
            i = self.0[i];
        }
        i
    }

    fn unite(&mut self, a: usize, b: usize) {
        let (a, b) = (self.root(a), self.root(b));
        self.0[a.max(b)] = a.min(b);
    }
}
