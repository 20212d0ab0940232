//! Older forms of operators, rewritten to the newest one.
//!
//! A row says for which operators, and below which version of their operator set, its function applies.
//! Rows of an operator apply from the oldest to the newest. What changed only by allowing more needs no row.

mod arithmetic;
mod axes;
mod classic;
mod nn;
mod shape;

use super::names;
use lapidary_ir::builder::Builder;
use lapidary_ir::ops::OpError;
use lapidary_ir::{Attr, Attrs, Tensor, ValueId};

/// A node on its way to the op table: ONNX's operator with operands and attributes, subgraphs apart.
#[derive(Clone, Debug)]
pub struct Form {
    /// Domain, `""` for the standard operators.
    pub domain: String,
    /// Operator, as ONNX spells it.
    pub op: String,
    /// Operands, `None` for one left out.
    pub operands: Vec<Option<ValueId>>,
    /// Attributes as they stand in the model.
    pub attrs: Attrs,
    /// Number of results that the model names.
    pub n_results: usize,
}

/// What an upgrade did.
pub enum Step {
    /// It changed the form in place.
    Keep,
    /// It wrote the node itself; these are the results.
    Done(Vec<ValueId>),
}

/// Rewrites one older form.
pub type Upgrade = fn(&mut Form, &mut Builder) -> Result<Step, OpError>;

/// When an upgrade applies.
pub struct Row {
    /// Operators of one domain.
    pub ops: &'static [&'static str],
    /// Applies to versions of the operator set below this.
    pub below: i64,
    /// What it does.
    pub upgrade: Upgrade,
}

impl Row {
    const fn new(ops: &'static [&'static str], below: i64, upgrade: Upgrade) -> Row {
        Row {
            ops,
            below,
            upgrade,
        }
    }
}

/// Rows by domain and family.
pub static ROWS: &[(&str, &[Row])] = &[
    (names::ONNX, arithmetic::ROWS),
    (names::ONNX, axes::ROWS),
    (names::ONNX, shape::ROWS),
    (names::ONNX, nn::ROWS),
    ("ai.onnx.ml", classic::ROWS),
];

/// Applies every row that fits.
pub fn upgrade(form: &mut Form, version: i64, builder: &mut Builder) -> Result<Step, OpError> {
    let op = form.op.clone();
    for (domain, rows) in ROWS {
        let fits =
            |r: &&Row| *domain == form.domain && version < r.below && r.ops.contains(&op.as_str());
        let rows: Vec<&Row> = rows.iter().filter(fits).collect();
        for row in rows {
            if let Step::Done(results) = (row.upgrade)(form, builder)? {
                return Ok(Step::Done(results));
            }
        }
    }
    Ok(Step::Keep)
}

impl Form {
    /// Operand `i`, which must be given.
    fn operand(&self, i: usize) -> Result<ValueId, OpError> {
        let given = self.operands.get(i).copied().flatten();
        given.ok_or_else(|| OpError::new(format!("operand {i} is missing")))
    }

    /// Puts a value at operand position `i`.
    fn set_operand(&mut self, i: usize, value: ValueId) {
        if self.operands.len() <= i {
            self.operands.resize(i + 1, None);
        }
        self.operands[i] = Some(value);
    }

    /// Takes an integer attribute out.
    fn take_int(&mut self, name: &str) -> Result<Option<i64>, OpError> {
        match self.attrs.remove(name) {
            None => Ok(None),
            Some(Attr::Int(v)) => Ok(Some(v)),
            Some(_) => Err(OpError::new(format!(
                "attribute `{name}` must be an integer"
            ))),
        }
    }

    /// Takes an integer list out.
    fn take_ints(&mut self, name: &str) -> Result<Option<Vec<i64>>, OpError> {
        match self.attrs.remove(name) {
            None => Ok(None),
            Some(Attr::Ints(v)) => Ok(Some(v)),
            Some(_) => Err(OpError::new(format!(
                "attribute `{name}` must be a list of integers"
            ))),
        }
    }

    /// Takes a float attribute out.
    fn take_float(&mut self, name: &str) -> Result<Option<f32>, OpError> {
        match self.attrs.remove(name) {
            None => Ok(None),
            Some(Attr::Float(v)) => Ok(Some(v)),
            Some(_) => Err(OpError::new(format!("attribute `{name}` must be a float"))),
        }
    }

    /// Takes a float list out.
    fn take_floats(&mut self, name: &str) -> Result<Option<Vec<f32>>, OpError> {
        match self.attrs.remove(name) {
            None => Ok(None),
            Some(Attr::Floats(v)) => Ok(Some(v)),
            Some(_) => Err(OpError::new(format!(
                "attribute `{name}` must be a list of floats"
            ))),
        }
    }

    /// Turns an integer-list attribute into the constant operand `i`.
    fn ints_to_operand(&mut self, name: &str, i: usize, b: &mut Builder) -> Result<(), OpError> {
        if let Some(v) = self.take_ints(name)? {
            let value = b.ints(&v);
            self.set_operand(i, value);
        }
        Ok(())
    }

    /// Sets an attribute that is not given.
    fn default_attr(&mut self, name: &str, value: impl Into<Attr>) {
        self.attrs
            .entry(name.to_owned())
            .or_insert_with(|| value.into());
    }
}

/// A 1-D `f32` constant.
fn floats(b: &mut Builder, values: &[f32]) -> ValueId {
    let values = values.iter().map(|&v| f64::from(v)).collect::<Vec<_>>();
    b.constant(&Tensor::from_f64(
        lapidary_ir::ElemType::F32,
        [values.len()],
        values,
    ))
}
