//! Object files: a model as one freestanding C function, or as data for a library.
//!
//! Code and weights are sections of their own. [`object`] adds `NAME_run`, which calls the kernels one
//! after the other and needs nothing but itself; [`library_object`] adds a description of the model and small
//! functions that hand it to the runtime's C interface.

use crate::isa;
use cranelift_codegen::ir::types::{I32, I64};
use cranelift_codegen::ir::{
    AbiParam, FuncRef, GlobalValue, InstBuilder, MemFlagsData, Signature, StackSlotData,
    StackSlotKind, Type, UserFuncName, Value, condcodes::IntCC,
};
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext};
use cranelift_module::{DataDescription, DataId, Linkage, Module, default_libcall_names};
use cranelift_object::object::write::{SectionId, SymbolSection};
use cranelift_object::object::{SectionKind, SymbolKind, SymbolScope};
use cranelift_object::{ObjectBuilder, ObjectModule};
use lapidary_abi::kernel::{KernelContext, ZEROS_BYTES};
use lapidary_abi::program::{Arg, Place, Program, Step, ValueIndex, ValueType};
use lapidary_ir::backend::{Code, Error};
use lapidary_ir::target::Target;
use std::io::Write;
use std::mem::offset_of;

/// A complete object, ready to be written.
pub struct ObjectFile(cranelift_object::ObjectProduct);

impl ObjectFile {
    /// Writes the file.
    pub fn write(&self, out: &mut dyn Write) -> std::io::Result<()> {
        let written = self.0.object.write_stream(out);
        written.map_err(|e| match e.downcast::<std::io::Error>() {
            Ok(error) => *error,
            Err(other) => std::io::Error::other(other.to_string()),
        })
    }
}

/// A function of the library's C interface: `NAME_<suffix>` calls `lapidary_<suffix>`, with the model's
/// description as a first argument where `describes` says so.
pub struct Forward<'a> {
    /// What follows the name.
    pub suffix: &'a str,
    /// Whether the description is passed.
    pub describes: bool,
    /// Types of the parameters: true for 64 bits, false for 32.
    pub params: &'a [bool],
    /// The result: none, 32 or 64 bits.
    pub result: Option<bool>,
}

/// The fields of the description before its pointers.
pub struct Description {
    /// Version of the runtime's description of linked models.
    pub version: u32,
    /// Instruction set.
    pub machine: u32,
}

fn failed(message: impl std::fmt::Display) -> Error {
    Error::Object(message.to_string())
}

/// A module with the parts of a model as data symbols.
struct Builder {
    module: ObjectModule,
    parts: Vec<(DataId, &'static str, SectionKind, Vec<u8>, u64)>,
    builders: FunctionBuilderContext,
}

impl Builder {
    fn new(name: &str, target: &Target) -> Result<Builder, Error> {
        let isa = isa::isas(target)?.scalars;
        let builder = ObjectBuilder::new(isa, name, default_libcall_names()).map_err(failed)?;
        Ok(Builder {
            module: ObjectModule::new(builder),
            parts: Vec::new(),
            builders: FunctionBuilderContext::new(),
        })
    }

    /// A symbol for bytes in a section of their own; they are not copied.
    fn part(
        &mut self,
        name: &str,
        section: &'static str,
        kind: SectionKind,
        bytes: Vec<u8>,
        align: u64,
    ) -> Result<DataId, Error> {
        let id = self
            .module
            .declare_data(name, Linkage::Import, false, false);
        let id = id.map_err(failed)?;
        self.parts.push((id, section, kind, bytes, align));
        Ok(id)
    }

