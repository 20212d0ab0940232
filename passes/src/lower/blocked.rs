//! Products with compressed weights: codes of a few bits, with a scale for each block along the inner extent.
//!
//! ```text
//! matmul(round_blocks(x), transpose(const affine{scales; codes; zeros} or affmin{scales; codes; minimums}))
//!   => round x => blocks of codes              once for all products that read it
//!      product of blocks (codes, panels)
//! ```
//! Weights are packed from the file's own bytes when they are written. Where the left side is not rounded, a few blocks of a panel are
//! made numbers at a time, so that the weights never are all; other forms of weights are multiplied as numbers. GPUs have kernels
//! for weights that stay packed: see `packed`.

mod packed;
mod stored;

use super::expand::Facts;
use super::expr::E;
use super::index::Pos;
use super::linear::{self, Plan};
use super::{Element, KernelArg, Lowerer, Options, Rule, WeightSource};
use crate::schedules::Num;
use crate::schedules::blocks::{Blocks, CHUNK, rounding};
use lapidary_abi::kernel::{CODE_WIDTHS, MAX_BLOCK, code_unit};
use lapidary_ir::encodings::Encoding;
use lapidary_ir::kernel::blocks::{Format, PANEL, Zeros};
use lapidary_ir::kernel::{Binary, ReduceKind, Unary};
use lapidary_ir::ops::OpError;
use lapidary_ir::target::Target;
use lapidary_ir::{Attr, Constant, Dim, ElemType, Module, NodeId, ValueId};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use stored::Stored;

/// The family's lowerings.
pub static RULES: &[Rule] = &[Rule::scheduled("round_blocks", element, schedule)];

/// What multiplies its first operand with its second.
pub const PRODUCTS: [&str; 3] = ["matmul", "fused_linear", "refine"];

/// Operations worth waking another thread for.
const THREAD_WORK: i64 = 64 << 10;

/// Longest blocks that have a kernel: a block is a tile while it is rounded.
const MAX_ROUNDED: usize = 256;

/// What is known of these products before the first step is written.
#[derive(Debug, Default)]
pub struct Found {
    products: HashMap<NodeId, Product>,
    /// The blocks of codes that products read, by what is rounded and the factor of their sums.
    codes: HashMap<(ValueId, i32), Option<ValueId>>,
}

/// A product with compressed weights that have a kernel.
#[derive(Clone, Debug)]
struct Product {
    weights: Weights,
    way: Way,
}

/// How it is computed.
#[derive(Clone, Debug)]
enum Way {
    /// Of codes: the left side is rounded.
    Rounded,
    /// Of numbers: weights become numbers a few blocks at a time.
    Numbers,
    /// By a kernel for packed weights.
    Packed(packed::Launches),
}

/// Constant weights `[n, k]` in blocks along `k`.
#[derive(Clone, Debug)]
pub struct Weights {
    n: usize,
    blocks: usize,
    format: Format,
    /// Of the sum of a block's codes: minus the zero point, if it is the same for all.
    factor: i32,
    codes: Arc<Encoding>,
    stored: Stored,
    scales: Arc<Encoding>,
    beside: Beside,
    /// Where two of each four columns are kept, their places: codes are of these.
    places: Option<Arc<Encoding>>,
}

/// What is beside the scales of blocks.
#[derive(Clone, Debug)]
enum Beside {
    /// Nothing that columns differ in.
    Nothing,
    /// Zero points that are codes.
    Codes(Arc<Encoding>),
    /// Zero points that are no codes.
    Numbers(Arc<Encoding>),
    /// What is added to scale times code.
    Minimums(Arc<Encoding>),
}

impl Beside {
    /// How micro-kernels have it.
    fn zeros(&self) -> Zeros {
        match self {
            Beside::Nothing => Zeros::Shared,
            Beside::Codes(_) => Zeros::Codes,
            Beside::Numbers(_) | Beside::Minimums(_) => Zeros::Minimums,
        }
    }
}

