//! What depends on weights alone is computed once, when a model is loaded.
//!
//! `before => after`: a step whose operands are all weights, or written by such steps, moves from the program's body to
//! its preparation; what the body reads of it gets a place of its own that lives as long as the model. Decoding a
//! compressed weight and packing it are such steps: the file stays small, the program fast, at the price of memory.

use super::memory::{blocks, bytes, mentions, root};
use lapidary_abi::program::{Arg, Block, Place, Program, Step, ValueIndex, ValueType};
use lapidary_abi::{ElemType, Size};
use lapidary_ir::kernel::{Kernel, Param};
use lapidary_ir::ops::Op;
use std::collections::HashSet;

/// Moves such steps of the top block.
pub fn hoist(program: &mut Program, kernels: &[Kernel]) {
    let roots: Vec<ValueIndex> = (0..program.values.len() as u32)
        .map(|v| root(program, v))
        .collect();
    let mut varying: HashSet<ValueIndex> = (0..program.values.len() as u32)
        .filter(|&v| roots[v as usize] == v && !may_be_prepared(program, v))
        .collect();
    // What the caller gets is written anew in every run.
    let outputs = program.outputs.iter().map(|p| roots[p.value as usize]);
    varying.extend(outputs);
    let is_varying = |step: &Step, varying: &HashSet<ValueIndex>| {
        let fixed = match step {
            Step::Launch { grid, args, .. } => {
                let number = |a: &Arg| !matches!(a, Arg::Size(s) if s.as_const().is_none());
                grid.as_const().is_some() && args.iter().all(number)
            }
            // Random numbers are drawn anew.
            Step::Call { op, .. } => Op::named(op).is_some_and(|op| op.pure),
            _ => false,
        };
        !fixed
            || mentions(step)
                .iter()
                .any(|v| varying.contains(&roots[*v as usize]))
    };
    // A value is prepared only if each step that writes it is: until nothing more varies.
    loop {
        let before = varying.len();
        for step in &program.body.steps {
            if is_varying(step, &varying) {
                writes(step, kernels, &mut |v| {
                    varying.insert(roots[v as usize]);
                });
            }
        }
        if varying.len() == before {
            break;
        }
    }
    let steps = std::mem::take(&mut program.body.steps);
    let (body, prepare): (Vec<Step>, Vec<Step>) =
        steps.into_iter().partition(|s| is_varying(s, &varying));
    let mut made = HashSet::new();
    for step in &prepare {
        writes(step, kernels, &mut |v| {
            made.insert(roots[v as usize]);
        });
    }
    let mut used = HashSet::new();
    body.iter().for_each(|s| read(s, &mut used));
    let kept: HashSet<ValueIndex> = used.iter().map(|&v| roots[v as usize]).collect();
    let mut kept: Vec<ValueIndex> = kept.intersection(&made).copied().collect();
    kept.sort_unstable();
    for v in kept {
        let decl = &mut program.values[v as usize];
        decl.place = Place::Prepared {
            offset: program.prepared_bytes,
        };
        program.prepared_bytes += bytes(&decl.ty);
    }
    program.body.steps = body;
    program.prepare.steps = prepare;
}

/// Weights, and tensors of a size that is known.
fn may_be_prepared(program: &Program, v: ValueIndex) -> bool {
    let decl = &program.values[v as usize];
    let sized = match &decl.ty {
        ValueType::Tensor {
            elem,
            dims: Some(dims),
        } => *elem != ElemType::String && dims.iter().all(|d| matches!(d, Size::Const(_))),
        _ => false,
    };
    match decl.place {
        Place::Weights { .. } => true,
        Place::Arena { .. } | Place::Heap => sized,
        _ => false,
    }
}

/// Every value that a step writes, inner blocks included.
pub(super) fn writes(step: &Step, kernels: &[Kernel], f: &mut dyn FnMut(ValueIndex)) {
    match step {
        Step::Launch { kernel, args, .. } => {
            let params = kernels.get(*kernel as usize).map(|k| &k.params[..]);
            for (param, arg) in params.unwrap_or_default().iter().zip(args) {
                if let (Param::Buffer { written: true, .. }, Arg::Buffer(v)) = (param, arg) {
                    f(*v);
                }
            }
        }
        Step::Call { results, .. } | Step::If { results, .. } | Step::Loop { results, .. } => {
            results.iter().copied().for_each(&mut *f);
        }
        Step::Move { to, .. } => f(*to),
        _ => {}
    }
    for block in blocks(step) {
        block.params.iter().copied().for_each(&mut *f);
        block.steps.iter().for_each(|s| writes(s, kernels, f));
    }
}

/// Every value that a step mentions, inner blocks included.
fn read(step: &Step, into: &mut HashSet<ValueIndex>) {
    fn block(b: &Block, into: &mut HashSet<ValueIndex>) {
        into.extend(&b.results);
        b.steps.iter().for_each(|s| read(s, into));
    }
    into.extend(mentions(step));
    blocks(step).into_iter().for_each(|b| block(b, into));
}

