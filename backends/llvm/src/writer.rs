//! LLVM's textual IR, one function: typed values, instructions, blocks.
//!
//! Text, because LLVM's reader checks every type and says what is wrong, where its C interface has undefined behaviour;
//! and because the translation can then be read and tested without LLVM. Operands that are constants are written in
//! place.

use std::collections::BTreeSet;
use std::fmt::Write;

/// Type of a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Lane {
    I1,
    I8,
    I16,
    I32,
    I64,
    F32,
    F64,
    Ptr,
}

impl Lane {
    fn name(self) -> &'static str {
        match self {
            Lane::I1 => "i1",
            Lane::I8 => "i8",
            Lane::I16 => "i16",
            Lane::I32 => "i32",
            Lane::I64 => "i64",
            Lane::F32 => "float",
            Lane::F64 => "double",
            Lane::Ptr => "ptr",
        }
    }

    /// As intrinsics' names spell it.
    fn suffix(self) -> &'static str {
        match self {
            Lane::F32 => "f32",
            Lane::F64 => "f64",
            Lane::Ptr => "p0",
            _ => self.name(),
        }
    }

    pub fn is_float(self) -> bool {
        matches!(self, Lane::F32 | Lane::F64)
    }

    /// Bytes in memory; `i1` is never stored.
    pub fn bytes(self) -> u32 {
        match self {
            Lane::I1 | Lane::I8 => 1,
            Lane::I16 => 2,
            Lane::I32 | Lane::F32 => 4,
            Lane::I64 | Lane::F64 | Lane::Ptr => 8,
        }
    }
}

/// A scalar (`lanes` is 1) or a vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Ty {
    pub lane: Lane,
    pub lanes: u32,
}

impl Ty {
    pub const PTR: Ty = Ty::scalar(Lane::Ptr);
    pub const I1: Ty = Ty::scalar(Lane::I1);
    pub const I64: Ty = Ty::scalar(Lane::I64);

    pub const fn scalar(lane: Lane) -> Ty {
        Ty { lane, lanes: 1 }
    }

    /// As many lanes of another type.
    pub fn of(self, lane: Lane) -> Ty {
        Ty { lane, ..self }
    }

    pub fn suffix(self) -> String {
        match self.lanes {
            1 => self.lane.suffix().to_owned(),
            n => format!("v{n}{}", self.lane.suffix()),
        }
    }
}

impl std::fmt::Display for Ty {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.lanes {
            1 => f.write_str(self.lane.name()),
            n => write!(f, "<{n} x {}>", self.lane.name()),
        }
    }
}

/// An operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Val {
    id: u32,
    pub ty: Ty,
}

/// A label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Block(u32);

/// A value whose incoming edges are still to be told.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Phi {
    pub value: Val,
    line: usize,
}

/// A function being written.
#[derive(Default)]
pub(crate) struct Writer {
    /// Text of each operand.
    operands: Vec<String>,
    lines: Vec<String>,
    allocas: String,
    declarations: BTreeSet<String>,
    next: u32,
    block: u32,
    blocks: u32,
}

impl Writer {
    /// The text of `define … @kernel`, with what it declares.
    pub fn finish(&self, attributes: &str) -> String {
        let mut text = String::new();
        for d in &self.declarations {
            let _ = writeln!(text, "declare {d}");
        }
        let _ = writeln!(
            text,
            "define void @kernel(ptr %ctx, ptr %args, i64 %begin, i64 %end) {attributes} {{\nb0:\n{}",
            self.allocas
        );
        for line in &self.lines {
            text.push_str(line);
            text.push('\n');
        }
        text.push_str("}\n");
        text
    }

    fn operand(&mut self, ty: Ty, text: String) -> Val {
        self.operands.push(text);
        let id = self.operands.len() as u32 - 1;
        Val { id, ty }
    }

    /// A parameter of the function, by name.
    pub fn param(&mut self, ty: Ty, name: &str) -> Val {
        self.operand(ty, format!("%{name}"))
    }

    fn at(&self, v: Val) -> &str {
        &self.operands[v.id as usize]
    }

    fn fresh(&mut self, ty: Ty) -> Val {
        self.next += 1;
        let name = format!("%v{}", self.next);
        self.operand(ty, name)
    }

    fn line(&mut self, text: String) {
        self.lines.push(format!("  {text}"));
    }

    fn define(&mut self, ty: Ty, text: String) -> Val {
        let v = self.fresh(ty);
        let line = format!("{} = {text}", self.at(v));
        self.line(line);
        v
    }

    // Constants.

    pub fn int(&mut self, ty: Ty, x: i64) -> Val {
        let text = match ty.lane {
            Lane::I1 => if x != 0 { "true" } else { "false" }.to_owned(),
            Lane::I8 => (x as i8).to_string(),
            Lane::I16 => (x as i16).to_string(),
            Lane::I32 => (x as i32).to_string(),
            _ => x.to_string(),
        };
        self.repeated(ty, text)
    }