/// The compressed constant whose transposition is `v`.
pub(super) fn transposed(module: &Module, v: ValueId) -> Option<&Constant> {
    let node = module.node(module.producer(v)?);
    let swapped = node.op.name == "transpose" && node.ints("perm").is_none_or(|p| p == [1, 0]);
    let constant = module.as_constant(node.operand(0)?)?;
    (swapped && constant.is_compressed() && constant.shape().len() == 2).then_some(constant)
}

/// Compressed constants that are read, transposed, by products alone of which `fits` says that they take them as they are.
pub fn taken(module: &Module, fits: impl Fn(NodeId, &Constant) -> bool) -> HashSet<ValueId> {
    let (mut taken, mut others) = (HashSet::new(), HashSet::new());
    for r in module.reachable_regions() {
        let region = module.region(r);
        others.extend(&region.outputs);
        for &n in &region.nodes {
            let node = module.node(n);
            for (i, v) in node.operands.iter().enumerate() {
                let Some(v) = *v else { continue };
                let product = PRODUCTS.contains(&node.op.name) && i == 1;
                let weights = transposed(module, v).filter(|c| product && fits(n, c));
                if weights.is_some() {
                    taken.extend(module.producer(v).and_then(|t| module.node(t).operand(0)));
                } else if node.op.name != "transpose" {
                    others.insert(v);
                }
            }
        }
    }
    // Neither a constant that something else reads, nor one whose transposition something else reads.
    let source = |v: &ValueId| {
        let node = module.node(module.producer(*v)?);
        node.operand(0).filter(|_| node.op.name == "transpose")
    };
    let turned: HashSet<ValueId> = others.iter().filter_map(source).collect();
    taken.retain(|v| !others.contains(v) && !turned.contains(v));
    taken
}

/// True for a constant that has kernels here.
pub fn has_kernel(constant: &Constant, target: &Target, options: &Options) -> bool {
    let sparse = options.halves && target.has_wide_vectors();
    Weights::of(constant).is_some() || sparse && Weights::two_of_four(constant).is_some()
}

impl Weights {
    /// Those of a term that the kernel knows.
    fn of(constant: &Constant) -> Option<Weights> {
        let term = constant.encoding();
        Weights::read(term, term, term.children.get(1)?, None)
    }

    /// Those of a term of which two of each four columns are kept: scales times sparse codes, or sparse numbers that are scales
    /// times codes.
    fn two_of_four(constant: &Constant) -> Option<Weights> {
        let term: &Encoding = constant.encoding();
        let (affine, sparse): (&Encoding, &Encoding) = match term.ctor.name {
            "affine" => (term, term.children.get(1)?),
            "sparse" => (term.children.first()?, term),
            _ => return None,
        };
        let nm = matches!(sparse.params.get("pattern"), Some(Attr::Str(p)) if p == "nm");
        let of_four = nm && sparse.int_param("m") == Some(4);
        if sparse.ctor.name != "sparse" || !of_four {
            return None;
        }
        let (codes, places) = match term.ctor.name {
            "affine" => (sparse.children.first()?, sparse.children.get(1)?),
            _ => (affine.children.get(1)?, sparse.children.get(1)?),
        };
        // Codes that are not kept are 0: that is the number 0 only if codes have signs.
        let signed = Stored::of(codes)?.shift > 0;
        let two = places.shape.last() == Some(&2);
        let fits = two && (signed || term.ctor.name == "sparse");
        fits.then(|| Weights::read(term, affine, codes, Some(places.clone())))?
    }

