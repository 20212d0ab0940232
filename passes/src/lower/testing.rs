//! Runs lowered programs step by step with the kernel interpreter and the evaluator's ops in place of the
//! library: slow, checked, and without machine code. Tests of lowering compare it with the evaluator.

use super::Lowered;
use bytes::Bytes;
use lapidary_abi::Size;
use lapidary_abi::program::{Arg, Block, CallAttr, Place, Step, ValueIndex, ValueType};
use lapidary_ir::kernel::{Param, interp, verify};
use lapidary_ir::tensor::{Data, Tensor, Value};
use lapidary_ir::{Attr, Attrs, ElemType};
use std::collections::{BTreeMap, HashMap};

/// Runs a lowered program on values.
pub fn run(lowered: &Lowered, inputs: &[Value]) -> Result<Vec<Value>, String> {
    run_from(lowered, inputs, &[], &mut vec![])
}

/// Runs a lowered program on values, with these values of symbols, going on from its states: zeros if there are none yet.
pub fn run_from(
    lowered: &Lowered,
    inputs: &[Value],
    symbols: &[(&str, i64)],
    states: &mut Vec<Value>,
) -> Result<Vec<Value>, String> {
    for k in &lowered.kernels {
        verify::verify(k).map_err(|e| format!("{e}\n{k}"))?;
    }
    let program = &lowered.program;
    let mut host = Host {
        lowered,
        symbols: vec![0; program.symbols.len()],
        slots: HashMap::new(),
        arena: vec![0xFF; program.arena_bytes as usize],
        prepared: vec![0xFF; program.prepared_bytes as usize],
        weights: BTreeMap::new(),
    };
    for w in &lowered.weights {
        host.weights.insert(w.offset, w.read()?);
    }
    for (port, value) in program.inputs.iter().zip(inputs) {
        if let (ValueType::Tensor { dims: Some(d), .. }, Value::Tensor(t)) = (&port.ty, value) {
            for (d, &n) in d.iter().zip(t.shape()) {
                if let Size::Sym(s) = d {
                    host.symbols[*s as usize] = n as i64;
                }
            }
        }
        host.slots.insert(port.value, value.clone());
    }
    for (name, value) in symbols {
        let symbol = program.symbols.iter().position(|s| s == name);
        host.symbols[symbol.ok_or("an unknown symbol")?] = *value;
    }
    for (i, port) in program.states.iter().enumerate() {
        let (elem, shape) = host.shape(port.value)?;
        let zeros = || Tensor::zeros(elem, shape).into();
        let value = states.get(i).cloned().unwrap_or_else(zeros);
        host.slots.insert(port.value, value);
    }
    host.block(&program.prepare)?;
    // Nothing but what is meant to outlives it.
    host.arena.fill(0xFF);
    host.block(&program.body)?;
    *states = program
        .states
        .iter()
        .map(|p| host.get(p.value))
        .collect::<Result<_, _>>()?;
    program.outputs.iter().map(|p| host.get(p.value)).collect()
}

struct Host<'l> {
    lowered: &'l Lowered,
    symbols: Vec<i64>,
    slots: HashMap<ValueIndex, Value>,
    arena: Vec<u8>,
    prepared: Vec<u8>,
    weights: BTreeMap<u64, Bytes>,
}

