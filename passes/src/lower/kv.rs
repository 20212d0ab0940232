//! Rounds the keys and values that attention reads, so that caches of them are codes, or halves.
//!
//! ```text
//! attention(q, k, v)  =>  attention(q, round_cache(k; tokens), round_cache(v; channels))
//! ```
//! This changes results a little, so it is done only where the user asks for it. Keys and values of a graph that keeps none from run to
//! run are rounded as a cache that they fill would be, so that what it costs can be measured on whole texts.

use lapidary_ir::builder::Builder;
use lapidary_ir::infer::first_fresh;
use lapidary_ir::ops::OpError;
use lapidary_ir::ops::attention::cache::Rounding;
use lapidary_ir::{Attr, Dim, Module, NodeId, RegionId};
use std::cell::Cell;

/// Rounds in place, keys to the first number of bits and values to the second; the number of attentions that read rounded
/// numbers now. An error if there is none that sees only what came before, as in models that write text.
pub fn round(module: &mut Module, bits: [i64; 2]) -> Result<usize, OpError> {
    let fresh = Cell::new(first_fresh(module));
    let mut count = 0;
    for r in module.reachable_regions() {
        let nodes = std::mem::take(&mut module.region_mut(r).nodes);
        for n in nodes {
            if let Some(heads) = heads(module, n) {
                operands(module, (r, n), heads, bits, &fresh)?;
                count += 1;
            }
            module.region_mut(r).nodes.push(n);
        }
    }
    match count {
        0 => Err(OpError::new(
            "the model has no causal attention whose keys and values could be rounded",
        )),
        count => Ok(count),
    }
}

/// Heads of the keys of an attention to what came before, whose operands are rows of heads and not rounded yet.
fn heads(module: &Module, n: NodeId) -> Option<i64> {
    let node = module.node(n);
    let causal = node.op.name == "attention" && node.flag("is_causal") && node.operand(4).is_none();
    let rows = [1, 2].into_iter().all(|i| {
        let of = node.operand(i);
        let rounded = of
            .and_then(|v| module.producer(v))
            .and_then(|p| Rounding::find(module, p));
        let rank = of
            .and_then(|v| module.value(v).ty.shape())
            .map(<[Dim]>::len);
        rank == Some(3) && rounded.is_none()
    });
    (causal && rows).then(|| node.int("kv_num_heads").ok())?
}

fn operands(
    module: &mut Module,
    (r, n): (RegionId, NodeId),
    heads: i64,
    bits: [i64; 2],
    fresh: &Cell<u32>,
) -> Result<(), OpError> {
    let node = module.node(n).clone();
    for (i, axis, bits) in [(1, "tokens", bits[0]), (2, "channels", bits[1])] {
        let mut operands = vec![Some(node.need(i)?)];
        operands.extend(node.operand(6).map(Some));
        let attrs: [(&str, Attr); 3] = [
            ("axis", axis.into()),
            ("bits", bits.into()),
            ("heads", heads.into()),
        ];
        let mut b = Builder::new(module, r, &node.name, fresh);
        let rounded = b.multi("round_cache", &operands, &attrs, 1)?[0];
        module.node_mut(n).operands[i] = Some(rounded);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::lower::checks::numbers;
    use crate::lower::testing::run;
    use crate::lower::{Options, lower};
    use lapidary_ir::builder::Builder;
    use lapidary_ir::target::Target;
    use lapidary_ir::tensor::Value;
    use lapidary_ir::types::Type;
    use lapidary_ir::{Attr, Dim, ElemType, Module, Tensor, eval};
    use std::cell::Cell;

    fn module(causal: bool) -> Module {
        let mut m = Module::new("whole");
        let shape = [Dim::from(2i64), Dim::sym("seq"), Dim::from(24i64)];
        let [q, k, v] = ["q", "k", "v"].map(|name| {
            m.add_input(
                Module::TOP,
                name,
                Type::tensor(ElemType::F32, shape.clone()),
            )
        });
        let fresh = Cell::new(0);
        let mut b = Builder::new(&mut m, Module::TOP, "", &fresh);
        let attrs = [
            ("q_num_heads", Attr::Int(3)),
            ("kv_num_heads", Attr::Int(3)),
            ("is_causal", causal.into()),
        ];
        let y = b.op_with("attention", &[q, k, v], attrs).expect("a node");
        m.region_mut(Module::TOP).outputs = vec![y];
        m.output_names = vec!["y".to_owned()];
        m
    }

    #[test]
    fn whole_texts_are_rounded_as_their_caches_would_be() {
        let module = module(true);
        let mut rounded = module.clone();
        assert_eq!(super::round(&mut rounded, [4, 2]), Ok(1));
        assert!(
            super::round(&mut rounded, [4, 2]).is_err(),
            "what is rounded stays so"
        );
        let options = Options {
            kv: Some([4, 2]),
            ..Options::default()
        };
        let lowered = lower(&module, &Target::x86_64(), &options).unwrap_or_else(|e| panic!("{e}"));
        let given: Vec<Value> = (0..3)
            .map(|seed| numbers(&[2, 110, 24], seed).into())
            .collect();
        let all = |v: &Value| v.as_tensor().and_then(Tensor::to_f64s).expect("numbers");
        let got = run(&lowered, &given).unwrap_or_else(|e| panic!("{e}"));
        let want = eval::run(&rounded, given.clone()).unwrap_or_else(|e| panic!("{e}"));
        let plain = eval::run(&module, given).unwrap_or_else(|e| panic!("{e}"));
        let mut moved: f64 = 0.0;
        for ((g, w), p) in all(&got[0])
            .into_iter()
            .zip(all(&want[0]))
            .zip(all(&plain[0]))
        {
            assert!((g - w).abs() <= 1e-4 * (1.0 + w.abs()), "{g}, not {w}");
            moved = moved.max((w - p).abs());
        }
        assert!(moved > 1e-3, "codes of few bits are seen in the result");
    }

    #[test]
    fn models_without_a_past_are_refused() {
        let options = Options {
            kv: Some([4, 4]),
            ..Options::default()
        };
        let error = lower(&module(false), &Target::x86_64(), &options).expect_err("no rounding");
        assert!(error.to_string().contains("causal attention"), "{error}");
    }
}