    pub fn index(&mut self, x: i64) -> Val {
        self.int(Ty::I64, x)
    }

    pub fn float(&mut self, ty: Ty, x: f64) -> Val {
        // Both widths are written as the bits of a double.
        let x = if ty.lane == Lane::F32 {
            f64::from(x as f32)
        } else {
            x
        };
        self.repeated(ty, format!("0x{:016X}", x.to_bits()))
    }

    fn repeated(&mut self, ty: Ty, text: String) -> Val {
        let text = match ty.lanes {
            1 => text,
            _ => format!("splat ({} {text})", ty.lane.name()),
        };
        self.operand(ty, text)
    }

    /// `first, first + 1, …`.
    pub fn iota(&mut self, ty: Ty, first: i64) -> Val {
        if ty.lanes == 1 {
            return self.int(ty, first);
        }
        let lanes: Vec<String> = (first..first + i64::from(ty.lanes))
            .map(|i| format!("{} {i}", ty.lane.name()))
            .collect();
        self.operand(ty, format!("<{}>", lanes.join(", ")))
    }

    pub fn zero(&mut self, ty: Ty) -> Val {
        self.operand(ty, "zeroinitializer".to_owned())
    }

    pub fn null(&mut self) -> Val {
        self.operand(Ty::PTR, "null".to_owned())
    }

    // Instructions.

    /// An instruction of two operands of one type, which is its result's too.
    pub fn two(&mut self, name: &str, a: Val, b: Val) -> Val {
        let text = format!("{name} {} {}, {}", a.ty, self.at(a), self.at(b));
        self.define(a.ty, text)
    }

    /// The same with a constant integer.
    pub fn two_int(&mut self, name: &str, a: Val, b: i64) -> Val {
        let b = self.int(a.ty, b);
        self.two(name, a, b)
    }

    /// A comparison, such as `icmp slt`.
    pub fn compare(&mut self, name: &str, a: Val, b: Val) -> Val {
        let text = format!("{name} {} {}, {}", a.ty, self.at(a), self.at(b));
        self.define(a.ty.of(Lane::I1), text)
    }

    pub fn compare_int(&mut self, name: &str, a: Val, b: i64) -> Val {
        let b = self.int(a.ty, b);
        self.compare(name, a, b)
    }

    pub fn negate_float(&mut self, a: Val) -> Val {
        let text = format!("fneg {} {}", a.ty, self.at(a));
        self.define(a.ty, text)
    }

    /// A conversion, such as `sext`; nothing if the type is the same.
    pub fn convert(&mut self, name: &str, x: Val, ty: Ty) -> Val {
        if x.ty == ty {
            return x;
        }
        let text = format!("{name} {} {} to {ty}", x.ty, self.at(x));
        self.define(ty, text)
    }

    /// `condition ? a : b`; a scalar condition chooses whole vectors.
    pub fn select(&mut self, condition: Val, a: Val, b: Val) -> Val {
        let text = format!(
            "select {} {}, {} {}, {} {}",
            condition.ty,
            self.at(condition),
            a.ty,
            self.at(a),
            b.ty,
            self.at(b)
        );
        self.define(a.ty, text)
    }

    /// `address + bytes`.
    pub fn offset(&mut self, address: Val, bytes: Val) -> Val {
        let text = format!(
            "getelementptr i8, ptr {}, i64 {}",
            self.at(address),
            self.at(bytes)
        );
        self.define(Ty::PTR, text)
    }

    pub fn offset_by(&mut self, address: Val, bytes: i64) -> Val {
        if bytes == 0 {
            return address;
        }
        let bytes = self.index(bytes);
        self.offset(address, bytes)
    }

    pub fn load(&mut self, ty: Ty, address: Val) -> Val {
        let text = format!(
            "load {ty}, ptr {}, align {}",
            self.at(address),
            ty.lane.bytes()
        );
        self.define(ty, text)
    }

    pub fn store(&mut self, x: Val, address: Val) {
        let line = format!(
            "store {} {}, ptr {}, align {}",
            x.ty,
            self.at(x),
            self.at(address),
            x.ty.lane.bytes()
        );
        self.line(line);
    }

    /// Memory of the function's frame, 64-byte aligned.
    pub fn slot(&mut self, bytes: u64) -> Val {
        let v = self.fresh(Ty::PTR);
        let line = format!(
            "  {} = alloca [{} x i8], align 64\n",
            self.at(v),
            bytes.max(1)
        );
        self.allocas.push_str(&line);
        v
    }

    pub fn extract(&mut self, x: Val, lane: u32) -> Val {
        if x.ty.lanes == 1 {
            return x;
        }
        let text = format!("extractelement {} {}, i64 {lane}", x.ty, self.at(x));
        self.define(Ty::scalar(x.ty.lane), text)
    }

