//! The host program: what the runtime does around compiled kernels.
//!
//! A compiled model is kernels (machine code), weights (bytes) and this list of steps. Steps launch
//! kernels over their grids, call the few library operations, bind symbols whose value appears only at
//! run time, and branch and loop. A program of launches alone with constant sizes needs no runtime
//! at all: the object backend turns it into one function.

use crate::{ElemType, Size};
use serde::{Deserialize, Serialize};

/// Version of this encoding; an executable and its runtime stub must agree.
pub const PROGRAM_VERSION: u32 = 5;

/// Index into [`Program::values`].
pub type ValueIndex = u32;

/// A compiled model without its code and weights.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Program {
    /// Name of the model.
    pub name: String,
    /// Names of the symbols; the values are bound while the program runs.
    pub symbols: Vec<String>,
    /// What the caller gives, in order.
    pub inputs: Vec<Port>,
    /// What the caller gets, in order.
    pub outputs: Vec<Port>,
    /// What lasts from one run to the next, for as long as the caller wants: zero at first.
    pub states: Vec<Port>,
    /// Files that came with the model and that whoever runs it reads, such as a tokenizer.
    pub files: Vec<File>,
    /// Every value that steps refer to.
    pub values: Vec<ValueDecl>,
    /// Every kernel that steps launch.
    pub kernels: Vec<KernelDecl>,
    /// Steps that depend on weights alone: run once, when the model is loaded.
    pub prepare: Block,
    /// The steps of each run.
    pub body: Block,
    /// Layers of experts among those steps, in order.
    pub mixtures: Vec<Mixture>,
    /// How much of the weights a run uses, if that may be less than all.
    pub detail: Option<Detail>,
    /// Bytes of the statically planned arena (64-byte aligned).
    pub arena_bytes: u64,
    /// Bytes of what `prepare` leaves for the runs (64-byte aligned).
    pub prepared_bytes: u64,
    /// Bytes of the weights blob.
    pub weights_bytes: u64,
}

/// Weights in parts, of which a run uses as many as it is told: the first ones. Those that it does not use it does not read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Detail {
    /// The symbol that is how many parts a run uses; whoever runs the program binds it.
    pub symbol: u32,
    /// What of the weights blob nothing but each part reads, those first that results need most. They lie one behind the other.
    pub parts: Vec<WeightPart>,
}

/// A range of the weights blob.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WeightPart {
    /// Offset, 64-byte aligned.
    pub offset: u64,
    /// Length.
    pub bytes: u64,
}

/// A text file that came with the model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct File {
    /// Its name.
    pub name: String,
    /// What it says.
    pub text: String,
}

/// An input, output or state of the program.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Port {
    /// Name in the source model.
    pub name: String,
    /// Type; its symbols are bound from what the caller gives.
    pub ty: ValueType,
    /// The value.
    pub value: ValueIndex,
}

/// Type of a run-time value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ValueType {
    /// A tensor; `dims` is `None` if even the rank is known only at run time.
    Tensor {
        /// Element type.
        elem: ElemType,
        /// Dimensions.
        dims: Option<Vec<Size>>,
    },
    /// A sequence.
    Sequence(Box<ValueType>),
    /// An optional.
    Optional(Box<ValueType>),
}

/// A value and where it lives.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ValueDecl {
    /// Type.
    pub ty: ValueType,
    /// Storage.
    pub place: Place,
}

/// Where a value's bytes are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Place {
    /// Planned: this many bytes into the arena.
    Arena {
        /// Offset, 64-byte aligned.
        offset: u64,
    },
    /// Constant: in the weights blob.
    Weights {
        /// Offset, 64-byte aligned.
        offset: u64,
        /// Length.
        bytes: u64,
    },
    /// Written by [`Program::prepare`]: this many bytes into memory that lives as long as the model.
    Prepared {
        /// Offset, 64-byte aligned.
        offset: u64,
    },
    /// Allocated when defined (size known only then, or no tensor), freed by [`Step::Free`].
    Heap,
    /// The caller's buffer of the n-th input.
    Input(u32),
    /// The caller's buffer of the n-th output, if its size is known when the program starts and the
    /// caller gave one; otherwise as [`Place::Heap`].
    Output(u32),
    /// The caller's memory of the n-th state.
    State(u32),
    /// The same bytes as another value, under this value's type (a reshape).
    Alias(ValueIndex),
    /// A string constant.
    Strings(Vec<String>),
}

/// A compiled kernel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KernelDecl {
    /// Name, for profiles.
    pub name: String,
    /// Offset of its entry point in the code blob.
    pub code_offset: u64,
    /// Scratch bytes that each thread needs ([`crate::kernel::KernelContext::scratch`]).
    pub scratch_bytes: u64,
}

