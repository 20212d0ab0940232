//! Weights in parts, of which a run uses as many as there is memory for.
//!
//! ```text
//! matmul(x, transpose(const sum{a, b, c}))
//!   =>  y = matmul(x, transpose(const a))
//!       z = refine(x, transpose(const b), y, detail){part: i}
//!           refine(x, transpose(const c), z, detail){part: j}
//! ```
//! A sum is one of its terms and what is left; codes in planes are those of the first plane and what the others add; scales of inputs
//! go to what is multiplied. A part of signs times a product of factors is multiplied as it is, too:
//!
//! ```text
//! matmul(x, transpose(const emul{signs, matmul{u, v}}))  =>  reduce_sum(matmul(x * v, transpose(const signs)) * transpose(u))
//! ```
//! The parts of all weights are numbered in the order in which results need them, so that a number says which
//! are used: of each weight its first terms, and of all weights those that make the largest difference for their bytes.
//! Source: Wang et al., "BitStack: Any-Size Compression of Large Language Models in Variable Memory Environments", section 3.3; the
//! order here is by the size of parts, which needs no runs of the model.

mod terms;

use crate::lower::taken;
use lapidary_ir::builder::Builder;
use lapidary_ir::encodings::{DecodeError, Encoding};
use lapidary_ir::infer::first_fresh;
use lapidary_ir::ops::OpError;
use lapidary_ir::{Attr, Constant, ElemType, Module, NodeId, Type, ValueId};
use std::cell::Cell;
use std::collections::HashMap;
use terms::{Terms, has_parts, signs, size};

/// Name of the input that says how many parts are used.
const DETAIL: &str = "detail";

/// Splits weights that only products read, if their terms have parts; the number of parts that may be left out, 0 if no weight has any. The
/// module gets an input that says how many of them are used.
///
/// # Errors
/// A term does not decode.
pub fn adjust(module: &mut Module) -> Result<usize, OpError> {
    let mut weights: Vec<(ValueId, Terms)> = vec![];
    let mut known: Vec<ValueId> = taken(module, |_, c| has_parts(c.encoding()))
        .into_iter()
        .collect();
    known.sort_unstable();
    for v in known {
        let terms = module.as_constant(v).map(|c| Terms::of(c.encoding()));
        let terms = terms.transpose().map_err(|e| OpError::new(e.to_string()))?;
        weights.extend(terms.map(|terms| (v, terms)));
    }
    if weights.is_empty() {
        return Ok(0);
    }
    let order = order(&weights).map_err(|e| OpError::new(e.to_string()))?;
    let detail = module.add_input(Module::TOP, DETAIL, Type::tensor(ElemType::I64, [0i64; 0]));
    let mut split = HashMap::new();
    for (weight, terms) in weights {
        let name = module.value(weight).name.clone();
        let parts = terms.parts.iter().enumerate();
        let parts = parts.map(|(i, part)| Part::of(module, &format!("{name}.{i}"), part));
        let parts = parts.collect();
        let scales = terms
            .scales
            .map(|s| module.add_constant(&name, Constant::new(s)));
        split.insert(weight, Weight { scales, parts });
    }
    let fresh = Cell::new(first_fresh(module));
    let mut sums = HashMap::new();
    for region in module.reachable_regions() {
        let nodes = std::mem::take(&mut module.region_mut(region).nodes);
        for n in nodes {
            let Some(weight) = read(module, n).filter(|w| split.contains_key(w)) else {
                module.region_mut(region).nodes.push(n);
                continue;
            };
            let number = |i| (i > 0).then(|| order[&(weight, i)]);
            let (x, result) = (module.node(n).need(0)?, module.node(n).results[0]);
            let name = module.node(n).name.clone();
            let mut b = Builder::new(module, region, &name, &fresh);
            let sum = split[&weight].product(&mut b, x, detail, number)?;
            sums.insert(result, sum);
        }
    }
    module.replace_each(|v| sums.get(&v).copied());
    module.remove_dead_nodes();
    Ok(order.len())
}

/// The constant that a product reads transposed.
fn read(module: &Module, n: NodeId) -> Option<ValueId> {
    let node = module.node(n);
    let turned = module.producer(node.operand(1).filter(|_| node.op.name == "matmul")?)?;
    module.node(turned).operand(0)
}

