//! Writes instructions: virtual registers by type, immediates, labels.

use std::fmt::{self, Write};

/// Type of a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Ty {
    Pred,
    B32,
    B64,
    F32,
    F64,
    B16,
}

/// Every type of registers, in the order of their declarations.
const TYPES: [Ty; 6] = [Ty::Pred, Ty::B32, Ty::B64, Ty::F32, Ty::F64, Ty::B16];

impl Ty {
    /// As `mov`, `selp`, `ld` and `st` name it.
    pub fn name(self) -> &'static str {
        match self {
            Ty::Pred => "pred",
            Ty::B32 => "b32",
            Ty::B64 => "b64",
            Ty::F32 => "f32",
            Ty::F64 => "f64",
            Ty::B16 => "b16",
        }
    }

    fn prefix(self) -> &'static str {
        match self {
            Ty::Pred => "%p",
            Ty::B32 => "%r",
            Ty::B64 => "%rd",
            Ty::F32 => "%f",
            Ty::F64 => "%fd",
            Ty::B16 => "%h",
        }
    }

    /// Bytes of a value.
    pub fn bytes(self) -> u32 {
        match self {
            Ty::B64 | Ty::F64 => 8,
            Ty::B16 => 2,
            _ => 4,
        }
    }
}

/// An operand: a register or a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Val {
    pub ty: Ty,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Register(u32),
    /// Bits of a number of the type.
    Bits(u64),
}

impl Val {
    /// A 32-bit integer.
    pub fn int(x: i64) -> Val {
        Val {
            ty: Ty::B32,
            kind: Kind::Bits(u64::from(x as u32)),
        }
    }

    /// A 64-bit integer.
    pub fn long(x: i64) -> Val {
        Val {
            ty: Ty::B64,
            kind: Kind::Bits(x as u64),
        }
    }

    /// A number of single precision.
    pub fn f32(x: f32) -> Val {
        Val {
            ty: Ty::F32,
            kind: Kind::Bits(u64::from(x.to_bits())),
        }
    }

    /// A number of double precision.
    pub fn f64(x: f64) -> Val {
        Val {
            ty: Ty::F64,
            kind: Kind::Bits(x.to_bits()),
        }
    }

    /// A truth value.
    pub fn bool(x: bool) -> Val {
        Val {
            ty: Ty::Pred,
            kind: Kind::Bits(u64::from(x)),
        }
    }

    /// The integer that it is known to be.
    pub fn known(self) -> Option<i64> {
        match (self.ty, self.kind) {
            (Ty::B32, Kind::Bits(b)) => Some(i64::from(b as u32 as i32)),
            (Ty::B64 | Ty::Pred, Kind::Bits(b)) => Some(b as i64),
            _ => None,
        }
    }
}

impl fmt::Display for Val {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.kind, self.ty) {
            (Kind::Register(n), ty) => write!(f, "{}{n}", ty.prefix()),
            (Kind::Bits(b), Ty::F32) => write!(f, "0f{:08X}", b as u32),
            (Kind::Bits(b), Ty::F64) => write!(f, "0d{b:016X}"),
            (Kind::Bits(b), Ty::B32) => write!(f, "{}", b as u32 as i32),
            (Kind::Bits(b), Ty::Pred | Ty::B16) => write!(f, "{b}"),
            (Kind::Bits(b), Ty::B64) if b == 1 << 63 => f.write_str("0x8000000000000000"),
            (Kind::Bits(b), Ty::B64) => write!(f, "{}", b as i64),
        }
    }
}

/// A place to branch to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Label(u32);

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "$L{}", self.0)
    }
}

/// The text of a body so far.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    text: String,
    registers: [u32; TYPES.len()],
    labels: u32,
}

impl Writer {
    /// A register that nothing wrote yet.
    pub fn register(&mut self, ty: Ty) -> Val {
        let n = &mut self.registers[ty as usize];
        *n += 1;
        Val {
            ty,
            kind: Kind::Register(*n),
        }
    }

    /// A line.
    pub fn line(&mut self, line: fmt::Arguments<'_>) {
        self.text.push_str("    ");
        // Writing to a string cannot fail.
        let _ = self.text.write_fmt(line);
        self.text.push('\n');
    }

    /// An instruction with one result and these operands.
    pub fn op(&mut self, ty: Ty, name: &str, operands: &[Val]) -> Val {
        let operands: Vec<Val> = operands
            .iter()
            .map(|&o| match o.ty {
                Ty::Pred if !name.starts_with("mov") => self.in_register(o),
                _ => o,
            })
            .collect();
        let to = self.register(ty);
        self.to(to, name, &operands);
        to
    }

    /// An instruction that writes a register that there is already.
    pub fn to(&mut self, to: Val, name: &str, operands: &[Val]) {
        let operands: Vec<String> = operands.iter().map(Val::to_string).collect();
        self.line(format_args!("{name} {to}, {};", operands.join(", ")));
    }

    /// A register that holds the value: some operands cannot be numbers.
    pub fn in_register(&mut self, x: Val) -> Val {
        match x.kind {
            Kind::Register(_) => x,
            Kind::Bits(_) => self.op(x.ty, &format!("mov.{}", x.ty.name()), &[x]),
        }
    }

    /// Copies into a register that there is already.
    pub fn copy(&mut self, to: Val, x: Val) {
        if to != x {
            self.to(to, &format!("mov.{}", x.ty.name()), &[x]);
        }
    }

    /// A comparison, as `setp` names it.
    pub fn compare(&mut self, condition: &str, a: Val, b: Val) -> Val {
        self.op(Ty::Pred, &format!("setp.{condition}"), &[a, b])
    }