    /// A function with these parameters.
    fn function(
        &mut self,
        name: &str,
        signature: Signature,
        body: impl FnOnce(&mut ObjectModule, &mut FunctionBuilder, Vec<Value>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let id = self
            .module
            .declare_function(name, Linkage::Export, &signature);
        let id = id.map_err(failed)?;
        let mut ctx = self.module.make_context();
        ctx.func.signature = signature;
        ctx.func.name = UserFuncName::user(0, id.as_u32());
        let mut b = FunctionBuilder::new(&mut ctx.func, &mut self.builders);
        let entry = b.create_block();
        b.append_block_params_for_function_params(entry);
        b.switch_to_block(entry);
        let params = b.block_params(entry).to_vec();
        body(&mut self.module, &mut b, params)?;
        b.seal_all_blocks();
        b.finalize(self.module.target_config());
        self.module.define_function(id, &mut ctx).map_err(failed)
    }

    fn finish(self) -> ObjectFile {
        let mut product = self.module.finish();
        for (id, name, kind, bytes, align) in self.parts {
            let size = bytes.len() as u64;
            let section: SectionId =
                product
                    .object
                    .add_section(Vec::new(), name.as_bytes().to_vec(), kind);
            product.object.set_section_data(section, bytes, align);
            let Some((symbol, _)) = product.data_objects[id] else {
                continue;
            };
            let symbol = product.object.symbol_mut(symbol);
            symbol.section = SymbolSection::Section(section);
            symbol.kind = match kind {
                SectionKind::Text => SymbolKind::Text,
                _ => SymbolKind::Data,
            };
            symbol.scope = SymbolScope::Compilation;
            symbol.size = size;
        }
        ObjectFile(product)
    }
}

fn int(wide: bool) -> Type {
    if wide { I64 } else { I32 }
}

/// The model as data, with functions `NAME_create` and the like that call the runtime.
pub fn library_object(
    name: &str,
    description: &Description,
    code: Vec<u8>,
    weights: Vec<u8>,
    program: Vec<u8>,
    forwards: &[Forward],
    target: &Target,
) -> Result<ObjectFile, Error> {
    let mut b = Builder::new(name, target)?;
    let lens = [code.len(), weights.len(), program.len()];
    let text = SectionKind::Text;
    let data = SectionKind::ReadOnlyData;
    let parts = [
        b.part(&format!("{name}_code"), ".text.lapidary", text, code, 64)?,
        b.part(
            &format!("{name}_weights"),
            ".rodata.lapidary.weights",
            data,
            weights,
            64,
        )?,
        b.part(
            &format!("{name}_program"),
            ".rodata.lapidary.program",
            data,
            program,
            64,
        )?,
    ];
    let mut bytes = Vec::with_capacity(56);
    bytes.extend(description.version.to_le_bytes());
    bytes.extend(description.machine.to_le_bytes());
    for len in lens {
        bytes.extend([0; 8]);
        bytes.extend((len as u64).to_le_bytes());
    }
    let image_name = format!("{name}_image");
    let image = b
        .module
        .declare_data(&image_name, Linkage::Local, false, false);
    let image = image.map_err(failed)?;
    let mut contents = DataDescription::new();
    contents.define(bytes.into_boxed_slice());
    contents.set_align(8);
    for (i, part) in parts.into_iter().enumerate() {
        let part = b.module.declare_data_in_data(part, &mut contents);
        contents.write_data_addr(8 + 16 * i as u32, part, 0);
    }
    b.module.define_data(image, &contents).map_err(failed)?;
    for forward in forwards {
        b.forward(name, forward, image)?;
    }
    Ok(b.finish())
}

impl Builder {
    fn forward(&mut self, name: &str, forward: &Forward, image: DataId) -> Result<(), Error> {
        let mut outer = self.module.make_signature();
        let params = forward.params.iter().map(|&p| AbiParam::new(int(p)));
        outer.params.extend(params);
        let result = forward.result.map(|r| AbiParam::new(int(r)));
        outer.returns.extend(result);
        let mut inner = outer.clone();
        if forward.describes {
            inner.params.insert(0, AbiParam::new(I64));
        }
        let callee = format!("lapidary_{}", forward.suffix);
        let callee = self
            .module
            .declare_function(&callee, Linkage::Import, &inner);
        let callee = callee.map_err(failed)?;
        let describes = forward.describes;
        let name = format!("{name}_{}", forward.suffix);
        self.function(&name, outer, |module, b, mut args| {
            let callee: FuncRef = module.declare_func_in_func(callee, b.func);
            if describes {
                let image: GlobalValue = module.declare_data_in_func(image, b.func);
                args.insert(0, b.ins().symbol_value(I64, image));
            }
            let call = b.ins().call(callee, &args);
            let results = b.inst_results(call).to_vec();
            b.ins().return_(&results);
            Ok(())
        })
    }
}

/// Bytes of working memory that the `NAME_run` of [`object`] needs: the arena, then the kernels' scratch.
pub fn object_arena_bytes(program: &Program) -> u64 {
    let scratch = program.kernels.iter().map(|k| k.scratch_bytes).max();
    program.arena_bytes.next_multiple_of(64) + scratch.unwrap_or(0).next_multiple_of(64)
}

/// A freestanding object with
/// `void NAME_run(const void *const *inputs, void *const *outputs, void *arena)`.
///
/// `program.kernels` lie at their offsets in `code`, which was generated without micro-kernels. A program with
/// steps other than launches, or with sizes that depend on the inputs, is an error.
pub fn object(
    name: &str,
    program: &Program,
    code: Code,
    weights: Vec<u8>,
    target: &Target,
) -> Result<ObjectFile, Error> {
    if target.micro_kernels {
        return Err(failed("the code must be generated without micro-kernels"));
    }
    let launches = launches(program)?;
    let mut b = Builder::new(name, target)?;
    let text = SectionKind::Text;
    let rodata = SectionKind::ReadOnlyData;
    let code = b.part(
        &format!("{name}_code"),
        ".text.lapidary",
        text,
        code.bytes,
        64,
    )?;
    let weights = b.part(
        &format!("{name}_weights"),
        ".rodata.lapidary.weights",
        rodata,
        weights,
        64,
    )?;
    let zeros_name = format!("{name}_zeros");
    let zeros = b
        .module
        .declare_data(&zeros_name, Linkage::Local, true, false);
    let zeros = zeros.map_err(failed)?;
    let mut contents = DataDescription::new();
    contents.define_zeroinit(ZEROS_BYTES);
    contents.set_align(64);
    b.module.define_data(zeros, &contents).map_err(failed)?;
    let mut signature = b.module.make_signature();
    signature.params = vec![AbiParam::new(I64); 3];
    b.function(&format!("{name}_run"), signature, |module, b, params| {
        let mut symbol = |id| {
            let value = module.declare_data_in_func(id, b.func);
            b.ins().symbol_value(I64, value)
        };
        let (code, weights, zeros) = (symbol(code), symbol(weights), symbol(zeros));
        let mut kernel = b.func.signature.clone();
        kernel.params = vec![AbiParam::new(I64); 4];
        let kernel = b.import_signature(kernel);
        let mut run = Run {
            program,
            b,
            inputs: params[0],
            outputs: params[1],
            arena: params[2],
            weights,
        };
        run.launches(&launches, kernel, code, zeros)?;
        run.results()?;
        run.b.ins().return_(&[]);
        Ok(())
    })?;
    Ok(b.finish())
}

/// A launch with its sizes evaluated.
struct Launch<'p> {
    kernel: usize,
    grid: i64,
    args: Vec<LaunchArg<'p>>,
}

enum LaunchArg<'p> {
    Buffer(&'p ValueIndex),
    Number(i64),
}

fn launches(program: &Program) -> Result<Vec<Launch<'_>>, Error> {
    let known = |size: &lapidary_abi::Size| {
        size.eval(&[])
            .ok_or_else(|| failed("a size depends on the inputs; fix it with `--dim NAME=N`"))
    };
    let mut launches = Vec::new();
    for step in &program.body.steps {
        match step {
            Step::Launch {
                kernel, grid, args, ..
            } => launches.push(Launch {
                kernel: *kernel as usize,
                grid: known(grid)?,
                args: args
                    .iter()
                    .map(|arg| match arg {
                        Arg::Buffer(v) => Ok(LaunchArg::Buffer(v)),
                        Arg::Size(s) => known(s).map(LaunchArg::Number),
                    })
                    .collect::<Result<_, _>>()?,
            }),
            Step::Require {
                left,
                right,
                message,
            } => {
                if known(left)? != known(right)? {
                    return Err(failed(message));
                }
            }
            Step::Call { op, .. } => {
                return Err(failed(format!(
                    "`{op}` needs the runtime: use `--emit staticlib`"
                )));
            }
            _ => {
                return Err(failed(
                    "the model branches, loops or has shapes that depend on data, which needs the runtime: use `--emit staticlib`",
                ));
            }
        }
    }
    Ok(launches)
}