/// A weight in parts, as constants of a module.
struct Weight {
    /// Of its inputs.
    scales: Option<ValueId>,
    parts: Vec<Part>,
}

/// A part of a weight.
enum Part {
    /// A matrix `[O, I]`.
    Matrix(ValueId),
    /// Signs `[O, I]`, times the product of `u [O, k]` and `v [k, I]`.
    Signs {
        signs: ValueId,
        u: ValueId,
        v: ValueId,
    },
}

impl Part {
    fn of(module: &mut Module, name: &str, term: &Encoding) -> Part {
        let mut constant = |e: &Encoding| module.add_constant(name, Constant::new(e.clone()));
        match signs(term) {
            Some([signs, u, v]) => Part::Signs {
                signs: constant(signs),
                u: constant(u),
                v: constant(v),
            },
            None => Part::Matrix(constant(term)),
        }
    }

    /// `sum` and the product with this part: always, or where it is used.
    fn product(
        &self,
        b: &mut Builder,
        x: ValueId,
        sum: Option<ValueId>,
        used: Option<(ValueId, usize)>,
    ) -> Result<ValueId, OpError> {
        let times = |b: &mut Builder, x, w, sum| {
            let w = b.cast(w, ElemType::F32)?;
            let turned = b.transpose(w, &[1, 0])?;
            let Some((detail, part)) = used else {
                return b.op("matmul", &[x, turned]);
            };
            let operands = vec![Some(x), Some(turned), sum, Some(detail)];
            let attrs = [("part".to_owned(), Attr::Int(part as i64))].into();
            Ok(b.node("refine", operands, attrs, 1)?[0])
        };
        let (signs, u, v) = match *self {
            Part::Matrix(w) => return times(b, x, w, sum),
            Part::Signs { signs, u, v } => (signs, u, v),
        };
        let before_last = b.ints(&[-2]);
        let x = b.op("unsqueeze", &[x, before_last])?;
        let [u, v] = [b.cast(u, ElemType::F32)?, b.cast(v, ElemType::F32)?];
        let of_each = b.op("mul", &[x, v])?;
        let signed = times(b, of_each, signs, None)?;
        let u = b.transpose(u, &[1, 0])?;
        let scaled = b.op("mul", &[signed, u])?;
        let attrs = [("keepdims", Attr::Int(0))];
        let y = b.op_with("reduce_sum", &[scaled, before_last], attrs)?;
        match sum {
            Some(sum) => b.op("add", &[sum, y]),
            None => Ok(y),
        }
    }
}

impl Weight {
    /// The product of `x` with as many parts as are used; `number` is a part's, none of those that always are.
    fn product(
        &self,
        b: &mut Builder,
        mut x: ValueId,
        detail: ValueId,
        number: impl Fn(usize) -> Option<usize>,
    ) -> Result<ValueId, OpError> {
        if let Some(scales) = self.scales {
            let all = b.ints(&[-1]);
            let scales = b.op("reshape", &[scales, all])?;
            let scales = b.cast(scales, ElemType::F32)?;
            x = b.op("mul", &[x, scales])?;
        }
        let mut sum = None;
        for (i, part) in self.parts.iter().enumerate() {
            let used = number(i).map(|part| (detail, part));
            sum = Some(part.product(b, x, sum, used)?);
        }
        sum.ok_or_else(|| OpError::new("a weight without parts"))
    }
}

/// The number of each part but the first of each weight.
fn order(weights: &[(ValueId, Terms)]) -> Result<HashMap<(ValueId, usize), usize>, DecodeError> {
    let mut gains = vec![];
    for (weight, Terms { parts, .. }) in weights {
        let whole = size(&parts[0])?.max(f64::MIN_POSITIVE);
        let mut least = f64::INFINITY;
        for (i, part) in parts.iter().enumerate().skip(1) {
            let elements = part.len() as f64;
            let gain = size(part)? / whole * elements / part.stored_bytes().max(1) as f64;
            // Nothing comes before what it refines.
            least = gain.min(least);
            gains.push((least, (*weight, i)));
        }
    }
    gains.sort_by(|a, b| {
        b.0.total_cmp(&a.0)
            .then(a.1.1.cmp(&b.1.1))
            .then(a.1.0.cmp(&b.1.0))
    });
    let numbered = gains.into_iter().enumerate();
    Ok(numbered.map(|(number, (_, part))| (part, number)).collect())
}

#[cfg(test)]
mod tests;
