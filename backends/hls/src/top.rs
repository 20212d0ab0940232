//! A host program as one C++ function: its launches in order, between arrays.
//!
//! Values that live between launches are arrays on chip, one each, so that every array has a type and its own banks. Weights are
//! constants on chip where they fit the part's block memories, the smallest first, else arguments that a bus reads (`m_axi`). Where each
//! array is written by one launch and read by one later, the launches are a dataflow region: they overlap, each on its own
//! image.
//!
//! Only programs of launches with known sizes are circuits: library operations, branches and loops of the host program, and
//! symbols are errors.

use crate::cost::{Cost, cost};
use crate::folding::Folding;
use crate::parts::{Part, bram18};
use crate::types::storage;
use lapidary_abi::ElemType;
use lapidary_abi::program::{Arg, Place, Program, Step, ValueIndex, ValueType};
use lapidary_ir::backend::Error;
use lapidary_ir::kernel::{Kernel, Param};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

/// A program to make a circuit of.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// The host program.
    pub program: &'a Program,
    /// Its kernels, in its order.
    pub kernels: &'a [Kernel],
    /// The weights blob.
    pub weights: &'a [u8],
    /// What it is to fit.
    pub part: &'a Part,
}

/// An array of the top function.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    /// Its name in the text.
    pub name: String,
    /// Type of its elements.
    pub elem: ElemType,
    /// Number of elements.
    pub len: u64,
}

/// A launch, as the report shows it.
#[derive(Clone, Debug)]
pub struct Layer {
    /// The kernel's name.
    pub name: String,
    /// Position of its function: launches of one kernel share a circuit.
    pub function: usize,
    /// Columns of a product at once.
    pub pe: u32,
    /// What it is predicted to take.
    pub cost: Cost,
    /// Bytes of weights that it reads by the bus.
    pub streamed_bytes: u64,
    /// All its cycles: of the pipelines, or of the bus where that takes longer.
    pub cycles: f64,
}

/// A circuit.
#[derive(Clone, Debug)]
pub struct Design {
    /// Functions of kernels and the top function.
    pub text: String,
    /// Constants on chip.
    pub constants: String,
    /// Declaration of the top function.
    pub declaration: String,
    /// Its arguments: inputs and outputs in the program's order, then weights that are not on chip.
    pub inputs: Vec<Array>,
    /// Results.
    pub outputs: Vec<Array>,
    /// Weights beside the chip, with their bytes' place in the blob.
    pub streamed: Vec<(Array, u64)>,
    /// Its launches.
    pub layers: Vec<Layer>,
    /// Whether launches overlap.
    pub dataflow: bool,
    /// Buffers of each array between launches that overlap, by name.
    pub depths: BTreeMap<String, u64>,
    /// Block memories of 18 kbit.
    pub bram18: u64,
}

/// Share of a part's block memories that weights may take.
const FOR_WEIGHTS: f64 = 0.6;
/// Share of a bus' bytes that arrive, as bursts are set up. Source: FlightLLM's profiler, same channel.
const EFFICIENCY: f64 = 0.7;

impl Design {
    /// Makes a circuit of a program, launches of the n-th kernel folded as `folding` says.
    ///
    /// # Errors
    /// The program does what circuits do not, or a kernel cannot be translated.
    pub fn new(source: &Source, folding: &dyn Fn(usize) -> Folding) -> Result<Design, Error> {
        let mut top = Top {
            source,
            values: BTreeMap::new(),
            design: Design {
                text: String::new(),
                constants: String::new(),
                declaration: String::new(),
                inputs: vec![],
                outputs: vec![],
                streamed: vec![],
                layers: vec![],
                dataflow: false,
                depths: BTreeMap::new(),
                bram18: 0,
            },
        };
        top.write(folding)?;
        Ok(top.design)
    }