/// The body of `NAME_run`.
struct Run<'p, 'b, 'f> {
    program: &'p Program,
    b: &'b mut FunctionBuilder<'f>,
    inputs: Value,
    outputs: Value,
    arena: Value,
    weights: Value,
}

impl Run<'_, '_, '_> {
    fn launches(
        &mut self,
        launches: &[Launch],
        kernel: cranelift_codegen::ir::SigRef,
        code: Value,
        zeros: Value,
    ) -> Result<(), Error> {
        let flags = MemFlagsData::new().with_notrap();
        let most = launches.iter().map(|l| l.args.len()).max().unwrap_or(0);
        let mut slot = |bytes: usize| {
            let data = StackSlotData::new(StackSlotKind::ExplicitSlot, bytes as u32, 3);
            let slot = self.b.create_sized_stack_slot(data);
            self.b.ins().stack_addr(I64, slot, 0)
        };
        let (ctx, args) = (slot(size_of::<KernelContext>()), slot(8 * most.max(1)));
        let scratch = self.program.arena_bytes.next_multiple_of(64) as i64;
        let scratch = self.b.ins().iadd_imm_s(self.arena, scratch);
        let null = self.b.ins().iconst(I64, 0);
        let fields = [
            (null, offset_of!(KernelContext, imports)),
            (scratch, offset_of!(KernelContext, scratch)),
            (zeros, offset_of!(KernelContext, zeros)),
        ];
        for (value, offset) in fields {
            self.b.ins().store(flags, value, ctx, offset as i32);
        }
        for launch in launches {
            for (i, arg) in launch.args.iter().enumerate() {
                let value = match arg {
                    LaunchArg::Buffer(v) => self.address(**v)?,
                    LaunchArg::Number(n) => self.b.ins().iconst(I64, *n),
                };
                self.b.ins().store(flags, value, args, 8 * i as i32);
            }
            let decl = self.program.kernels.get(launch.kernel);
            let decl = decl.ok_or_else(|| failed("a launch names no kernel"))?;
            let entry = self.b.ins().iadd_imm_s(code, decl.code_offset as i64);
            let begin = self.b.ins().iconst(I64, 0);
            let end = self.b.ins().iconst(I64, launch.grid);
            let given = [ctx, args, begin, end];
            self.b.ins().call_indirect(kernel, entry, &given);
        }
        Ok(())
    }

    /// Outputs that no kernel wrote in their place (an input or constant handed through, or a value that is
    /// an output twice) are copied there.
    fn results(&mut self) -> Result<(), Error> {
        let program = self.program;
        for (i, port) in program.outputs.iter().enumerate() {
            let value = root(program, port.value)?;
            let place = &program.values[value as usize].place;
            if matches!(place, Place::Output(at) if *at as usize == i) {
                continue;
            }
            let bytes = bytes(&port.ty)?;
            let from = self.address(value)?;
            let to = self.port(self.outputs, i);
            self.copy(from, to, bytes);
        }
        Ok(())
    }

    fn address(&mut self, value: ValueIndex) -> Result<Value, Error> {
        let value = root(self.program, value)?;
        Ok(match &self.program.values[value as usize].place {
            Place::Arena { offset } => self.b.ins().iadd_imm_s(self.arena, *offset as i64),
            Place::Weights { offset, .. } => self.b.ins().iadd_imm_s(self.weights, *offset as i64),
            Place::Input(i) => self.port(self.inputs, *i as usize),
            Place::Output(i) => self.port(self.outputs, *i as usize),
            Place::Heap
            | Place::Strings(_)
            | Place::Alias(_)
            | Place::Prepared { .. }
            | Place::State(_) => {
                return Err(failed(
                    "a value is allocated, prepared or kept by the runtime, which an object has not: use `--emit staticlib`",
                ));
            }
        })
    }

    fn port(&mut self, list: Value, i: usize) -> Value {
        let flags = MemFlagsData::new().with_notrap();
        self.b.ins().load(I64, flags, list, 8 * i as i32)
    }

    /// A loop of single bytes: freestanding code has no `memcpy`, and such copies are rare and small.
    fn copy(&mut self, from: Value, to: Value, bytes: i64) {
        use cranelift_codegen::ir::{BlockArg, types::I8};
        let flags = MemFlagsData::new().with_notrap();
        let [header, body, exit] = [(); 3].map(|()| self.b.create_block());
        let i = self.b.append_block_param(header, I64);
        let zero = self.b.ins().iconst(I64, 0);
        self.b.ins().jump(header, &[BlockArg::Value(zero)]);
        self.b.switch_to_block(header);
        let end = self.b.ins().iconst(I64, bytes);
        let more = self.b.ins().icmp(IntCC::UnsignedLessThan, i, end);
        self.b.ins().brif(more, body, &[], exit, &[]);
        self.b.switch_to_block(body);
        let (source, place) = (self.b.ins().iadd(from, i), self.b.ins().iadd(to, i));
        let byte = self.b.ins().load(I8, flags, source, 0);
        self.b.ins().store(flags, byte, place, 0);
        let next = self.b.ins().iadd_imm_s(i, 1);
        self.b.ins().jump(header, &[BlockArg::Value(next)]);
        self.b.switch_to_block(exit);
    }
}

fn root(program: &Program, mut value: ValueIndex) -> Result<ValueIndex, Error> {
    for _ in 0..=program.values.len() {
        let decl = program.values.get(value as usize);
        match decl.ok_or_else(|| failed("a value is not declared"))?.place {
            Place::Alias(of) => value = of,
            _ => return Ok(value),
        }
    }
    Err(failed("a value stands for itself"))
}

fn bytes(ty: &ValueType) -> Result<i64, Error> {
    let ValueType::Tensor {
        elem,
        dims: Some(dims),
    } = ty
    else {
        return Err(failed("an output is no tensor of known rank"));
    };
    dims.iter()
        .try_fold(elem.size_bytes() as i64, |n, d| {
            n.checked_mul(d.as_const()?)
        })
        .ok_or_else(|| {
            failed("the size of an output depends on the inputs; fix it with `--dim NAME=N`")
        })
}
