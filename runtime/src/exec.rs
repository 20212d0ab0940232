//! The executor: runs a checked program. See [`Model`].

use crate::bytes::{ALIGN, Bytes};
use crate::device::Device;
use crate::error::RunError;
use crate::frame::Frame;
use crate::image::Image;
use crate::memory::{Code, Weights};
use crate::micro;
use crate::plan::{Plan, prepare};
use crate::pool::Pool;
use crate::value::{Operand, Value};
use lapidary_abi::ElemType;
use lapidary_abi::experts::Order;
use lapidary_abi::program::{Port, ValueType};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

mod control;
mod detail;
mod experts;
mod fingerprint;
mod limit;
mod ports;
mod residency;
mod run;
mod state;

use detail::Parts;
pub use experts::parse_expert_order;
pub use fingerprint::fingerprint;
pub use limit::{Memory, parse_bytes};
pub use ports::type_text;
use residency::Residency;
use run::Run;
pub use state::{Extent, State};

/// How a model runs.
#[derive(Clone, Debug)]
pub struct ModelOptions {
    /// Threads that kernels are spread over; 0: one for each core.
    pub threads: usize,
    /// Whether threads stay on their cores.
    pub pin: bool,
    /// Whether to ask for huge pages for working memory and weights.
    pub huge_pages: bool,
    /// How much the process may have in memory, where weights are mapped from a file: of weights in parts runs use as many as there is
    /// room for, and of others some leave when others need room.
    pub memory: Option<Memory>,
    /// In which order weights of experts that tokens chose are read ahead, where they are mapped from a file and not in memory; `None`:
    /// they are read when they are used.
    pub expert_order: Option<Order>,
}

impl Default for ModelOptions {
    fn default() -> Self {
        ModelOptions {
            threads: 0,
            pin: true,
            huge_pages: false,
            memory: None,
            expert_order: Some(Order::Hebf),
        }
    }
}

/// What one launch of a kernel, or one library call, took.
#[derive(Clone, Debug)]
pub struct KernelTiming<'a> {
    /// Name of the kernel or operation.
    pub name: &'a str,
    /// Time.
    pub nanoseconds: u64,
    /// Operations it counts; 0 if it does not.
    pub flops: u64,
    /// Bytes of its arguments.
    pub bytes: u64,
}

/// What a run left for one output.
#[derive(Clone, Debug)]
pub struct Output {
    /// Element type, for tensors.
    pub elem: Option<ElemType>,
    /// Dimensions, for tensors.
    pub dims: Vec<usize>,
    /// The value; `None` if it was written to the caller's buffer.
    pub value: Option<Value>,
}

/// A model that is ready to run. Any number of threads may run it at the same time: each call has its own
/// working memory, which is kept for later calls.
pub struct Model {
    plan: Plan,
    code: Code,
    weights: Weights,
    /// Checksum of the host program.
    checksum: u64,
    /// What the program prepared of the weights.
    prepared: Bytes,
    pool: Pool,
    options: ModelOptions,
    residency: Option<Residency>,
    /// Weights of which runs need not use all.
    parts: Option<Parts>,
    frames: Mutex<Vec<Frame>>,
    /// What runs the kernels, if they are no code of this processor.
    device: Option<Arc<dyn Device>>,
}

impl Model {
    /// Checks an image's program, starts the threads, and computes what depends on weights alone.
    pub fn new(image: Image, options: ModelOptions) -> Result<Model, RunError> {
        Model::on(None, image, options)
    }

    /// The same for an image whose kernels run on a device.
    pub fn on(
        device: Option<Arc<dyn Device>>,
        image: Image,
        options: ModelOptions,
    ) -> Result<Model, RunError> {
        let (code, weights) = (image.code, image.weights);
        if !(weights.as_slice().as_ptr() as usize).is_multiple_of(ALIGN)
            && !weights.as_slice().is_empty()
        {
            return Err(RunError::program("the weights are not aligned to 64 bytes"));
        }
        let plan = prepare(
            image.program,
            code.as_slice().len(),
            weights.as_slice().len(),
        )?;
        if let (true, Weights::Mapped(m)) = (options.huge_pages, &weights) {
            m.advise_huge();
        }
        let threads = match options.threads {
            0 => std::thread::available_parallelism().map_or(1, |n| n.get()),
            n => n,
        };
        let working = plan.arena_bytes + plan.prepared_bytes;
        let limit = |memory| Residency::new(memory, &plan, &weights, working);
        let model = Model {
            residency: options.memory.clone().map(limit).transpose()?,
            parts: Parts::of(&plan),
            prepared: Bytes::zeroed(plan.prepared_bytes)?,
            plan,
            code,
            weights,
            checksum: image.checksum,
            pool: Pool::new(threads, options.pin),
            options,
            frames: Mutex::new(Vec::new()),
            device,
        };
        if !model.plan.prepare.ops.is_empty() {
            model.prepare()?;
        }
        Ok(model)
    }

