//! A network being written: its settings, its weights by name, and the graph so far.

use super::{Architecture, Pooling};
use crate::checkpoint::config::Config;
use crate::checkpoint::weights::Weights;
use crate::error::{Problem, Problems};
use lapidary_ir::attended::POSITION;
use lapidary_ir::builder::Builder;
use lapidary_ir::ops::OpError;
use lapidary_ir::ops::compose::Len;
use lapidary_ir::{Constant, Dim, ElemType, Module, Type, ValueId};
use std::cell::Cell;
use std::collections::HashMap;
use std::sync::Arc;

/// Tensors that older versions of transformers saved with every model although they are computed.
const COMPUTED: &[&str] = &["rotary_emb.inv_freq", "embeddings.position_ids"];

/// Why a network cannot be written.
#[derive(Debug)]
pub enum Stop {
    /// A setting is missing, wrong, or not supported.
    Problem(Problem),
    /// An op does not take what it is given.
    Op(OpError),
}

impl From<Problem> for Stop {
    fn from(problem: Problem) -> Stop {
        Stop::Problem(problem)
    }
}

impl From<OpError> for Stop {
    fn from(error: OpError) -> Stop {
        Stop::Op(error)
    }
}

/// A value, or the reason why there is none.
pub type Built = Result<ValueId, Stop>;

/// Keys or values, and how many of each sequence are filled where that is not all.
pub type Kept = (ValueId, Option<ValueId>);

/// A network being written.
pub struct Net<'c> {
    /// The settings.
    pub config: &'c Config,
    weights: &'c Weights,
    problems: &'c mut Problems,
    module: Module,
    fresh: Cell<u32>,
    /// Put before names of weights; also where nodes are from, for messages.
    scope: String,
    constants: HashMap<String, ValueId>,
    form: Form,
    /// What a network takes that is not [`Form::Whole`], once its tokens are there.
    step: Option<Step>,
    /// Most tokens of an encoder's sequence, once its output is there.
    longest: Option<usize>,
}

/// What a network of tokens computes. The architectures write any by the same code: they differ in
/// [`Net::tokens`], [`Net::positions`], [`Net::kept`] and [`Net::wanted`] of decoders, and [`Net::states`] of encoders only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Scores for every token of whole sequences.
    Whole,
    /// Scores for the wanted tokens of each sequence, of which any number of tokens came before: their keys and values are in
    /// caches, to which those of the given tokens are added. A prompt in parts, a token at a time, and tokens of which each is
    /// to be judged are all such steps.
    Stepwise,
    /// The same where the caches may have lost tokens: another input counts those that came before.
    Evictable,
    /// A vector for each sequence, which its states become.
    Embedding(Pooling),
}

/// Inputs of a step.
#[derive(Clone, Copy, Debug)]
struct Step {
    /// Tokens of each sequence that the caches hold, `i64[batch]`.
    past: ValueId,
    /// Tokens that each sequence has had, `i64[batch]`.
    position: ValueId,
    /// Those and the given ones.
    filled: ValueId,
    /// Which of the given tokens are scored, `i64[batch,wanted]`.
    wanted: ValueId,
}