    /// Those of a term whose scales and zero points or minimums are those of `affine`.
    fn read(
        term: &Encoding,
        affine: &Encoding,
        codes: &Arc<Encoding>,
        places: Option<Arc<Encoding>>,
    ) -> Option<Weights> {
        let linear = matches!(affine.ctor.name, "affine" | "affmin");
        if !linear || affine.elem != ElemType::F32 || term.check().is_err() {
            return None;
        }
        let scales = affine.children.first()?;
        let stored = Stored::of(codes)?;
        // Scales of what is kept have an axis more.
        let (&[n, k], &[rows, groups, ref one @ ..]) = (&term.shape[..], &scales.shape[..]) else {
            return None;
        };
        let divides = |parts: usize, all: usize| parts > 0 && all > 0 && all.is_multiple_of(parts);
        if !divides(rows, n) || !divides(groups, k) || one.iter().any(|&d| d != 1) {
            return None;
        }
        let (bits, block) = Weights::form(stored.bits, k / groups)?;
        let blocks = k / block;
        let (beside, factor) = beside(affine, stored)?;
        let mut weights = Weights {
            n,
            blocks,
            format: Format {
                block: block as u32,
                bits,
                scale_bytes: 2,
                zeros: beside.zeros(),
            },
            factor,
            codes: codes.clone(),
            stored,
            scales: scales.clone(),
            beside,
            places,
        };
        let mut halves = numbers(scales).ok()?.into_iter().all(is_half);
        if let Some(minimums) = weights.minimums().ok()? {
            halves &= minimums.into_iter().all(is_half);
        }
        if !halves {
            weights.format.scale_bytes = 4;
        }
        Some(weights)
    }

    /// The fewest bits that hold codes of `bits`, and the longest blocks of them that make up groups of `group`.
    fn form(bits: u32, group: usize) -> Option<(u32, usize)> {
        let widths = CODE_WIDTHS.into_iter().filter(|&width| width >= bits);
        let block = |width: u32| {
            let unit = code_unit(width) as usize;
            let fits = |&b: &usize| group.is_multiple_of(b) && b.is_multiple_of(unit);
            let most = group.min(MAX_ROUNDED).min(MAX_BLOCK);
            Some((width, (1..=most).rev().find(fits)?))
        };
        widths.filter_map(block).next()
    }

    /// Length of a row.
    fn columns(&self) -> usize {
        self.blocks * self.format.block as usize
    }

    /// Places of the codes in their four columns.
    fn places(&self) -> Result<Vec<u8>, String> {
        let places = self.places.as_deref().and_then(whole_numbers);
        let places = places.ok_or("places are whole numbers")?;
        let small = places
            .into_iter()
            .map(|p| u8::try_from(p).map_err(|e| e.to_string()));
        small.collect()
    }

    /// The numbers of a part of the term for each block.
    fn of_blocks(&self, part: &Encoding) -> Result<Vec<f64>, String> {
        let own = numbers(part)?;
        let &[rows, groups, ..] = &part.shape[..] else {
            return Err("a part has two axes".to_owned());
        };
        let (of_rows, of_groups) = (self.n.div_ceil(rows), self.blocks.div_ceil(groups));
        let each = (0..self.n).flat_map(|row| (0..self.blocks).map(move |at| (row, at)));
        Ok(each
            .map(|(row, at)| own[row / of_rows * groups + at / of_groups])
            .collect())
    }

    /// A scale for each block.
    fn scale_numbers(&self) -> Result<Vec<f64>, String> {
        self.of_blocks(&self.scales)
    }

    /// A minimum for each block, where that is what blocks have: `scale * (code - zero) = scale * code + minimum`.
    fn minimums(&self) -> Result<Option<Vec<f64>>, String> {
        let shift = self.stored.shift as f64;
        let own = match &self.beside {
            Beside::Nothing | Beside::Codes(_) => return Ok(None),
            Beside::Numbers(zeros) => {
                let zeros = self.of_blocks(zeros)?.into_iter();
                let scaled = zeros.zip(self.scale_numbers()?);
                scaled
                    .map(|(zero, scale)| -scale * (zero + shift))
                    .collect()
            }
            Beside::Minimums(minimums) => {
                let minimums = self.of_blocks(minimums)?.into_iter();
                let scaled = minimums.zip(self.scale_numbers()?);
                scaled.map(|(min, scale)| min - scale * shift).collect()
            }
        };
        Ok(Some(own))
    }

