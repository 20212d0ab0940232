//! The runtime's library operations mean what the reference evaluator says: on random operands both give the
//! same elements, or both refuse. Every op that lowering turns into a library call is covered.

mod cases;
mod random;

use cases::{Case, dims_of, make};
use lapidary::values::{to_evaluator, to_runtime};
use lapidary_abi::program::CallAttr;
use lapidary_ir::eval::eval_op;
use lapidary_ir::tensor::{Data, Value};
use lapidary_ir::{Attr, Op};
use lapidary_passes::lower::library::{DYNAMIC, LIBRARY, OTHERWISE};
use lapidary_runtime::ops::{self, Call};
use lapidary_runtime::{RunError, value};
use random::Gen;

/// Runs the runtime's operation as a compiled program would.
fn run(op: &str, case: &Case) -> Result<Vec<value::Value>, RunError> {
    let mut constants = Vec::new();
    let mut attrs = Vec::new();
    for def in Op::named(op).expect("an op").attrs {
        let Some(attr) = case
            .attrs
            .get(def.name)
            .cloned()
            .or_else(|| def.default.value())
        else {
            continue;
        };
        let attr = match attr {
            Attr::Int(v) => CallAttr::Int(v),
            Attr::Ints(v) => CallAttr::Ints(v),
            Attr::Float(v) => CallAttr::Float(v),
            Attr::Floats(v) => CallAttr::Floats(v),
            Attr::Str(v) => CallAttr::Str(v),
            Attr::Strs(v) => CallAttr::Strs(v),
            Attr::Elem(v) => CallAttr::Elem(v),
            Attr::Type(_) => continue,
            Attr::Tensor(t) => {
                constants.push(to_runtime(&t.into())?);
                CallAttr::Value(constants.len() as u32 - 1)
            }
        };
        attrs.push((def.name.to_owned(), attr));
    }
    let operands = case
        .operands
        .iter()
        .map(|o| o.as_ref().map(to_runtime).transpose());
    let operands = operands.collect::<Result<Vec<_>, _>>()?;
    let call = Call {
        op,
        attrs: &attrs,
        operands: operands
            .iter()
            .map(|o| o.as_ref().map(value::Value::operand))
            .collect(),
        results: case.results,
        constant: &|v| Ok(constants[v as usize].operand()),
    };
    let mut results = ops::find(op).expect("found")(&call)?;
    results.truncate(case.results);
    Ok(results)
}

/// Equality where NaN is NaN.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Tensor(a), Value::Tensor(b)) => {
            let data = match (a.data(), b.data()) {
                (Data::Float(a), Data::Float(b)) => a
                    .iter()
                    .zip(b)
                    .all(|(a, b)| a == b || a.is_nan() && b.is_nan()),
                (a, b) => a == b,
            };
            a.elem() == b.elem() && a.shape() == b.shape() && data
        }
        (Value::Sequence(a), Value::Sequence(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b))
        }
        (Value::Optional(Some(a)), Value::Optional(Some(b))) => same(a, b),
        (a, b) => a == b,
    }
}

fn names() -> impl Iterator<Item = &'static str> {
    let always = LIBRARY.iter().map(|l| l.0);
    always
        .chain(DYNAMIC.iter().copied())
        .chain(OTHERWISE.iter().copied())
}

#[test]
fn the_runtime_has_every_library_op() {
    for op in names() {
        assert!(Op::named(op).is_some(), "`{op}` is no op");
        assert!(ops::find(op).is_some(), "the runtime has no `{op}`");
    }
}

#[test]
fn library_ops_equal_the_evaluator() {
    const ROUNDS: usize = 200;
    let mut wrong = Vec::new();
    for op in names() {
        let mut g = Gen(op
            .bytes()
            .fold(7, |h: u64, b| h.wrapping_mul(31) + u64::from(b)));
        let (mut legal, mut differing) = (0, 0);
        for round in 0..ROUNDS {
            let Some(case) = make(op, &mut g) else {
                wrong.push(format!("{op}: no random operands"));
                break;
            };
            let expected = eval_op(op, &case.operands, case.attrs.clone(), case.results);
            let found = run(op, &case);
            legal += usize::from(expected.is_ok());
            let equal = match (&expected, &found) {
                (Ok(e), Ok(f)) => {
                    e.len() == f.len()
                        && e.iter()
                            .zip(f)
                            .all(|(e, f)| to_evaluator(f).is_some_and(|f| same(e, &f)))
                }
                (e, f) => e.is_err() && f.is_err(),
            };
            if !equal {
                differing += 1;
                if differing <= 2 {
                    let shapes: Vec<_> = case.operands.iter().flatten().map(dims_of).collect();
                    wrong.push(format!(
                        "{op}, round {round}: operands {shapes:?} {:?}\n{:?}\n  evaluator {expected:?}\n  runtime {found:?}",
                        case.attrs, case.operands
                    ));
                }
            }
        }
        if legal < ROUNDS / 4 {
            wrong.push(format!("{op}: only {legal} of {ROUNDS} cases are legal"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