    fn prepare(&self) -> Result<(), RunError> {
        let mut frame = self.new_frame()?;
        frame.begin(&self.plan);
        let mut run = Run {
            model: self,
            imports: micro::table().as_ptr(),
            inputs: vec![],
            outputs: vec![],
            states: vec![],
            frame: &mut frame,
            timing: None,
        };
        run.body(&self.plan.prepare)?;
        self.keep(frame);
        Ok(())
    }

    /// How many parts of the weights a run uses that goes on from a state.
    fn parts_for(&self, parts: &Parts, state: &State) -> usize {
        let beside = self.plan.arena_bytes + self.plan.prepared_bytes + state.bytes();
        let room = self.residency.as_ref().map(|r| r.room(beside as u64));
        let (used, left) = parts.begin(room);
        for part in left {
            if let Some(residency) = &self.residency {
                residency.left(part.offset..part.offset + part.bytes);
            }
            if let Weights::Mapped(mapping) = &self.weights {
                mapping.give_back(part.offset as usize, part.bytes as usize);
            }
        }
        used
    }

    /// Where runs need not use all of the weights: bytes of what they must use, of what the last one used, and of all.
    pub fn weight_bytes(&self) -> Option<[u64; 3]> {
        self.parts.as_ref().map(Parts::bytes)
    }

    /// Lets runs use as many parts of the weights as make up so many bytes with what they must use, from now on.
    ///
    /// # Errors
    /// The program needs all of its weights.
    pub fn use_weights(&self, bytes: u64) -> Result<(), RunError> {
        let parts = self.parts.as_ref().ok_or_else(|| {
            RunError::Input(
                "the program needs all of its weights: build it with `--adjustable`".to_owned(),
            )
        })?;
        parts.limit(bytes);
        Ok(())
    }

    /// Keeps a frame for a later call.
    fn keep(&self, frame: Frame) {
        let mut frames = self.frames.lock().unwrap_or_else(PoisonError::into_inner);
        frames.push(frame);
    }

    fn new_frame(&self) -> Result<Frame, RunError> {
        Frame::new(&self.plan, self.pool.threads(), self.options.huge_pages)
    }

    /// Name of the model.
    pub fn name(&self) -> &str {
        &self.plan.name
    }

    /// A number that models of another program, other code or other weights do not have, but for chance. Reads all weights.
    pub fn key(&self) -> u64 {
        let code = fingerprint(self.checksum, self.code.as_slice());
        fingerprint(code, self.weights.as_slice())
    }

    /// What the model takes, in order. Sizes in it refer to [`Model::symbols`].
    pub fn inputs(&self) -> &[Port] {
        &self.plan.inputs
    }

    /// What the model gives, in order.
    pub fn outputs(&self) -> &[Port] {
        &self.plan.outputs
    }

    /// What lasts from one run to the next; see [`Model::state`].
    pub fn states(&self) -> &[Port] {
        &self.plan.states
    }

    /// The state before the first run, zeros, for these values of the symbols that its sizes depend on.
    pub fn state(&self, symbols: &[(&str, usize)]) -> Result<State, RunError> {
        State::new(&self.plan, symbols)
    }

    /// How far a state reaches for these values of the symbols that its sizes depend on.
    pub fn extent(&self, symbols: &[(&str, usize)]) -> Result<Extent, RunError> {
        Extent::new(&self.plan, symbols)
    }

    /// Names of the symbolic dimensions.
    pub fn symbols(&self) -> &[String] {
        &self.plan.symbols
    }