    /// Codes, one a byte, and scales, both in rows.
    fn plain(&self) -> Result<(Vec<u8>, Vec<f32>), String> {
        let scales = self.scale_numbers()?.into_iter().map(|s| s as f32);
        Ok((self.stored.bytes(&self.codes)?, scales.collect()))
    }

    /// So many panels, as the micro-kernels read them.
    fn pack(&self, panels: usize) -> Result<Vec<u8>, String> {
        let (scales, minimums) = (self.scale_numbers()?, self.minimums()?);
        let zeros = match &self.beside {
            Beside::Codes(zeros) => Some(self.of_blocks(zeros)?),
            _ => None,
        };
        let (f, width, k) = (self.format, PANEL as usize, self.columns());
        let codes = self.stored.bytes(&self.codes)?;
        let mut out = Vec::with_capacity(panels * self.blocks * f.panel_bytes() as usize);
        for panel in 0..panels {
            let rows: Vec<Option<usize>> = (panel * width..(panel + 1) * width)
                .map(|row| Some(row).filter(|&row| row < self.n))
                .collect();
            for at in 0..self.blocks {
                let of_block = |row: usize| row * self.blocks + at;
                for numbers in [Some(&scales), minimums.as_ref()].into_iter().flatten() {
                    for row in &rows {
                        let number = row.map_or(0.0, |row| numbers[of_block(row)]);
                        match f.scale_bytes {
                            2 => out.extend(half::f16::from_f64(number).to_le_bytes()),
                            _ => out.extend((number as f32).to_le_bytes()),
                        }
                    }
                }
                if let Some(zeros) = &zeros {
                    let zero = |row: &Option<usize>| {
                        row.map_or(0, |row| {
                            (zeros[of_block(row)] + self.stored.shift as f64) as u8
                        })
                    };
                    out.extend(rows.iter().map(zero));
                }
                let code =
                    |row: Option<usize>, step: usize| row.map_or(0, |row| codes[row * k + step]);
                let first = at * f.block as usize;
                for unit in (first..first + f.block as usize).step_by(f.unit() as usize) {
                    self.pack_unit(&mut out, &rows, |row, step| code(row, unit + step));
                }
            }
        }
        Ok(out)
    }

    /// A unit of a panel: its steps' codes of each row, part by part.
    fn pack_unit(
        &self,
        out: &mut Vec<u8>,
        rows: &[Option<usize>],
        code: impl Fn(Option<usize>, usize) -> u8,
    ) {
        for (bits, up) in self.format.parts() {
            let mask = (0xFFu16 >> (8 - bits)) as u8;
            for line in (0..self.format.unit()).step_by(32 / bits as usize) {
                for (&row, q) in rows.iter().flat_map(|row| (0..4).map(move |q| (row, q))) {
                    let field = |p: u32| {
                        let code = code(row, (line + 4 * p + q) as usize);
                        (code >> up & mask) << (p * bits)
                    };
                    out.push((0..8 / bits).fold(0, |byte, p| byte | field(p)));
                }
            }
        }
    }
}

/// What is beside the scales of blocks, and the factor of sums of codes.
fn beside(affine: &Encoding, stored: Stored) -> Option<(Beside, i32)> {
    let Some(zero) = affine.children.get(2) else {
        return Some((Beside::Nothing, -(stored.shift as i32)));
    };
    // As fine as scales: a minimum that is finer has no place.
    let scales = affine.children.first()?;
    let each = zero.shape.len() == scales.shape.len()
        && (zero.shape.iter().zip(&scales.shape)).all(|(&z, &s)| s.is_multiple_of(z));
    if affine.ctor.name == "affmin" {
        return each.then(|| (Beside::Minimums(zero.clone()), 1));
    }
    let codes = |z: &i64| (0..1 << stored.bits).contains(&(z + stored.shift));
    let Some(values) = whole_numbers(zero).filter(|v| v.iter().all(codes)) else {
        return each.then(|| (Beside::Numbers(zero.clone()), 1));
    };
    let first = *values.first()?;
    if values.iter().all(|&z| z == first) {
        return Some((Beside::Nothing, -((first + stored.shift) as i32)));
    }
    each.then(|| (Beside::Codes(zero.clone()), -1))
}