impl<'c> Net<'c> {
    /// Nothing yet.
    pub(crate) fn new(
        config: &'c Config,
        weights: &'c Weights,
        problems: &'c mut Problems,
        form: Form,
    ) -> Net<'c> {
        Net {
            form,
            step: None,
            longest: None,
            config,
            weights,
            problems,
            module: Module::new("checkpoint"),
            fresh: Cell::new(0),
            scope: String::new(),
            constants: HashMap::new(),
        }
    }

    /// Notes why writing stopped.
    pub(crate) fn stopped(&mut self, stop: Stop) {
        match stop {
            Stop::Problem(problem) => self.problems.push(problem),
            Stop::Op(error) => {
                let place = format!("`{}`", self.scope.trim_end_matches('.'));
                self.problems.add(&place, error.0, None);
            }
        }
    }

    /// The module, unless something is wrong: weights that nothing used are, too.
    pub(crate) fn finish(self, architecture: &Architecture) -> Option<Module> {
        let cannot = match self.form {
            Form::Stepwise | Form::Evictable if self.step.is_none() => {
                Some("an encoder, which writes no text")
            }
            Form::Embedding(_) if self.longest.is_none() => {
                Some("a decoder, which gives no embeddings")
            }
            _ => None,
        };
        // What is not there because of another problem needs no second one.
        if let Some(cannot) = cannot.filter(|_| self.problems.is_empty()) {
            let reason = format!("`{}` is {cannot}", architecture.model_type);
            self.problems
                .push(self.config.problem("model_type", reason));
        }
        if !self.problems.is_empty() {
            return None;
        }
        let ignored = |name: &str| {
            let patterns = architecture.ignored.iter().chain(COMPUTED);
            patterns
                .into_iter()
                .any(|p| name.starts_with(p) || name.ends_with(p))
        };
        let model_type = architecture.model_type;
        for (name, file) in self.weights.unused().filter(|(name, _)| !ignored(name)) {
            self.problems.add(
                &format!("tensor `{name}` of `{file}`"),
                format!("has no place in the architecture `{model_type}` with these settings"),
                Some("does `config.json` belong to these weights? parts like adapters must be merged or removed"),
            );
        }
        let mut module = self.module;
        module.name = model_type.to_owned();
        self.problems.is_empty().then_some(module)
    }

    /// From now on, names of weights are within this scope, which is empty or ends in a point.
    pub fn enter(&mut self, scope: impl Into<String>) {
        self.scope = scope.into();
    }

    /// The first of these scopes that has a weight of this name, else the first.
    pub fn root(&self, scopes: &[&'static str], probe: &str) -> &'static str {
        let has = |scope: &&&str| self.weights.has(&format!("{scope}{probe}"));
        let found = scopes.iter().find(has).or(scopes.first());
        found.copied().unwrap_or_default()
    }

    /// Whether there is a weight of this name in the scope.
    pub fn has(&self, name: &str) -> bool {
        self.weights.has(&format!("{}{name}", self.scope))
    }

    /// A weight of this name, if there is one, is known to be not needed.
    pub fn skip(&self, name: &str) {
        self.weights.take(&format!("{}{name}", self.scope));
    }

    /// How many of something, each of which has weights of its own: no more than there are tensors.
    pub fn count(&self, setting: &str) -> Result<usize, Problem> {
        let n = self.config.size(setting)?;
        if n > self.weights.len() {
            let reason = format!(
                "is {n}, but the weights are only {} tensors",
                self.weights.len()
            );
            return Err(self.config.problem(setting, reason));
        }
        Ok(n)
    }

    /// A builder at the end of the graph.
    pub fn b(&mut self) -> Builder<'_> {
        let name = self.scope.trim_end_matches('.');
        Builder::new(&mut self.module, Module::TOP, name, &self.fresh)
    }

    /// An input of token positions, `i64[batch,seq]`.
    pub fn input(&mut self, name: &str) -> ValueId {
        let ty = Type::tensor(ElemType::I64, [Dim::sym("batch"), Dim::sym("seq")]);
        self.module.add_input(Module::TOP, name, ty)
    }

    /// The tokens of a decoder, `i64[batch,seq]`.
    pub fn tokens(&mut self) -> Built {
        let ids = self.input("input_ids");
        let form = self.form;
        if matches!(form, Form::Stepwise | Form::Evictable) {
            let mut each = |name: &str, dims: &[&str]| {
                let ty = Type::tensor(ElemType::I64, dims.iter().map(|d| Dim::sym(d)));
                self.module.add_input(Module::TOP, name, ty)
            };
            let past = each("past", &["batch"]);
            let wanted = each("wanted", &["batch", "wanted"]);
            let position = match form {
                Form::Evictable => each(POSITION, &["batch"]),
                _ => past,
            };
            let mut b = self.b();
            let new = b.lens(&[Len::Of(ids, 1)])?;
            let filled = b.op("add", &[past, new])?;
            self.step = Some(Step {
                past,
                position,
                filled,
                wanted,
            });
        }
        Ok(ids)
    }

    /// Positions of the tokens in their sequences, `i64[batch or 1,seq]`.
    pub fn positions(&mut self, ids: ValueId) -> Built {
        let step = self.step;
        let mut b = self.b();
        let own = b.iota(Len::Of(ids, 1))?;
        let own = b.unsqueeze(own, &[0])?;
        let Some(step) = step else { return Ok(own) };
        let before = b.unsqueeze(step.position, &[1])?;
        Ok(b.op("add", &[before, own])?)
    }

    /// Keys or values that a layer attends to, given those of the tokens, `f32[batch,seq,width]`: of a step all that its
    /// sequences have had, in a cache named `past_{name}`, with the number of those that are filled.
    pub fn kept(&mut self, x: ValueId, name: &str, width: usize) -> Result<Kept, Stop> {
        let Some(step) = self.step else {
            return Ok((x, None));
        };
        let shape = [Dim::sym("batch"), Dim::sym("capacity"), Dim::from(width)];
        let ty = Type::tensor(ElemType::F32, shape);
        let before = format!("{}past_{name}", self.scope);
        let before = self.module.add_input(Module::TOP, &before, ty);
        let after = self.b().op("tensor_scatter", &[before, x, step.past])?;
        self.output(&format!("{}{name}", self.scope), after);
        Ok((after, Some(step.filled)))
    }

    /// The states that scores are wanted of, out of `f32[batch,seq,width]`.
    pub fn wanted(&mut self, x: ValueId) -> Built {
        let Some(step) = self.step else { return Ok(x) };
        let mut b = self.b();
        let wanted = b.unsqueeze(step.wanted, &[2])?;
        Ok(b.op_with("gather_nd", &[x, wanted], [("batch_dims", 1i64.into())])?)
    }

    /// The output of an encoder, out of its states `f32[batch,seq,width]`: all of them, or what the tokens become that are not
    /// masked. Sequences have `longest` tokens at most.
    pub fn states(&mut self, x: ValueId, mask: ValueId, longest: usize) -> Result<(), Stop> {
        self.longest = Some(longest);
        match self.form {
            Form::Embedding(pooling) => {
                let vector = pooling.build(self, x, mask)?;
                self.output("embedding", vector);
            }
            _ => self.output("last_hidden_state", x),
        }
        Ok(())
    }

    /// Most tokens of an encoder's sequence, once its output is there.
    pub(crate) fn longest(&self) -> Option<usize> {
        self.longest
    }

    /// The network's output.
    pub fn output(&mut self, name: &str, value: ValueId) {
        self.module.region_mut(Module::TOP).outputs.push(value);
        self.module.output_names.push(name.to_owned());
    }

    /// The weight of this name and shape, in the float type that it is stored in. If there is none, that is noted,
    /// and an input stands for it so that other problems are found as well.
    pub fn weight(&mut self, name: &str, shape: &[usize]) -> ValueId {
        let full = format!("{}{name}", self.scope);
        if let Some(&known) = self.constants.get(&full) {
            let found = self
                .module
                .value(known)
                .ty
                .as_tensor()
                .and_then(|t| t.const_shape());
            if found.as_deref() == Some(shape) {
                return known;
            }
        }
        let value = match self.constant(&full, shape) {
            Ok(constant) => self.module.add_constant(&full, constant),
            Err(problem) => {
                self.problems.push(problem);
                let ty = Type::tensor(ElemType::F32, shape.iter().copied());
                self.module.add_input(Module::TOP, &full, ty)
            }
        };
        self.constants.insert(full, value);
        value
    }

    fn constant(&self, name: &str, shape: &[usize]) -> Result<Constant, Problem> {
        let misfit = |file: &str, found: &[usize]| Problem {
            place: format!("tensor `{name}` of `{file}`"),
            reason: format!(
                "has shape {found:?}, but `{}` makes it {shape:?}",
                self.config.file()
            ),
            remedy: Some(format!(
                "does `{}` belong to these weights?",
                self.config.file()
            )),
        };
        if let Some((term, file)) = self.weights.term(name) {
            return match term.shape == shape {
                true => Ok(Constant::of_term(Arc::clone(term))),
                false => Err(misfit(file, &term.shape)),
            };
        }
        let Some((stored, file)) = self.weights.take(name) else {
            let remedy = self.weights.similar(name);
            return Err(Problem {
                place: format!("tensor `{name}`"),
                reason: format!("is missing; a tensor of shape {shape:?} is needed"),
                remedy: remedy.map(|n| {
                    format!("the checkpoint has `{n}`: does `config.json` belong to these weights?")
                }),
            });
        };
        let wrong = |reason: String, remedy: &str| Problem {
            place: format!("tensor `{name}` of `{file}`"),
            reason,
            remedy: Some(remedy.to_owned()),
        };
        if stored.shape != shape {
            return Err(misfit(file, &stored.shape));
        }
        match &stored.elem {
            Ok(elem) if elem.is_float() => Ok(Constant::dense(
                *elem,
                stored.shape.clone(),
                stored.bytes.clone(),
            )),
            other => {
                let found = match other {
                    Ok(elem) => elem.to_string(),
                    Err(name) => name.clone(),
                };
                let remedy = "load the checkpoint with transformers in a float type, and save it";
                Err(wrong(
                    format!("has elements of type {found}, a float type is needed"),
                    remedy,
                ))
            }
        }
    }

    /// The weight as f32.
    pub fn wide(&mut self, name: &str, shape: &[usize]) -> Built {
        let stored = self.weight(name, shape);
        Ok(self.b().cast(stored, ElemType::F32)?)
    }

    /// `x w'` with `w` of shape `[to, from]` under `name.weight`, and a bias of `name.bias`.
    pub fn linear(&mut self, x: ValueId, name: &str, from: usize, to: usize, bias: bool) -> Built {
        let w = self.weight(&format!("{name}.weight"), &[to, from]);
        let w = self.b().transpose(w, &[1, 0])?;
        self.product(x, w, name, to, bias)
    }

    /// `x w` with `w` of shape `[from, to]`, as GPT-2 stores them, and a bias. Packed weights are `[to, from]` always.
    pub fn conv1d(&mut self, x: ValueId, name: &str, from: usize, to: usize) -> Built {
        if self
            .weights
            .term(&format!("{}{name}.weight", self.scope))
            .is_some()
        {
            return self.linear(x, name, from, to, true);
        }
        let w = self.weight(&format!("{name}.weight"), &[from, to]);
        self.product(x, w, name, to, true)
    }

    fn product(&mut self, x: ValueId, w: ValueId, name: &str, to: usize, bias: bool) -> Built {
        let mut b = self.b();
        let w = b.cast(w, ElemType::F32)?;
        let y = b.op("matmul", &[x, w])?;
        if !bias {
            return Ok(y);
        }
        let bias = self.wide(&format!("{name}.bias"), &[to])?;
        self.add(y, bias)
    }

    /// Rows of the table `name.weight` of shape `[rows, width]`, as f32.
    pub fn rows(&mut self, name: &str, rows: usize, width: usize, ids: ValueId) -> Built {
        let table = self.weight(&format!("{name}.weight"), &[rows, width]);
        let mut b = self.b();
        let found = b.op_with("gather", &[table, ids], [("axis", 0i64.into())])?;
        Ok(b.cast(found, ElemType::F32)?)
    }

    /// `a + b`.
    pub fn add(&mut self, a: ValueId, b: ValueId) -> Built {
        Ok(self.b().op("add", &[a, b])?)
    }

    /// `x` times a number.
    pub fn scaled(&mut self, x: ValueId, factor: f64) -> Built {
        let mut b = self.b();
        let factor = b.lit(x, factor)?;
        Ok(b.op("mul", &[x, factor])?)
    }
}