/// Steps with named parameters and results; the body of a branch or loop.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Block {
    /// Values set by whoever runs the block.
    pub params: Vec<ValueIndex>,
    /// Steps in order.
    pub steps: Vec<Step>,
    /// Values that the block yields.
    pub results: Vec<ValueIndex>,
}

/// A layer of experts: groups of the body's steps, one behind the other. They are right in this order and in any other, one group after
/// another, since none uses what another one writes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Mixture {
    /// The groups; each begins where the one before ends.
    pub experts: Vec<Expert>,
}

/// The steps of one expert.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Expert {
    /// Index of the first among [`Program::body`]'s steps.
    pub begin: u32,
    /// Index behind the last.
    pub end: u32,
    /// How many tokens chose it: known before the first step of the mixture.
    pub tokens: Size,
}

/// An argument of a kernel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Arg {
    /// Address of a tensor value's first element.
    Buffer(ValueIndex),
    /// A number.
    Size(Size),
}

/// Attribute of a library call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "each variant holds what it is named for")]
pub enum CallAttr {
    Int(i64),
    Ints(Vec<i64>),
    Float(f32),
    Floats(Vec<f32>),
    Str(String),
    Strs(Vec<String>),
    Elem(ElemType),
    /// A tensor constant, as a value of the program.
    Value(ValueIndex),
}

/// One step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Step {
    /// Runs a kernel over `grid` blocks.
    Launch {
        /// Index into [`Program::kernels`].
        kernel: u32,
        /// Number of blocks of its linearised parallel grid.
        grid: Size,
        /// Fewest blocks that are worth giving to another thread.
        grain: u32,
        /// Arguments.
        args: Vec<Arg>,
        /// Floating-point (or integer) operations of the whole launch, for `bench`; 0 if not counted.
        flops: Size,
    },
    /// Calls a library operation, named as the graph op, on whole values.
    Call {
        /// Name of the operation.
        op: String,
        /// Attributes, every default filled in.
        attrs: Vec<(String, CallAttr)>,
        /// Operands; `None` for one left out.
        operands: Vec<Option<ValueIndex>>,
        /// Results (heap values).
        results: Vec<ValueIndex>,
    },
    /// `symbol` becomes the length of `value` along `axis`.
    BindDim {
        /// The symbol.
        symbol: u32,
        /// A tensor.
        value: ValueIndex,
        /// Its axis.
        axis: u32,
    },
    /// `symbol` becomes element `element` of the integer tensor `value`.
    BindElement {
        /// The symbol.
        symbol: u32,
        /// A tensor in host-readable memory.
        value: ValueIndex,
        /// Linear index.
        element: u32,
    },
    /// `to` (a heap value) becomes another name for `from`'s value.
    Move {
        /// Source.
        from: ValueIndex,
        /// Target.
        to: ValueIndex,
    },
    /// Runs one of two blocks; its results become `results`.
    If {
        /// A bool tensor of one element.
        condition: ValueIndex,
        /// If true.
        then_block: Block,
        /// If false.
        else_block: Block,
        /// Heap values.
        results: Vec<ValueIndex>,
    },
    /// ONNX `Loop`: the body's params are iteration number (i64), condition (bool) and the carried
    /// values; it yields condition, carried values and one value per scan output, which are stacked
    /// along a new first axis.
    Loop {
        /// Most iterations: an i64 tensor of one element, or unbounded.
        trip_count: Option<ValueIndex>,
        /// First condition: a bool tensor of one element, or true.
        condition: Option<ValueIndex>,
        /// First carried values.
        carried: Vec<ValueIndex>,
        /// The body.
        body: Block,
        /// Heap values: final carried values, then scan outputs.
        results: Vec<ValueIndex>,
        /// For scan outputs when there is no iteration: their type.
        scan_types: Vec<ValueType>,
    },
    /// A heap value is not used any more.
    Free {
        /// The value.
        value: ValueIndex,
    },
    /// Fails the run with `message` unless the two sizes are equal.
    Require {
        /// One size.
        left: Size,
        /// The other.
        right: Size,
        /// What it means for the user.
        message: String,
    },
}

impl Program {
    /// Encodes the program; the same program gives the same bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        postcard::to_stdvec(&(PROGRAM_VERSION, self)).expect("plain data always encodes")
    }

    /// Decodes a program; an error names what is wrong with the bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Program, String> {
        let (version, _) = postcard::take_from_bytes::<u32>(bytes).map_err(|e| e.to_string())?;
        if version != PROGRAM_VERSION {
            return Err(format!(
                "program version {version}, this runtime understands {PROGRAM_VERSION}"
            ));
        }
        postcard::from_bytes::<(u32, Program)>(bytes)
            .map(|(_, p)| p)
            .map_err(|e| e.to_string())
    }
}