/// The values of a term.
fn numbers(e: &Encoding) -> Result<Vec<f64>, String> {
    let values = e.decode().map_err(|e| e.to_string())?;
    values
        .to_f64s()
        .ok_or_else(|| "a term of numbers".to_owned())
}

/// True for numbers that 16 bits hold.
fn is_half(v: f64) -> bool {
    let half = half::f16::from_f64(v);
    half.is_finite() && half.to_f64() == v
}

/// The values of a term, if they are whole numbers: a zero point may be held by a table (GPTQ's are one more than stored).
fn whole_numbers(e: &Encoding) -> Option<Vec<i64>> {
    let values = e.decode().ok()?.to_f64s()?;
    let whole = |v: f64| (v.fract() == 0.0 && v.abs() < 1e9).then_some(v as i64);
    values.into_iter().map(whole).collect()
}

/// The node that rounds the left side of a product in blocks of this length, if that is row-major.
fn rounder(facts: &Facts, a: ValueId, block: u32) -> Option<NodeId> {
    let n = facts.module.producer(a)?;
    let node = facts.module.node(n);
    let same = node.op.name == "round_blocks" && node.int("block_size") == Ok(i64::from(block));
    (same && facts.is_row_major(node.operand(0)?)).then_some(n)
}

/// Finds the products of blocks, and what is never stored because of them: transposed weights, rounded numbers.
pub fn find(low: &mut Lowerer) {
    let module = &low.facts.module;
    let (mut found, mut considered) = (Found::default(), vec![]);
    let mut users: HashMap<ValueId, Vec<NodeId>> = HashMap::new();
    let mut kept: HashSet<ValueId> = HashSet::new();
    for region in module.reachable_regions() {
        kept.extend(&module.region(region).outputs);
        for &n in &module.region(region).nodes {
            for &v in module.node(n).operands.iter().flatten() {
                users.entry(v).or_default().push(n);
            }
            let Some((weights, plan)) = candidate(low, n) else {
                continue;
            };
            // Of what is sparse, codes and numbers are multiplied elsewhere.
            let whole = weights.places.is_none();
            let rounder = rounder(&low.facts, plan.a, weights.format.block);
            let way = match rounder.filter(|_| whole) {
                Some(_) => {
                    found.codes.insert((plan.a, weights.factor), None);
                    Way::Rounded
                }
                None if whole && low.target.micro_kernels => Way::Numbers,
                // What may be left out has no kernels for packed weights.
                None if module.node(n).op.name == "refine" => continue,
                None => match packed::choose(low, n, &plan, &weights) {
                    Some((choice, launches)) => {
                        considered.push((n, choice));
                        match launches {
                            Some(launches) => Way::Packed(launches),
                            None => continue,
                        }
                    }
                    // Without micro-kernels, numbers are better unpacked once.
                    None => continue,
                },
            };
            found.products.insert(n, Product { weights, way });
        }
    }
    let mut unstored = vec![];
    for n in found.products.keys() {
        for (i, &v) in module.node(*n).operands[..2].iter().enumerate() {
            let Some(v) = v else { continue };
            // Only as weights, or as codes.
            let taken = |n: &NodeId| {
                let operands = &module.node(*n).operands;
                let once = operands.iter().filter(|o| **o == Some(v)).count() == 1;
                let product = found.products.get(n);
                let codes = |p: &Product| matches!(p.way, Way::Rounded);
                once && operands[i] == Some(v) && product.is_some_and(|p| i == 1 || codes(p))
            };
            if !kept.contains(&v) && users.get(&v).is_some_and(|u| u.iter().all(taken)) {
                unstored.push(v);
            }
        }
    }
    low.facts.inlined.extend(unstored);
    low.blocked = found;
    low.choices.extend(considered);
}