    /// Threads that kernels are spread over.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// Runs the model on `inputs`, in the order of [`Model::inputs`].
    pub fn run(&self, inputs: &[Value]) -> Result<Vec<Value>, RunError> {
        let inputs: Vec<Operand> = inputs.iter().map(Value::operand).collect();
        let outputs = self.run_with(&inputs, &mut [], None)?;
        outputs
            .into_iter()
            .map(|o| {
                o.value
                    .ok_or_else(|| RunError::program("an output is missing"))
            })
            .collect()
    }

    /// Runs the model on inputs by name, in any order. Optional inputs may be left out.
    pub fn run_named(&self, inputs: &[(&str, Value)]) -> Result<Vec<Value>, RunError> {
        let ports = &self.plan.inputs;
        let names = || {
            let names: Vec<String> = ports.iter().map(|p| format!("`{}`", p.name)).collect();
            names.join(", ")
        };
        for (i, (name, _)) in inputs.iter().enumerate() {
            if inputs[..i].iter().any(|(n, _)| n == name) {
                return Err(RunError::Input(format!("input `{name}` is given twice")));
            }
            if !ports.iter().any(|p| p.name == *name) {
                return Err(RunError::Input(format!(
                    "the model has no input `{name}`: it takes {}",
                    names()
                )));
            }
        }
        let find = |port: &Port| match inputs.iter().find(|(n, _)| *n == port.name) {
            Some((_, value)) => Ok(value.clone()),
            None if matches!(port.ty, ValueType::Optional(_)) => Ok(Value::Optional(None)),
            None => Err(RunError::Input(format!(
                "input `{}` is missing: it is {}",
                port.name,
                type_text(&port.ty, &self.plan.symbols)
            ))),
        };
        let inputs = ports.iter().map(find).collect::<Result<Vec<_>, _>>()?;
        self.run(&inputs)
    }

    /// Runs the model on borrowed inputs. Where `buffers[n]` is given, output `n` is written to it (its
    /// length must be the output's), else returned as a value; missing entries count as not given.
    /// `timing` is told what each kernel and library call took.
    ///
    /// Inputs and buffers that are aligned to 64 bytes are used in place, others are copied.
    pub fn run_with(
        &self,
        inputs: &[Operand],
        buffers: &mut [Option<&mut [u8]>],
        timing: Option<&mut dyn FnMut(KernelTiming)>,
    ) -> Result<Vec<Output>, RunError> {
        self.run_from(&mut State::default(), inputs, buffers, timing)
    }

    /// As [`Model::run_with`], going on from a state that [`Model::state`] made, which the run changes. What a run that failed
    /// leaves in it is unspecified.
    pub fn run_from(
        &self,
        state: &mut State,
        inputs: &[Operand],
        buffers: &mut [Option<&mut [u8]>],
        timing: Option<&mut dyn FnMut(KernelTiming)>,
    ) -> Result<Vec<Output>, RunError> {
        let rows = 0..state.rows();
        self.run_rows((state, rows), inputs, buffers, timing)
    }

    /// As [`Model::run_from`], with some rows of the state only: the others stay as they are.
    pub fn run_rows(
        &self,
        (state, rows): (&mut State, Range<usize>),
        inputs: &[Operand],
        buffers: &mut [Option<&mut [u8]>],
        timing: Option<&mut dyn FnMut(KernelTiming)>,
    ) -> Result<Vec<Output>, RunError> {
        state.check(&self.plan)?;
        let mut frames = self.frames.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = frames.pop();
        drop(frames);
        let mut frame = match kept {
            Some(frame) => frame,
            None => self.new_frame()?,
        };
        frame.begin(&self.plan);
        if let Some(residency) = &self.residency {
            residency.look();
        }
        if let Some(parts) = &self.parts {
            frame.symbols[parts.symbol] = self.parts_for(parts, state) as i64;
        }
        state.bind(&rows, &mut frame.symbols);
        let mut run = Run {
            states: state.buffers(&rows)?,
            model: self,
            imports: micro::table().as_ptr(),
            inputs: ports::bind_inputs(&self.plan, &mut frame, inputs)?,
            outputs: ports::bind_outputs(&self.plan, &frame, buffers),
            frame: &mut frame,
            timing,
        };
        run.define_inputs()?;
        run.body(&self.plan.body)?;
        let outputs = run.finish(buffers)?;
        self.keep(frame);
        Ok(outputs)
    }
}
