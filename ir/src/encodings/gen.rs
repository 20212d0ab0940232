//! `gen`: a program that makes the weight.
//!
//! ```text
//! children: x*                       (the program's inputs)
//! ```
//! The parameter `graph` is the program in the text form: one function without branches and loops, one result.
//! Source: `Learning to Embed Categorical Features without Embedding Tables for Recommendation` (DHE).

use super::sampling::Sampler;
use super::{Constructor, DecodeError, Encoding};
use crate::builder::Builder;
use crate::ops::OpError;
use crate::tensor::Value;
use crate::{ElemType, Module, Tensor, Type, ValueId, eval, text};
use std::collections::HashMap;

/// The constructor.
pub static GEN: Constructor = Constructor {
    name: "gen",
    summary: "what a program makes",
    children: &["x*"],
    has_blob: false,
    algebraic: false,
    contents: None,
    check: |e| program(e).map(|_| ()),
    decode,
    open,
    sample,
};

/// What the program `graph`, in the text form, makes of these terms.
pub fn generate(elem: ElemType, shape: Vec<usize>, graph: &str, inputs: Vec<Encoding>) -> Encoding {
    Encoding::of(&GEN, elem, shape, [("graph", graph.into())], inputs)
}

fn program(e: &Encoding) -> Result<Module, DecodeError> {
    let graph = e
        .str_param("graph")
        .ok_or_else(|| e.error("needs `graph`"))?;
    let module = text::parse(graph).map_err(|d| {
        let first = d.first().map(|d| d.message.clone());
        e.error(format!("`graph`: {}", first.unwrap_or_default()))
    })?;
    let top = module.top();
    let fits = |v: ValueId, elem: ElemType, shape: &[usize]| {
        module.value(v).ty == Type::tensor(elem, shape.iter().copied())
    };
    if top.inputs.len() != e.children.len()
        || top
            .inputs
            .iter()
            .zip(&e.children)
            .any(|(&v, c)| !fits(v, c.elem, &c.shape))
    {
        return Err(e.error("the program's inputs are not its child terms"));
    }
    if !matches!(top.outputs[..], [y] if fits(y, e.elem, &e.shape)) {
        return Err(e.error("the program's result is not the weight"));
    }
    let plain = top
        .nodes
        .iter()
        .all(|&n| module.node(n).regions.is_empty() && module.node(n).op.pure);
    plain
        .then_some(module)
        .ok_or_else(|| e.error("the program may not branch, loop or draw random numbers"))
}

fn decode(e: &Encoding) -> Result<Tensor, DecodeError> {
    let inputs = e
        .children
        .iter()
        .map(|c| c.decode().map(Value::from))
        .collect::<Result<_, _>>()?;
    let out = eval::run(&program(e)?, inputs).map_err(|f| e.error(f.to_string()))?;
    let tensor = out.first().and_then(Value::as_tensor).cloned();
    tensor.ok_or_else(|| e.error("the program gives no tensor"))
}

fn open(e: &Encoding, b: &mut Builder) -> Result<ValueId, OpError> {
    let module = program(e).map_err(|e| OpError::new(e.to_string()))?;
    let mut values: HashMap<ValueId, ValueId> = HashMap::new();
    for (i, &v) in module.top().inputs.iter().enumerate() {
        values.insert(v, e.child(b, i));
    }
    let find = |values: &HashMap<ValueId, ValueId>, b: &mut Builder, v: ValueId| match (
        values.get(&v),
        module.as_constant(v),
    ) {
        (Some(&v), _) => Ok(v),
        (None, Some(c)) => Ok(b.module.add_constant("", c.clone())),
        (None, None) => Err(OpError::new("a value is used before it is made")),
    };
    for &id in &module.top().nodes {
        let node = module.node(id);
        let operands = node
            .operands
            .iter()
            .map(|o| o.map(|v| find(&values, b, v)).transpose());
        let operands = operands.collect::<Result<Vec<_>, _>>()?;
        let made = b.node(
            node.op.name,
            operands,
            node.attrs.clone(),
            node.results.len(),
        )?;
        values.extend(node.results.iter().copied().zip(made));
    }
    let y = module.top().outputs[0];
    find(&values, b, y)
}

fn sample(s: &mut Sampler, elem: ElemType, shape: &[usize]) -> Option<Encoding> {
    if elem != ElemType::F32 {
        return None;
    }
    let dims: Vec<String> = shape.iter().map(usize::to_string).collect();
    let ty = format!("f32[{}]", dims.join(","));
    let graph =
        format!("fn made(%x: {ty}) -> (y: {ty}) {{ %a = relu(%x) %y = add(%a, %x) return %y }}");
    let x = s.term(elem, shape);
    Some(generate(elem, shape.to_vec(), &graph, vec![x]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encodings::dense;

    #[test]
    fn a_program_makes_a_weight() {
        let x = Tensor::from_f64(ElemType::F32, [2], vec![1.5, -2.0]);
        let of =
            |graph: &str| generate(ElemType::F32, vec![2], graph, vec![dense::from_tensor(&x)]);
        let e = of("fn f(%x: f32[2]) -> (y: f32[2]) { %y = neg(%x) return %y }");
        assert_eq!(e.decode().expect("valid").floats(), Some(&[-1.5, 2.0][..]));
        assert!(
            of("fn f(%x: f32[3]) -> (y: f32[3]) { %y = neg(%x) return %y }")
                .check()
                .is_err()
        );
        assert!(of("nonsense").check().is_err());
    }
}