/// Length of the blocks of a product's weights, if they are of a form that has kernels.
pub fn block_of(module: &Module, n: NodeId) -> Option<u32> {
    let node = module.node(n);
    if !PRODUCTS.contains(&node.op.name) {
        return None;
    }
    let weights = Weights::of(transposed(module, node.operand(1)?)?)?;
    Some(weights.format.block)
}

/// The weights of a node that multiplies with some that have kernels, and its plan.
fn candidate(low: &Lowerer, n: NodeId) -> Option<(Weights, Plan)> {
    let node = low.facts.module.node(n);
    if !PRODUCTS.contains(&node.op.name) {
        return None;
    }
    let constant = transposed(&low.facts.module, node.operand(1)?)?;
    let plan = linear::plan(&low.facts, n)?;
    let weights = Weights::of(constant).or_else(|| Weights::two_of_four(constant));
    Some((weights?, plan))
}

/// True if a node is such a product.
pub fn is_chosen(low: &Lowerer, n: NodeId) -> bool {
    low.blocked.products.contains_key(&n)
}

/// The steps of such a product.
pub fn steps(low: &mut Lowerer, n: NodeId, plan: Plan) -> Result<(), OpError> {
    let missing = || OpError::new("a product of blocks without its operands");
    let found = low.blocked.products.get(&n).cloned();
    let Product { weights, way } = found.ok_or_else(missing)?;
    let rounded = match way {
        Way::Packed(launches) => return packed::steps(low, n, &plan, &weights, &launches),
        Way::Rounded => true,
        Way::Numbers => false,
    };
    let codes = low.blocked.codes.get(&(plan.a, weights.factor)).copied();
    let a = match rounded {
        true => codes.flatten().ok_or_else(missing)?,
        false => plan.a,
    };
    let spec = Blocks {
        m: plan.m.as_const().map_or(Num::Sym, Num::Const),
        n: weights.n as i64,
        blocks: weights.blocks as i64,
        format: weights.format,
        bias: plan.bias.is_some(),
        residual: plan.residual.is_some(),
        lo: plan.gemm.lo,
        hi: plan.gemm.hi,
        activation: plan.gemm.activation,
    };
    let panels = match rounded {
        true => spec.panels(),
        false => 2 * spec.wide_panels(),
    };
    let (bytes, factor) = ((panels * spec.panel_bytes()) as usize, weights.factor);
    let made = WeightSource::Made(Arc::new(move || weights.pack(panels as usize)));
    let w = low.made_weight(ElemType::U8, vec![bytes], made);
    low.note_part(n, w)?;
    let out = low.facts.module.node(n).results[0];
    let values = [Some(a), Some(w), plan.bias, plan.residual, Some(out)];
    let mut args: Vec<KernelArg> = values.into_iter().flatten().map(KernelArg::Value).collect();
    if spec.m == Num::Sym {
        args.push(KernelArg::Size(plan.m.clone()));
    }
    let (kernel, panels, band) = match rounded {
        true => (spec.kernel("gemm_blocks"), spec.panels(), spec.band()),
        false => {
            let kernel = spec.kernel_of_numbers("gemm_unpacked", -factor);
            (kernel, spec.wide_panels(), spec.wide_band())
        }
    };
    let grid = Dim::from(panels) * plan.m.ceil_div(&Dim::from(band)) * &plan.is_used;
    let flops = Dim::from(2i64) * &plan.m * &plan.n * &plan.k * &plan.is_used;
    let per_block = 2 * plan.k.as_const().unwrap_or(1) * i64::from(PANEL) * band;
    let grain = (THREAD_WORK / per_block.max(1)).clamp(1, 1 << 20) as u32;
    low.launch(kernel, &args, &grid, grain, &flops)
}