impl Host<'_> {
    fn size(&self, s: &Size) -> Result<i64, String> {
        s.eval(&self.symbols)
            .ok_or_else(|| format!("the size {s:?} has no value"))
    }

    fn shape(&self, v: ValueIndex) -> Result<(ElemType, Vec<usize>), String> {
        match &self.lowered.program.values[v as usize].ty {
            ValueType::Tensor {
                elem,
                dims: Some(d),
            } => {
                let dims = d
                    .iter()
                    .map(|d| Ok(usize::try_from(self.size(d)?).unwrap_or(0)))
                    .collect::<Result<_, String>>()?;
                Ok((*elem, dims))
            }
            ty => Err(format!("value {v} has type {ty:?}")),
        }
    }

    fn get(&self, v: ValueIndex) -> Result<Value, String> {
        let decl = &self.lowered.program.values[v as usize];
        let tensor = |bytes: &[u8]| {
            let (elem, shape) = self.shape(v)?;
            let n: usize = shape.iter().product::<usize>() * elem.size_bytes();
            let bytes = bytes.get(..n).ok_or("a value is larger than its place")?;
            Tensor::from_bytes(elem, shape, bytes)
                .map(Value::from)
                .ok_or_else(|| format!("value {v} has the wrong length"))
        };
        match &decl.place {
            Place::Arena { offset } => tensor(&self.arena[*offset as usize..]),
            Place::Prepared { offset } => tensor(&self.prepared[*offset as usize..]),
            Place::Weights { offset, .. } => {
                // Several weights may be made together, as one piece.
                let piece = self.weights.range(..=offset).next_back();
                let (begin, bytes) = piece.ok_or("a weight before the first")?;
                tensor(bytes.get((offset - begin) as usize..).unwrap_or_default())
            }
            Place::Strings(s) => {
                let (elem, shape) = self.shape(v)?;
                Ok(Tensor::new(elem, shape, Data::Str(s.clone())).into())
            }
            Place::Alias(of) => match self.get(*of)? {
                Value::Tensor(t) => {
                    let (_, shape) = self.shape(v)?;
                    Ok(Tensor::new(t.elem(), shape, t.data().clone()).into())
                }
                other => Ok(other),
            },
            _ => self
                .slots
                .get(&v)
                .cloned()
                .ok_or_else(|| format!("value {v} is used before it is defined")),
        }
    }

    fn set(&mut self, v: ValueIndex, value: Value) -> Result<(), String> {
        match self.lowered.program.values[v as usize].place {
            ref place @ (Place::Arena { offset } | Place::Prepared { offset }) => {
                let Value::Tensor(t) = value else {
                    return Err("a fixed place holds tensors".into());
                };
                let bytes = t.to_bytes().ok_or("a fixed place holds no strings")?;
                let memory = match place {
                    Place::Arena { .. } => &mut self.arena,
                    _ => &mut self.prepared,
                };
                memory[offset as usize..][..bytes.len()].copy_from_slice(&bytes);
                Ok(())
            }
            Place::Alias(of) => self.set_alias(of, value),
            _ => {
                self.slots.insert(v, value);
                Ok(())
            }
        }
    }

    fn set_alias(&mut self, of: ValueIndex, value: Value) -> Result<(), String> {
        let (_, shape) = self.shape(of)?;
        match value {
            Value::Tensor(t) => self.set(of, Tensor::new(t.elem(), shape, t.data().clone()).into()),
            other => self.set(of, other),
        }
    }

    fn block(&mut self, b: &Block) -> Result<(), String> {
        b.steps.iter().try_for_each(|s| self.step(s))
    }

    fn step(&mut self, step: &Step) -> Result<(), String> {
        match step {
            Step::Launch {
                kernel, grid, args, ..
            } => self.launch(*kernel, grid, args),
            Step::Call {
                op,
                attrs,
                operands,
                results,
            } => {
                let operands = operands
                    .iter()
                    .map(|o| o.map(|v| self.get(v)).transpose())
                    .collect::<Result<Vec<_>, _>>()?;
                let mut given = Attrs::new();
                for (name, a) in attrs {
                    given.insert(name.clone(), self.attr(a)?);
                }
                let out = lapidary_ir::eval::eval_op(op, &operands, given, results.len())
                    .map_err(|e| e.to_string())?;
                for (&r, v) in results.iter().zip(out) {
                    self.set(r, v)?;
                }
                Ok(())
            }
            Step::BindDim {
                symbol,
                value,
                axis,
            } => match self.get(*value)? {
                Value::Tensor(t) => {
                    self.symbols[*symbol as usize] = t.shape()[*axis as usize] as i64;
                    Ok(())
                }
                _ => Err("a dimension of no tensor".into()),
            },
            Step::BindElement {
                symbol,
                value,
                element,
            } => {
                self.symbols[*symbol as usize] = self.integer(*value, *element as usize)?;
                Ok(())
            }
            Step::Move { from, to } => {
                let v = self.get(*from)?;
                self.set(*to, v)
            }
            Step::Free { value } => {
                self.slots.remove(value);
                Ok(())
            }
            Step::Require {
                left,
                right,
                message,
            } => {
                if self.size(left)? == self.size(right)? {
                    Ok(())
                } else {
                    Err(message.clone())
                }
            }
            Step::If {
                condition,
                then_block,
                else_block,
                results,
            } => {
                let b = if self.integer(*condition, 0)? != 0 {
                    then_block
                } else {
                    else_block
                };
                self.block(b)?;
                let out = self.all(&b.results)?;
                self.set_all(results, out)
            }
            Step::Loop {
                trip_count,
                condition,
                carried,
                body,
                results,
                scan_types,
            } => {
                let trips = trip_count.map_or(Ok(i64::MAX), |v| self.integer(v, 0))?;
                let mut go = condition.map_or(Ok(1), |v| self.integer(v, 0))? != 0;
                let mut now = self.all(carried)?;
                let mut rows: Vec<Vec<Value>> = vec![vec![]; scan_types.len()];
                let mut i = 0;
                while go && i < trips {
                    self.set(body.params[0], Tensor::int(i).into())?;
                    self.set(body.params[1], Tensor::bool(go).into())?;
                    self.set_all(&body.params[2..], now)?;
                    self.block(body)?;
                    go = self.integer(body.results[0], 0)? != 0;
                    now = self.all(&body.results[1..])?;
                    for (r, v) in rows.iter_mut().zip(now.split_off(carried.len())) {
                        r.push(v);
                    }
                    i += 1;
                }
                for r in rows {
                    now.push(stack(r)?);
                }
                self.set_all(results, now)
            }
        }
    }

    fn attr(&self, a: &CallAttr) -> Result<Attr, String> {
        Ok(match a {
            CallAttr::Int(v) => Attr::Int(*v),
            CallAttr::Ints(v) => Attr::Ints(v.clone()),
            CallAttr::Float(v) => Attr::Float(*v),
            CallAttr::Floats(v) => Attr::Floats(v.clone()),
            CallAttr::Str(v) => Attr::Str(v.clone()),
            CallAttr::Strs(v) => Attr::Strs(v.clone()),
            CallAttr::Elem(v) => Attr::Elem(*v),
            CallAttr::Value(v) => match self.get(*v)? {
                Value::Tensor(t) => Attr::Tensor(t),
                _ => return Err("an attribute is no tensor".into()),
            },
        })
    }

    fn all(&self, values: &[ValueIndex]) -> Result<Vec<Value>, String> {
        values.iter().map(|&v| self.get(v)).collect()
    }

    fn set_all(&mut self, to: &[ValueIndex], values: Vec<Value>) -> Result<(), String> {
        to.iter()
            .zip(values)
            .try_for_each(|(&v, value)| self.set(v, value))
    }

    fn integer(&self, v: ValueIndex, i: usize) -> Result<i64, String> {
        match self.get(v)? {
            Value::Tensor(t) => t
                .integers()
                .and_then(|x| x.get(i))
                .map(|&x| x as i64)
                .ok_or_else(|| format!("value {v} has no integer {i}")),
            _ => Err("an integer is needed".into()),
        }
    }

    fn launch(&mut self, kernel: u32, grid: &Size, args: &[Arg]) -> Result<(), String> {
        let k = &self.lowered.kernels[kernel as usize];
        let (mut buffers, mut sizes, mut written) = (vec![], vec![], vec![]);
        for (param, arg) in k.params.iter().zip(args) {
            match (param, arg) {
                (Param::Buffer { written: w, .. }, Arg::Buffer(v)) => {
                    let (elem, shape) = self.shape(*v)?;
                    let bytes = match self.get(*v) {
                        Ok(Value::Tensor(t)) => t.to_bytes().ok_or("a kernel reads strings")?,
                        _ if *w => {
                            vec![0xFF; shape.iter().product::<usize>() * elem.size_bytes()]
                        }
                        Ok(_) => return Err("a kernel reads no tensor".into()),
                        Err(e) => return Err(format!("{e} (kernel `{}`)", k.name)),
                    };
                    written.push(w.then_some(*v));
                    buffers.push(bytes);
                }
                (Param::Size { .. }, Arg::Size(s)) => sizes.push(self.size(s)?),
                _ => return Err(format!("arguments of kernel `{}` do not fit", k.name)),
            }
        }
        let blocks = interp::grid(k, &sizes).ok_or("a grid without extents")?;
        let blocks: u64 = blocks.iter().product();
        let blocks = match self.size(grid)? {
            // A launch for other sizes.
            0 => 0,
            _ => blocks,
        };
        if self.size(grid)? as u64 != blocks {
            return Err(format!("grid of `{}` is {grid:?}, not {blocks}", k.name));
        }
        let mut views: Vec<&mut [u8]> = buffers.iter_mut().map(Vec::as_mut_slice).collect();
        interp::run(k, &mut views, &sizes, 0, blocks).map_err(|e| format!("{e}\n{k}"))?;
        for (v, bytes) in written.into_iter().zip(buffers) {
            if let Some(v) = v {
                let (elem, shape) = self.shape(v)?;
                let t = Tensor::from_bytes(elem, shape, &bytes).ok_or("wrong length")?;
                self.set(v, t.into())?;
            }
        }
        Ok(())
    }
}

fn stack(rows: Vec<Value>) -> Result<Value, String> {
    let mut bytes = vec![];
    let mut shape = vec![rows.len()];
    let mut elem = None;
    for r in &rows {
        let t = r.as_tensor().ok_or("a scan output is no tensor")?;
        elem = Some((t.elem(), t.shape().to_vec()));
        bytes.extend(t.to_bytes().ok_or("a scan output of strings")?);
    }
    let (elem, row) = elem.ok_or("a scan without iterations")?;
    shape.extend(row);
    Tensor::from_bytes(elem, shape, &bytes)
        .map(Value::from)
        .ok_or_else(|| "scan outputs differ in shape".into())
}