    /// A vector of these scalars; just the scalar if it is one.
    pub fn gather(&mut self, scalars: &[Val]) -> Val {
        let ty = Ty {
            lane: scalars[0].ty.lane,
            lanes: scalars.len() as u32,
        };
        if ty.lanes == 1 {
            return scalars[0];
        }
        if scalars.iter().all(|&s| s == scalars[0]) {
            return self.splat(scalars[0], ty.lanes);
        }
        let mut v = self.operand(ty, "poison".to_owned());
        for (i, &s) in scalars.iter().enumerate() {
            let text = format!(
                "insertelement {ty} {}, {} {}, i64 {i}",
                self.at(v),
                s.ty,
                self.at(s)
            );
            v = self.define(ty, text);
        }
        v
    }

    /// A scalar in every lane.
    pub fn splat(&mut self, x: Val, lanes: u32) -> Val {
        if lanes == 1 {
            return x;
        }
        let ty = Ty {
            lane: x.ty.lane,
            lanes,
        };
        if !self.at(x).starts_with('%') {
            let text = self.at(x).to_owned();
            return self.repeated(ty, text);
        }
        let text = format!("insertelement {ty} poison, {} {}, i64 0", x.ty, self.at(x));
        let first = self.define(ty, text);
        self.shuffle(first, first, &vec![0; lanes as usize])
    }

    /// Lanes of two vectors of one type, `b`'s counted after `a`'s.
    pub fn shuffle(&mut self, a: Val, b: Val, lanes: &[u32]) -> Val {
        let ty = Ty {
            lane: a.ty.lane,
            lanes: lanes.len() as u32,
        };
        if lanes.len() == 1 {
            let (from, lane) = match lanes[0].checked_sub(a.ty.lanes) {
                Some(lane) => (b, lane),
                None => (a, lanes[0]),
            };
            return self.extract(from, lane);
        }
        if a.ty == ty && lanes.iter().enumerate().all(|(i, &l)| i == l as usize) {
            return a;
        }
        let mask: Vec<String> = lanes.iter().map(|l| format!("i32 {l}")).collect();
        let text = format!(
            "shufflevector {} {}, {} {}, <{} x i32> <{}>",
            a.ty,
            self.at(a),
            b.ty,
            self.at(b),
            lanes.len(),
            mask.join(", ")
        );
        self.define(ty, text)
    }

    /// Calls an intrinsic of LLVM.
    pub fn intrinsic(&mut self, name: &str, result: Ty, args: &[Val]) -> Val {
        let text = self.call_text(name, Some(result), args);
        self.define(result, text)
    }

    /// Calls an intrinsic without result.
    pub fn effect(&mut self, name: &str, args: &[Val]) {
        let text = self.call_text(name, None, args);
        self.line(text);
    }

    fn call_text(&mut self, name: &str, result: Option<Ty>, args: &[Val]) -> String {
        let result = result.map_or("void".to_owned(), |t| t.to_string());
        let types: Vec<String> = args.iter().map(|a| a.ty.to_string()).collect();
        self.declarations
            .insert(format!("{result} @{name}({})", types.join(", ")));
        let args: Vec<String> = args
            .iter()
            .map(|&a| format!("{} {}", a.ty, self.at(a)))
            .collect();
        format!("call {result} @{name}({})", args.join(", "))
    }

    /// Calls a function of one pointer by its address.
    pub fn call_pointer(&mut self, callee: Val, arg: Val) {
        let line = format!("call void {}(ptr {})", self.at(callee), self.at(arg));
        self.line(line);
    }

    // Blocks.

    pub fn new_block(&mut self) -> Block {
        self.blocks += 1;
        Block(self.blocks)
    }

    /// The block that is being written.
    pub fn current(&self) -> Block {
        Block(self.block)
    }

    pub fn begin(&mut self, block: Block) {
        self.block = block.0;
        self.lines.push(format!("b{}:", block.0));
    }

    pub fn jump(&mut self, to: Block) {
        self.line(format!("br label %b{}", to.0));
    }

    pub fn branch(&mut self, condition: Val, yes: Block, no: Block) {
        let line = format!(
            "br i1 {}, label %b{}, label %b{}",
            self.at(condition),
            yes.0,
            no.0
        );
        self.line(line);
    }

    pub fn ret(&mut self) {
        self.line("ret void".to_owned());
    }

    /// A value that depends on where control came from; at the beginning of a block.
    pub fn phi(&mut self, ty: Ty) -> Phi {
        let value = self.fresh(ty);
        let line = self.lines.len();
        self.line(String::new());
        Phi { value, line }
    }

    /// Tells the incoming edges.
    pub fn complete(&mut self, phi: Phi, edges: &[(Val, Block)]) {
        let edges: Vec<String> = edges
            .iter()
            .map(|(v, b)| format!("[ {}, %b{} ]", self.at(*v), b.0))
            .collect();
        self.lines[phi.line] = format!(
            "  {} = phi {} {}",
            self.at(phi.value),
            phi.value.ty,
            edges.join(", ")
        );
    }
}
