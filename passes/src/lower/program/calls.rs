//! Calls of the runtime's library.

use super::Lowerer;
use lapidary_abi::program::{CallAttr, Place, Step, ValueIndex};
use lapidary_ir::ops::OpError;
use lapidary_ir::{Attr, Constant, NodeId};

impl Lowerer {
    /// A library call, and what its results' shapes tell.
    pub(super) fn call(&mut self, n: NodeId) -> Result<(), OpError> {
        let node = self.facts.module.node(n).clone();
        let operands = node
            .operands
            .iter()
            .map(|o| o.map(|v| self.stored(v)).transpose())
            .collect::<Result<_, _>>()?;
        let mut attrs = vec![];
        for def in node.op.attrs {
            let Some(value) = node.attr(def.name) else {
                continue;
            };
            // The type of an empty optional: its value does not show it.
            if matches!(&value, Attr::Type(t) if t.elem().is_none()) {
                continue;
            }
            attrs.push((def.name.to_owned(), self.call_attr(value)?));
        }
        let results: Vec<ValueIndex> = node
            .results
            .iter()
            .map(|&v| self.declare(v, Place::Heap))
            .collect();
        self.calls.push(node.op.name.to_owned());
        self.steps.push(Step::Call {
            op: node.op.name.to_owned(),
            attrs,
            operands,
            results: results.clone(),
        });
        self.bind_results(&node.results, &results);
        Ok(())
    }

    pub(super) fn call_attr(&mut self, a: Attr) -> Result<CallAttr, OpError> {
        Ok(match a {
            Attr::Int(v) => CallAttr::Int(v),
            Attr::Ints(v) => CallAttr::Ints(v),
            Attr::Float(v) => CallAttr::Float(v),
            Attr::Floats(v) => CallAttr::Floats(v),
            Attr::Str(v) => CallAttr::Str(v),
            Attr::Strs(v) => CallAttr::Strs(v),
            Attr::Elem(v) => CallAttr::Elem(v),
            Attr::Tensor(t) => {
                let v = self
                    .facts
                    .module
                    .add_constant("", Constant::from_tensor(&t));
                CallAttr::Value(self.stored(v)?)
            }
            Attr::Type(t) => match t.elem() {
                Some(e) => CallAttr::Elem(e),
                None => {
                    return Err(OpError::new(
                        "an attribute of a nested type cannot be given to a library call",
                    ));
                }
            },
        })
    }
}