#[cfg(test)]
mod tests {
    use crate::lower::checks::numbers;
    use crate::lower::testing::run;
    use crate::lower::{Lowered, Options, lower};
    use bytes::Bytes;
    use lapidary_ir::builder::Builder;
    use lapidary_ir::encodings::{affine, dense, int};
    use lapidary_ir::target::Target;
    use lapidary_ir::tensor::Value;
    use lapidary_ir::{Attr, Constant, Dim, ElemType, Module, Tensor, Type, ValueId, eval};
    use std::cell::Cell;

    /// Steps at load and in each run of `x + made`.
    fn steps(made: impl FnOnce(&mut Builder) -> ValueId) -> (usize, usize) {
        let (mut m, fresh) = (Module::new("t"), Cell::new(0));
        let x = m.add_input(Module::TOP, "x", Type::tensor(ElemType::F32, [400i64, 400]));
        let mut b = Builder::new(&mut m, Module::TOP, "n", &fresh);
        let y = made(&mut b);
        let y = b.op("matmul", &[x, y]).expect("fits");
        m.region_mut(Module::TOP).outputs.push(y);
        m.output_names.push("y".into());
        let lowered = lower(&m, &Target::x86_64(), &Options::default()).expect("lowers");
        (
            lowered.program.prepare.steps.len(),
            lowered.program.body.steps.len(),
        )
    }

    #[test]
    fn what_depends_on_weights_alone_is_prepared() {
        let weight = |b: &mut Builder| {
            // Larger than its factors, so that it is not folded.
            let factor = |shape: [usize; 2]| Tensor::from_f64(ElemType::F32, shape, vec![0.5; 800]);
            let (v, w) = (b.constant(&factor([400, 2])), b.constant(&factor([2, 400])));
            b.op("matmul", &[v, w]).expect("fits")
        };
        let (prepared, run) = steps(weight);
        assert!(prepared >= 2 && run == 1, "{prepared} {run}");
    }

    /// Rows of a table of codes, beside products with it if it is tied.
    fn looked_up(bits: u32, tied: bool) -> Lowered {
        let (rows, columns) = (600, 128);
        let codes = (0..rows * columns).map(|i| (i * 37 % 251) as u8 >> (8 - bits));
        let blob = Bytes::from(int::pack(codes, bits));
        let codes = int::int(ElemType::U8, bits, vec![rows, columns], blob);
        let scales = dense::from_tensor(&numbers(&[rows, columns / 32], 3));
        let zero = Tensor::from_int(ElemType::U8, [1, 1], vec![1 << (bits - 1)]);
        let zero = dense::from_tensor(&zero);
        let table = affine::affine(ElemType::F32, scales, codes, Some(zero));
        let (mut m, fresh) = (Module::new("t"), Cell::new(0));
        let at = [Dim::sym("N")];
        let tokens = m.add_input(Module::TOP, "tokens", Type::tensor(ElemType::I64, at));
        let table = m.add_constant("table", Constant::new(table));
        let mut b = Builder::new(&mut m, Module::TOP, "n", &fresh);
        let axis = [("axis", Attr::Int(0))];
        let mut y = b.op_with("gather", &[table, tokens], axis).expect("fits");
        if tied {
            let turned = b.transpose(table, &[1, 0]).expect("a matrix");
            y = b.op("matmul", &[y, turned]).expect("fits");
        }
        m.region_mut(Module::TOP).outputs.push(y);
        m.output_names.push("y".into());
        let lowered = lower(&m, &Target::x86_64(), &Options::default()).expect("lowers");
        let tokens = || Tensor::from_int(ElemType::I64, [4], vec![0, 599, 7, 7]).into();
        let want = eval::run(&m, vec![tokens()]).expect("runs");
        let got = run(&lowered, &[tokens()]).expect("runs");
        let all = |v: &[Value]| v[0].as_tensor().and_then(Tensor::to_f64s).expect("numbers");
        let most = all(&want).into_iter().map(f64::abs).fold(0.0, f64::max);
        for (g, w) in all(&got).into_iter().zip(all(&want)) {
            assert!((g - w).abs() <= 1e-5 * most, "{g}, not {w}");
        }
        lowered
    }

    #[test]
    fn rows_of_tables_are_decoded_when_they_are_looked_up() {
        for bits in [3, 4, 8] {
            for tied in [false, true] {
                let program = looked_up(bits, tied).program;
                // A zero point at most.
                assert!(program.prepared_bytes <= 64, "{bits} bits, {tied}");
            }
        }
    }

    #[test]
    fn random_numbers_are_drawn_in_every_run() {
        let random = |b: &mut Builder| {
            let attrs = [("shape", Attr::Ints(vec![400, 400]))];
            b.op_with("random_normal", &[], attrs).expect("fits")
        };
        let (prepared, run) = steps(random);
        assert!(prepared == 0 && run >= 3, "{prepared} {run}");
    }
}