/// Rounds what products of blocks read; false if something else reads the rounded numbers.
fn schedule(low: &mut Lowerer, n: NodeId) -> Result<bool, OpError> {
    let node = low.facts.module.node(n);
    let (x, y, block) = (node.need(0)?, node.results[0], node.int("block_size")?);
    let mut factors: Vec<i32> = low
        .blocked
        .codes
        .keys()
        .filter(|k| k.0 == y)
        .map(|k| k.1)
        .collect();
    factors.sort_unstable();
    for factor in factors {
        let shape = low.facts.shape(x)?;
        let numbers = shape.iter().fold(Dim::from(1i64), |n, d| n * d.clone());
        let k = shape.last().and_then(Dim::as_const).unwrap_or(0);
        // Rows are whole blocks.
        let rows = shape[..shape.len() - 1]
            .iter()
            .fold(Dim::from(1i64), |n, d| n * d.clone());
        let blocks = rows * Dim::from(k / block);
        let format = Format {
            block: block as u32,
            bits: 8,
            scale_bytes: 4,
            zeros: Zeros::Shared,
        };
        let codes = low.temporary(
            ElemType::U8,
            vec![blocks.clone() * Dim::from(format.act_bytes())],
        );
        low.blocked.codes.insert((y, factor), Some(codes));
        let count = blocks.as_const().map_or(Num::Sym, Num::Const);
        let mut args = vec![KernelArg::Value(x), KernelArg::Value(codes)];
        if count == Num::Sym {
            args.push(KernelArg::Size(blocks.clone()));
        }
        let grid = blocks.ceil_div(&Dim::from(i64::from(CHUNK)));
        let flops = Dim::from(4i64) * &numbers;
        let grain = (THREAD_WORK / (16 * block * i64::from(CHUNK)).max(1)).clamp(1, 1 << 20) as u32;
        low.launch(
            rounding("round_blocks", block as u32, factor, count),
            &args,
            &grid,
            grain,
            &flops,
        )?;
    }
    Ok(low.facts.inlined.contains(&y))
}

/// The element of `round_blocks`.
fn element(x: &mut Element, p: &Pos) -> Result<E, OpError> {
    let shape = x.shape(0)?;
    let at = p.indices(&x.x.body, &shape);
    let size = Dim::from(x.int("block_size").unwrap_or(1).max(1));
    let (Some((last, front)), Some(k)) = (at.split_last(), shape.last()) else {
        return Err(OpError::new("a scalar has no blocks"));
    };
    let first = x.x.body.div(last, &size) * size.clone();
    let of_block = x.b().loop_var(size);
    // The last block may be shorter; its last element again changes no maximum.
    let within = (first + of_block.dim()).min_dim(&(k - &Dim::from(1i64)));
    let each = x.at(0, &Pos::At([front, &[within]].concat()))?;
    let value = x.at(0, p)?;
    let b = x.b();
    let each = b.unary(Unary::Abs, each);
    let most = b.reduce(ReduceKind::Max, &[of_block], each);
    let range = b.float(ElemType::F32, 127.0);
    let scale = b.binary(Binary::Div, most, range);
    let inverse = b.binary(Binary::Div, range, most);
    let y = b.binary(Binary::Mul, value, inverse);
    let y = b.unary(Unary::RoundEven, y);
    let (lo, hi) = (
        b.float(ElemType::F32, -127.0),
        b.float(ElemType::F32, 127.0),
    );
    let y = b.binary(Binary::Max, y, lo);
    let y = b.binary(Binary::Min, y, hi);
    let code = b.cast(ElemType::I8, y);
    let code = b.cast(ElemType::F32, code);
    Ok(b.binary(Binary::Mul, code, scale))
}

#[cfg(test)]
mod tests;
