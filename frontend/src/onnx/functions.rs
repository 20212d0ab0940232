//! Model-local functions: inlined at each call, with their attributes bound.

use super::import::{Failure, Frame, FunctionKey, Importer, Scope, Slot};
use super::proto::{AttributeProto, FunctionProto, NodeProto};
use lapidary_ir::RegionId;
use std::borrow::Cow;
use std::collections::HashMap;

impl Importer<'_> {
    /// Inlines a model-local function.
    #[allow(clippy::too_many_arguments, reason = "a call has these parts")]
    pub(super) fn call(
        &mut self,
        function: &FunctionProto,
        key: &FunctionKey,
        operands: &[Slot],
        attributes: &[Cow<AttributeProto>],
        node: &NodeProto,
        place: &str,
        region: RegionId,
        caller: &Frame,
    ) -> Result<Vec<Slot>, Failure> {
        if caller.calls.contains(&key) {
            return Err(format!("function `{}` calls itself", key.1).into());
        }
        if operands.len() > function.input.len() || node.output.len() > function.output.len() {
            return Err(format!(
                "function takes {} operands and gives {} results",
                function.input.len(),
                function.output.len()
            )
            .into());
        }
        let versions = self.versions(&function.opset_import, place);
        let defaults = function
            .attribute_proto
            .iter()
            .map(|a| (a.name.clone(), AttributeProto::clone(a)));
        let bound = defaults
            .chain(
                attributes
                    .iter()
                    .map(|a| (a.name.clone(), AttributeProto::clone(a))),
            )
            .collect();
        let calls = caller.calls.iter().copied().chain([key]).collect();
        let frame = Frame {
            versions,
            attributes: bound,
            path: format!("{place}/"),
            calls,
        };
        let mut scope = Scope::new(None, &frame);
        for (i, name) in function.input.iter().enumerate() {
            scope.set(name, operands.get(i).copied().unwrap_or(Slot::Absent));
        }
        // Dimensions named in a function's declarations are its own, so they say nothing outside it.
        self.nodes(&function.node, region, &mut scope, &HashMap::new());
        let wanted = node.output.iter().zip(&function.output);
        wanted
            .map(|(outer, name)| match scope.find(name) {
                Some(slot) => Ok(slot),
                None if outer.is_empty() => Ok(Slot::Absent),
                None => Err(format!("function does not define its result `{name}`").into()),
            })
            .collect()
    }
}

/// Attributes with references to the function's own attributes replaced; unbound ones are left out.
pub(super) fn bind<'a>(
    attributes: &'a [AttributeProto],
    frame: &Frame,
) -> Vec<Cow<'a, AttributeProto>> {
    let bound = |a: &'a AttributeProto| match a.ref_attr_name.as_str() {
        "" => Some(Cow::Borrowed(a)),
        name => frame.attributes.get(name).map(|v| {
            Cow::Owned(AttributeProto {
                name: a.name.clone(),
                ..v.clone()
            })
        }),
    };
    attributes.iter().filter_map(bound).collect()
}