    /// DSP slices and look-up tables of all functions; memory of arrays is [`Design::bram18`].
    pub fn resources(&self) -> (f64, f64) {
        let mut functions = BTreeMap::new();
        for layer in &self.layers {
            functions.insert(layer.function, (layer.cost.dsp, layer.cost.lut));
        }
        let sum = |of: fn(&(f64, f64)) -> f64| functions.values().map(of).sum();
        (sum(|f| f.0), sum(|f| f.1))
    }

    /// Cycles from an image's arrival to its result.
    pub fn latency(&self) -> f64 {
        self.layers.iter().map(|l| l.cycles).sum()
    }

    /// Cycles between two images.
    pub fn interval(&self) -> f64 {
        if !self.dataflow {
            return self.latency();
        }
        self.layers.iter().map(|l| l.cycles).fold(0.0, f64::max)
    }
}

/// A design being made.
pub struct Top<'a> {
    pub source: &'a Source<'a>,
    /// The array of each value that is not another's.
    pub values: BTreeMap<ValueIndex, Array>,
    pub design: Design,
}

impl Top<'_> {
    pub fn unsupported(&self, what: String) -> Error {
        Error::Unsupported {
            kernel: self.source.program.name.clone(),
            what,
        }
    }

    pub fn root(&self, mut v: ValueIndex) -> ValueIndex {
        let values = &self.source.program.values;
        while let Some(Place::Alias(of)) = values.get(v as usize).map(|d| &d.place) {
            v = *of;
        }
        v
    }

    fn tensor(&self, v: ValueIndex) -> Result<(ElemType, u64), Error> {
        let decl = self.source.program.values.get(v as usize);
        let Some(ValueType::Tensor {
            elem,
            dims: Some(dims),
        }) = decl.map(|d| &d.ty)
        else {
            return Err(self.unsupported(format!("value {v}, which is no tensor of known rank")));
        };
        let sizes = dims.iter().map(|d| d.as_const());
        let mut len = sizes.map(|d| d.and_then(|d| u64::try_from(d).ok()));
        let len = len.try_fold(1u64, |n, d| n.checked_mul(d?));
        len.map(|n| (*elem, n)).ok_or_else(|| {
            self.unsupported("a size that is not known: fix dimensions with `--dim`".to_owned())
        })
    }

    /// Kernel and arguments of each launch.
    fn launches(&self) -> Result<Vec<(usize, Vec<Arg>)>, Error> {
        let program = self.source.program;
        let mut all = vec![];
        for step in program.prepare.steps.iter().chain(&program.body.steps) {
            match step {
                Step::Launch { kernel, args, .. } => all.push((*kernel as usize, args.clone())),
                Step::Free { .. } => {}
                Step::Require {
                    left,
                    right,
                    message,
                } => {
                    if left.as_const().is_none() || left.as_const() != right.as_const() {
                        return Err(self.unsupported(format!("the condition: {message}")));
                    }
                }
                Step::Call { op, .. } => {
                    return Err(self.unsupported(format!(
                        "`{op}`, which is an operation of the run-time library"
                    )));
                }
                Step::If { .. } | Step::Loop { .. } => {
                    return Err(self.unsupported("a branch or loop of the model".to_owned()));
                }
                Step::BindDim { .. } | Step::BindElement { .. } | Step::Move { .. } => {
                    return Err(self.unsupported("sizes that depend on data".to_owned()));
                }
            }
        }
        Ok(all)
    }

    /// Arrays of inputs, outputs, and of whatever launches touch.
    fn arrays(&mut self, launches: &[(usize, Vec<Arg>)]) -> Result<(), Error> {
        let program = self.source.program;
        if !program.states.is_empty() {
            return Err(self.unsupported("a state that lasts between runs".to_owned()));
        }
        let ports = program.inputs.iter().map(|p| (p, "in"));
        let ports = ports.chain(program.outputs.iter().map(|p| (p, "out")));
        for (n, (port, kind)) in ports.enumerate() {
            let (elem, len) = self.tensor(port.value)?;
            if len == 0 {
                return Err(self.unsupported(format!("`{}`, which is empty", port.name)));
            }
            let name: String = port
                .name
                .chars()
                .filter(char::is_ascii_alphanumeric)
                .collect();
            let array = Array {
                name: format!("{kind}{n}_{name}"),
                elem,
                len,
            };
            let own = matches!(
                program.values[port.value as usize].place,
                Place::Input(_) | Place::Output(_)
            );
            if own {
                self.values.insert(port.value, array.clone());
            }
            match kind {
                "in" => self.design.inputs.push(array),
                _ => self.design.outputs.push(array),
            }
        }
        for (kernel, args) in launches {
            for (param, arg) in self.source.kernels[*kernel].params.iter().zip(args) {
                if let (Param::Buffer { elem, .. }, Arg::Buffer(v)) = (param, arg) {
                    self.array(self.root(*v), *elem)?;
                }
            }
        }
        for port in &program.outputs {
            let root = self.root(port.value);
            let (elem, _) = self.tensor(root)?;
            self.array(root, elem)?;
        }
        Ok(())
    }

    fn array(&mut self, v: ValueIndex, elem: ElemType) -> Result<(), Error> {
        if let Some(known) = self.values.get(&v) {
            if storage(known.elem) != storage(elem) {
                return Err(self.unsupported(format!(
                    "value {v}, which is read as `{}` and as `{elem}`",
                    known.elem
                )));
            }
            return Ok(());
        }
        let len = match &self.source.program.values[v as usize].place {
            // What is packed has more elements than the tensor it is of.
            Place::Weights { bytes, .. } => bytes / elem.size_bytes().max(1) as u64,
            Place::Arena { .. } | Place::Prepared { .. } | Place::Output(_) => self.tensor(v)?.1,
            place => return Err(self.unsupported(format!("a value at {place:?}"))),
        };
        let prefix = match self.source.program.values[v as usize].place {
            Place::Weights { .. } => "w",
            _ => "t",
        };
        let array = Array {
            name: format!("{prefix}{v}"),
            elem,
            len: len.max(1),
        };
        self.values.insert(v, array);
        Ok(())
    }

    fn write(&mut self, folding: &dyn Fn(usize) -> Folding) -> Result<(), Error> {
        let launches = self.launches()?;
        self.arrays(&launches)?;
        self.place_weights()?;
        let mut text = String::new();
        let used: BTreeSet<usize> = launches.iter().map(|l| l.0).collect();
        for &k in &used {
            let kernel = &self.source.kernels[k];
            let lengths = self.lengths(k, &launches);
            text += &crate::function(kernel, &function_name(k, kernel), folding(k), &lengths)?;
            text.push('\n');
        }
        for (k, args) in &launches {
            self.layer(*k, args, folding(*k))?;
        }
        self.design.dataflow = self.overlaps(&launches);
        if self.design.dataflow {
            self.design.depths = self.depths(&launches)?;
        }
        self.design.declaration = self.declaration();
        text += &self.top(&launches, &used)?;
        self.design.text = text;
        Ok(())
    }

    /// Elements of each buffer of a kernel, where all its launches agree.
    fn lengths(&self, kernel: usize, launches: &[(usize, Vec<Arg>)]) -> Vec<Option<u64>> {
        let of = |arg: &Arg| match arg {
            Arg::Buffer(v) => self.values.get(&self.root(*v)).map(|a| a.len),
            Arg::Size(_) => None,
        };
        let mut all = launches.iter().filter(|l| l.0 == kernel);
        let mut lengths: Vec<Option<u64>> = match all.next() {
            Some((_, args)) => args.iter().map(of).collect(),
            None => vec![],
        };
        for (_, args) in all {
            for (len, arg) in lengths.iter_mut().zip(args) {
                *len = len.filter(|_| of(arg) == *len);
            }
        }
        lengths
    }

    /// Weights on chip, smallest first, as long as there is room; the others are arguments.
    fn place_weights(&mut self) -> Result<(), Error> {
        let mut room = self.source.part.bram36 as f64 * 36_864.0 * FOR_WEIGHTS;
        let mut weights: Vec<(u64, ValueIndex, u64)> = vec![];
        for (&v, array) in &self.values {
            if let Place::Weights { offset, .. } = self.source.program.values[v as usize].place {
                weights.push((array.len * array.elem.size_bytes() as u64, v, offset));
            }
        }
        weights.sort_unstable();
        for (bytes, v, offset) in weights {
            let array = self.values[&v].clone();
            room -= 8.0 * bytes as f64;
            if room < 0.0 {
                self.design.streamed.push((array, offset));
                continue;
            }
            let end = (offset + bytes) as usize;
            let bytes = self.source.weights.get(offset as usize..end);
            let bytes =
                bytes.ok_or_else(|| self.unsupported("weights that end early".to_owned()))?;
            let _ = writeln!(
                self.design.constants,
                "static const {} {}[{}] = {{",
                storage(array.elem),
                array.name,
                array.len
            );
            for line in bytes.chunks(16 * array.elem.size_bytes()) {
                let numbers = line.chunks(array.elem.size_bytes());
                let numbers: Vec<String> = numbers.map(|n| number(array.elem, n)).collect();
                let _ = writeln!(self.design.constants, "  {},", numbers.join(", "));
            }
            self.design.constants += "};\n";
        }
        Ok(())
    }

    fn layer(&mut self, k: usize, args: &[Arg], folding: Folding) -> Result<(), Error> {
        let kernel = &self.source.kernels[k];
        let sizes: Vec<Option<i64>> = args
            .iter()
            .map(|a| match a {
                Arg::Size(s) => s.as_const(),
                Arg::Buffer(_) => None,
            })
            .collect();
        let cost = cost(kernel, &sizes, folding)?;
        let streamed = args.iter().filter_map(|a| match a {
            Arg::Buffer(v) => {
                let name = &self.values.get(&self.root(*v))?.name;
                let found = self.design.streamed.iter().find(|s| &s.0.name == name)?;
                Some(found.0.len * found.0.elem.size_bytes() as u64)
            }
            Arg::Size(_) => None,
        });
        let streamed_bytes = streamed.sum();
        let part = self.source.part;
        let per_cycle = part.memory_bandwidth / (part.clock_mhz * 1e6) * EFFICIENCY;
        self.design.layers.push(Layer {
            name: kernel.name.clone(),
            function: k,
            pe: folding.pe,
            cycles: cost.cycles.max(streamed_bytes as f64 / per_cycle),
            cost,
            streamed_bytes,
        });
        Ok(())
    }

    fn declaration(&self) -> String {
        let design = &self.design;
        let constant = |a: &Array| format!("const {} {}[{}]", storage(a.elem), a.name, a.len);
        let inputs = design.inputs.iter().map(constant);
        let outputs = design.outputs.iter();
        let outputs = outputs.map(|a| format!("{} {}[{}]", storage(a.elem), a.name, a.len));
        let weights = design.streamed.iter().map(|s| constant(&s.0));
        let all: Vec<String> = inputs.chain(outputs).chain(weights).collect();
        format!("extern \"C\" void top({})", all.join(", "))
    }

    fn top(
        &mut self,
        launches: &[(usize, Vec<Arg>)],
        used: &BTreeSet<usize>,
    ) -> Result<String, Error> {
        let mut text = format!("{} {{\n", self.design.declaration);
        let ports = self.design.inputs.iter().chain(&self.design.outputs);
        let ports = ports.chain(self.design.streamed.iter().map(|s| &s.0));
        for (n, array) in ports.enumerate() {
            let _ = writeln!(
                text,
                "#pragma HLS INTERFACE mode=m_axi port={} bundle=bus{n} offset=slave depth={}",
                array.name, array.len
            );
        }
        text += "#pragma HLS INTERFACE mode=s_axilite port=return\n";
        if self.design.dataflow {
            text += "#pragma HLS DATAFLOW\n";
        } else {
            // Launches of one kernel take turns on one circuit.
            for &k in used {
                let name = function_name(k, &self.source.kernels[k]);
                let _ = writeln!(
                    text,
                    "#pragma HLS ALLOCATION function instances={name} limit=1"
                );
            }
        }
        let ports = self.ports(launches);
        for (v, array) in &self.values {
            let banks = ports.get(v).copied().unwrap_or(1).div_ceil(2);
            let place = &self.source.program.values[*v as usize].place;
            let streamed = self.design.streamed.iter().any(|s| s.0.name == array.name);
            let between = matches!(place, Place::Arena { .. } | Place::Prepared { .. });
            if between {
                let _ = writeln!(
                    text,
                    "  LP_ARRAY {} {}[{}];",
                    storage(array.elem),
                    array.name,
                    array.len
                );
            }
            if between || (matches!(place, Place::Weights { .. }) && !streamed) {
                if banks > 1 {
                    let _ = writeln!(
                        text,
                        "#pragma HLS ARRAY_PARTITION variable={} type=cyclic factor={banks}",
                        array.name
                    );
                }
                let bits = 8 * array.elem.size_bytes() as u64;
                let banks = u64::from(banks);
                let once = banks * bram18(array.len.div_ceil(banks), bits);
                // Overlapping launches write one image while the next is read.
                let images = if between && self.design.dataflow {
                    2
                } else {
                    1
                };
                self.design.bram18 += images * once;
            }
        }
        for (k, args) in launches {
            let kernel = &self.source.kernels[*k];
            let args: Result<Vec<String>, Error> = args.iter().map(|a| self.argument(a)).collect();
            let name = function_name(*k, kernel);
            let _ = writeln!(text, "  {name}({});", args?.join(", "));
        }
        for (port, array) in self.source.program.outputs.iter().zip(&self.design.outputs) {
            let from = &self.values[&self.root(port.value)];
            if from.name != array.name {
                let _ = writeln!(
                    text,
                    "  for (int64_t i = 0; i < {}; ++i) {{\n#pragma HLS PIPELINE II=1\n    {}[i] = {}[i];\n  }}",
                    array.len, array.name, from.name
                );
            }
        }
        let layers = self.design.layers.iter();
        let scratch: BTreeMap<usize, f64> =
            layers.map(|l| (l.function, l.cost.scratch_bits)).collect();
        for bits in scratch.values() {
            self.design.bram18 += bram18((bits / 32.0).ceil() as u64, 32);
        }
        text += "}\n";
        Ok(text)
    }

    fn argument(&self, arg: &Arg) -> Result<String, Error> {
        match arg {
            Arg::Buffer(v) => {
                let array = self.values.get(&self.root(*v));
                array
                    .map(|a| a.name.clone())
                    .ok_or_else(|| self.unsupported(format!("value {v}")))
            }
            Arg::Size(s) => s.as_const().map(|n| n.to_string()).ok_or_else(|| {
                self.unsupported("a size that is not known: fix dimensions with `--dim`".to_owned())
            }),
        }
    }
}

fn function_name(k: usize, kernel: &Kernel) -> String {
    format!("k{k}_{}", kernel.name)
}

/// An element as a literal.
fn number(elem: ElemType, bytes: &[u8]) -> String {
    let bits = bytes.iter().rev().fold(0u64, |n, &b| n << 8 | u64::from(b));
    let signed = |bits: u64, width: u32| (bits << (64 - width)) as i64 >> (64 - width);
    match elem {
        ElemType::F32 => crate::element::literal_f32(f32::from_bits(bits as u32)),
        ElemType::F64 => crate::element::literal_f64(f64::from_bits(bits)),
        ElemType::I64 if bits == 1 << 63 => "INT64_MIN".to_owned(),
        ElemType::I64 => format!("INT64_C({})", bits as i64),
        ElemType::I32 if bits == 1 << 31 => "INT32_MIN".to_owned(),
        ElemType::U64 => format!("UINT64_C({bits})"),
        ElemType::I32 | ElemType::I16 | ElemType::I8 | ElemType::I4 | ElemType::I2 => {
            signed(bits, 8 * bytes.len() as u32).to_string()
        }
        _ => format!("{bits}u"),
    }
}