    /// `condition ? a : b`.
    pub fn select(&mut self, condition: Val, a: Val, b: Val) -> Val {
        if a == b {
            return a;
        }
        match condition.known() {
            Some(0) => b,
            Some(_) => a,
            None if a.ty == Ty::Pred => {
                let yes = self.and(condition, a);
                let not = self.op(Ty::Pred, "not.pred", &[condition]);
                let no = self.and(not, b);
                self.op(Ty::Pred, "or.pred", &[yes, no])
            }
            None => self.op(a.ty, &format!("selp.{}", a.ty.name()), &[a, b, condition]),
        }
    }

    /// Both of two conditions.
    pub fn and(&mut self, a: Val, b: Val) -> Val {
        match (a.known(), b.known()) {
            (Some(0), _) | (_, Some(0)) => Val::bool(false),
            (Some(_), _) => b,
            (_, Some(_)) => a,
            _ if a == b => a,
            _ => self.op(Ty::Pred, "and.pred", &[a, b]),
        }
    }

    /// Both of two conditions that may be left out.
    pub fn both(&mut self, a: Option<Val>, b: Option<Val>) -> Option<Val> {
        match (a, b) {
            (Some(a), Some(b)) => Some(self.and(a, b)),
            (a, b) => a.or(b),
        }
    }

    /// What an instruction that runs under a condition begins with.
    pub fn guard(&mut self, condition: Option<Val>) -> String {
        match condition {
            None => String::new(),
            Some(c) => {
                let c = self.in_register(c);
                format!("@{c} ")
            }
        }
    }

    /// A sum of integers of the same type.
    pub fn add(&mut self, a: Val, b: Val) -> Val {
        match (a.known(), b.known()) {
            (Some(0), _) => b,
            (_, Some(0)) => a,
            (Some(x), Some(y)) => number(a.ty, x.wrapping_add(y)),
            _ => self.op(a.ty, integer("add", a.ty), &[a, b]),
        }
    }

    /// A difference of integers of the same type.
    pub fn sub(&mut self, a: Val, b: Val) -> Val {
        match (a.known(), b.known()) {
            (_, Some(0)) => a,
            (Some(x), Some(y)) => number(a.ty, x.wrapping_sub(y)),
            _ => self.op(a.ty, integer("sub", a.ty), &[a, b]),
        }
    }

    /// A product of integers of the same type.
    pub fn mul(&mut self, a: Val, b: Val) -> Val {
        match (a.known(), b.known()) {
            (Some(0), _) | (_, Some(0)) => number(a.ty, 0),
            (Some(1), _) => b,
            (_, Some(1)) => a,
            (Some(x), Some(y)) => number(a.ty, x.wrapping_mul(y)),
            (_, Some(y)) if y > 0 && y.count_ones() == 1 => {
                let by = Val::int(i64::from(y.trailing_zeros()));
                self.op(a.ty, &format!("shl.{}", a.ty.name()), &[a, by])
            }
            _ => self.op(a.ty, integer("mul.lo", a.ty), &[a, b]),
        }
    }

    /// `a * b + c` of integers of the same type.
    pub fn mul_add(&mut self, a: Val, b: Val, c: Val) -> Val {
        match (a.known(), b.known(), c.known()) {
            (None, None, _) | (None, Some(_), None)
                if b.known() != Some(1) && c.known() != Some(0) =>
            {
                self.op(a.ty, integer("mad.lo", a.ty), &[a, b, c])
            }
            _ => {
                let product = self.mul(a, b);
                self.add(product, c)
            }
        }
    }

    /// A signed 32-bit integer as one of 64 bits.
    pub fn widen(&mut self, x: Val) -> Val {
        match x.known() {
            Some(k) => Val::long(k),
            None => self.op(Ty::B64, "cvt.s64.s32", &[x]),
        }
    }

    /// The low half of a 64-bit integer.
    pub fn narrow(&mut self, x: Val) -> Val {
        match x.known() {
            Some(k) => Val::int(k),
            None => self.op(Ty::B32, "cvt.u32.u64", &[x]),
        }
    }

    /// A label that is nowhere yet.
    pub fn label(&mut self) -> Label {
        self.labels += 1;
        Label(self.labels)
    }

    /// Puts a label here.
    pub fn place(&mut self, label: Label) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, "{label}:");
    }

    /// The declarations of registers, and the body.
    pub fn finish(self) -> String {
        let mut all = String::new();
        for (ty, n) in TYPES.into_iter().zip(self.registers) {
            if n > 0 {
                let (ty, prefix) = (ty.name(), ty.prefix());
                // Writing to a string cannot fail.
                let _ = writeln!(all, "    .reg .{ty} {prefix}<{}>;", n + 1);
            }
        }
        all + &self.text
    }
}

fn number(ty: Ty, x: i64) -> Val {
    match ty {
        Ty::B32 => Val::int(x),
        _ => Val::long(x),
    }
}

/// The name of an instruction for signed integers.
fn integer(name: &'static str, ty: Ty) -> &'static str {
    match (name, ty) {
        ("add", Ty::B32) => "add.s32",
        ("add", _) => "add.s64",
        ("sub", Ty::B32) => "sub.s32",
        ("sub", _) => "sub.s64",
        ("mul.lo", Ty::B32) => "mul.lo.s32",
        ("mul.lo", _) => "mul.lo.s64",
        (_, Ty::B32) => "mad.lo.s32",
        _ => "mad.lo.s64",
    }
}
