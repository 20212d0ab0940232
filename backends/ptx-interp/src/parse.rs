//! Reads the text of a module.

use crate::ParseError;
use crate::instruction::{
    Compare, Entry, From, Function, Instruction, Kind, Mma, Module, Op, Round, Space, Type,
};
use std::collections::HashMap;

type Result<T> = std::result::Result<T, String>;

impl Module {
    /// Reads a module.
    ///
    /// # Errors
    /// The text is not PTX, or uses what this crate does not know.
    pub fn parse(text: &str) -> std::result::Result<Module, ParseError> {
        let mut module = Module::default();
        let mut reader: Option<Reader> = None;
        let mut header: Option<(u32, String)> = None;
        for (i, line) in text.lines().enumerate() {
            let number = i as u32 + 1;
            let fail = |reason: String| ParseError {
                line: number,
                reason,
            };
            let line = line.split("//").next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            if let Some((_, head)) = &mut header {
                if line == "{" {
                    reader = Some(Reader::new(head).map_err(fail)?);
                    header = None;
                } else {
                    head.push(' ');
                    head.push_str(line);
                }
            } else if let Some(r) = &mut reader {
                if line == "}" {
                    let entry = std::mem::take(r).finish().map_err(fail)?;
                    module.entries.insert(entry.name.clone(), entry);
                    reader = None;
                } else {
                    r.line(number, line).map_err(fail)?;
                }
            } else if let Some(target) = line.strip_prefix(".target ") {
                module.target = target.to_owned();
            } else if line.starts_with(".visible .entry ") {
                header = Some((number, line.to_owned()));
            } else if !line.starts_with(".version ") && !line.starts_with(".address_size ") {
                return Err(fail(format!("`{line}` is not known")));
            }
        }
        match reader.is_some() || header.is_some() {
            true => Err(ParseError {
                line: text.lines().count() as u32,
                reason: "an entry does not end".to_owned(),
            }),
            false => Ok(module),
        }
    }
}

/// Reads one entry.
#[derive(Default)]
struct Reader {
    entry: Entry,
    params: HashMap<String, u32>,
    symbols: HashMap<String, u32>,
    registers: HashMap<String, u32>,
    labels: HashMap<String, usize>,
    /// Branches to labels.
    branches: Vec<(usize, String)>,
}

impl Reader {
    fn new(head: &str) -> Result<Reader> {
        let mut reader = Reader::default();
        let (name, rest) = head
            .strip_prefix(".visible .entry ")
            .and_then(|h| h.split_once('('))
            .ok_or("an entry has a name and parameters")?;
        let (params, rest) = rest.split_once(')').ok_or("parameters end with `)`")?;
        reader.entry.name = name.trim().to_owned();
        for param in params.split(',').map(str::trim).filter(|p| !p.is_empty()) {
            let words: Vec<&str> = param.split_whitespace().collect();
            let &[".param", ty, name] = &words[..] else {
                return Err(format!("`{param}` is no parameter"));
            };
            let bytes = type_of(ty.trim_start_matches('.'))?.bits / 8;
            let n = reader.entry.params.len() as u32;
            reader.params.insert(name.to_owned(), n);
            reader.entry.params.push(bytes);
        }
        let mut words = rest.split(|c: char| c == ',' || c.is_whitespace());
        while let Some(word) = words.next() {
            if word == ".maxntid" {
                let n = words.next().and_then(|n| n.parse().ok());
                reader.entry.threads = n.ok_or("`.maxntid` has a number")?;
            }
        }
        match reader.entry.threads {
            0 => Err("an entry says how many threads its blocks have".to_owned()),
            _ => Ok(reader),
        }
    }

    fn finish(mut self) -> Result<Entry> {
        for (at, label) in self.branches {
            let to = *self
                .labels
                .get(&label)
                .ok_or_else(|| format!("there is no label `{label}`"))?;
            self.entry.code[at].op = Op::Bra { to };
        }
        Ok(self.entry)
    }

    fn line(&mut self, number: u32, line: &str) -> Result<()> {
        if let Some(label) = line.strip_suffix(':') {
            self.labels.insert(label.to_owned(), self.entry.code.len());
            return Ok(());
        }
        let statement = line
            .strip_suffix(';')
            .ok_or_else(|| format!("`{line}` does not end with `;`"))?;
        if let Some(rest) = statement.strip_prefix(".reg ") {
            return self.declare_registers(rest);
        }
        if let Some(rest) = statement.strip_prefix(".shared ") {
            return self.declare_shared(rest);
        }
        let (guard, rest) = match statement.strip_prefix('@') {
            None => (None, statement),
            Some(rest) => {
                let (register, rest) = rest.split_once(' ').ok_or("a guard without instruction")?;
                let guard = match register.strip_prefix('!') {
                    Some(register) => (self.register(register)?, false),
                    None => (self.register(register)?, true),
                };
                (Some(guard), rest)
            }
        };
        let (name, operands) = rest.trim().split_once(' ').unwrap_or((rest.trim(), ""));
        let op = self
            .instruction(name, &split(operands))
            .map_err(|e| format!("`{statement}`: {e}"))?;
        self.entry.code.push(Instruction {
            line: number,
            guard,
            op,
        });
        Ok(())
    }

    /// `.b32 %r<7>`.
    fn declare_registers(&mut self, rest: &str) -> Result<()> {
        let (_, name) = rest.trim().split_once(' ').ok_or("registers have a type")?;
        let (prefix, count) = name
            .trim()
            .strip_suffix('>')
            .and_then(|n| n.split_once('<'))
            .ok_or("registers are declared as `%r<7>`")?;
        let count: u32 = count.parse().map_err(|_| "a number of registers")?;
        for n in 0..count {
            let id = self.entry.registers;
            self.registers.insert(format!("{prefix}{n}"), id);
            self.entry.registers += 1;
        }
        Ok(())
    }

    /// `.align 16 .b8 slot0[128]`.
    fn declare_shared(&mut self, rest: &str) -> Result<()> {
        let words: Vec<&str> = rest.split_whitespace().collect();
        let &[".align", align, ".b8", name] = &words[..] else {
            return Err(format!("`.shared {rest}` is not known"));
        };
        let align: u32 = align.parse().map_err(|_| "an alignment")?;
        let (name, bytes) = name
            .strip_suffix(']')
            .and_then(|n| n.split_once('['))
            .ok_or("shared memory has a length")?;
        let bytes: u32 = bytes.parse().map_err(|_| "a length")?;
        let at = self.entry.shared_bytes.next_multiple_of(align.max(1));
        self.symbols.insert(name.to_owned(), at);
        self.entry.shared_bytes = at + bytes;
        Ok(())
    }

    fn register(&self, name: &str) -> Result<u32> {
        self.registers
            .get(name)
            .copied()
            .ok_or_else(|| format!("there is no register `{name}`"))
    }

    fn from(&self, text: &str) -> Result<From> {
        let float = |digits: &str| {
            u64::from_str_radix(digits, 16).map_err(|_| format!("`{text}` is no number"))
        };
        Ok(match text {
            "%tid.x" => From::Tid,
            "%ctaid.x" => From::Ctaid,
            _ if text.starts_with('%') => From::Register(self.register(text)?),
            _ if text.starts_with("0f") => From::Bits(float(&text[2..])?),
            _ if text.starts_with("0d") => From::Bits(float(&text[2..])?),
            _ if text.starts_with("0x") => From::Bits(float(&text[2..])?),
            _ => match self.symbols.get(text) {
                Some(&at) => From::Bits(u64::from(at)),
                None => From::Bits(
                    text.parse::<i64>()
                        .map_err(|_| format!("`{text}` is no operand"))? as u64,
                ),
            },
        })
    }

    /// `[%rd1+16]`.
    fn address(&self, text: &str) -> Result<(From, i64)> {
        let inside = text
            .strip_prefix('[')
            .and_then(|t| t.strip_suffix(']'))
            .ok_or_else(|| format!("`{text}` is no address"))?;
        match inside.split_once('+') {
            Some((base, offset)) => Ok((
                self.from(base)?,
                offset.parse().map_err(|_| "an offset is a number")?,
            )),
            None => Ok((self.from(inside)?, 0)),
        }
    }

    /// `{%r1, %r2}`, or one operand.
    fn group(&self, text: &str) -> Result<Vec<From>> {
        match text.strip_prefix('{').and_then(|t| t.strip_suffix('}')) {
            Some(inside) => inside.split(',').map(|t| self.from(t.trim())).collect(),
            None => Ok(vec![self.from(text)?]),
        }
    }

    fn group_to(&self, text: &str) -> Result<Vec<u32>> {
        let to = |f: From| match f {
            From::Register(r) => Ok(r),
            _ => Err("results go to registers".to_owned()),
        };
        self.group(text)?.into_iter().map(to).collect()
    }

    fn exactly<const N: usize>(&self, text: &str) -> Result<[From; N]> {
        let group = self.group(text)?;
        group
            .try_into()
            .map_err(|_| format!("`{text}` must be {N} operands"))
    }

    fn instruction(&mut self, name: &str, operands: &[String]) -> Result<Op> {
        let words: Vec<&str> = name.split('.').collect();
        let arg = |i: usize| {
            operands
                .get(i)
                .map(String::as_str)
                .ok_or_else(|| "an operand is missing".to_owned())
        };
        let has = |word: &str| words.contains(&word);
        let last = || type_of(words.last().copied().unwrap_or_default());
        match words[0] {
            "ret" => Ok(Op::Ret),
            "bra" => {
                self.branches
                    .push((self.entry.code.len(), arg(0)?.to_owned()));
                Ok(Op::Bra { to: 0 })
            }
            "bar" if name == "bar.sync" => Ok(Op::Barrier),
            "ld" if has("param") => {
                let inside = arg(1)?.trim_start_matches('[').trim_end_matches(']');
                let param = *self
                    .params
                    .get(inside)
                    .ok_or_else(|| format!("there is no parameter `{inside}`"))?;
                Ok(Op::LdParam {
                    to: self.register(arg(0)?)?,
                    param,
                })
            }
            "ld" => {
                let (at, offset) = self.address(arg(1)?)?;
                Ok(Op::Ld {
                    space: space_of(&words)?,
                    ty: last()?,
                    to: self.group_to(arg(0)?)?,
                    at,
                    offset,
                })
            }
            "st" => {
                let (at, offset) = self.address(arg(0)?)?;
                Ok(Op::St {
                    space: space_of(&words)?,
                    ty: last()?,
                    from: self.group(arg(1)?)?,
                    at,
                    offset,
                })
            }
            "cvta" => self.function(Function::Mov, Type::bits(64), operands),
            "cvt" => self.conversion(&words, operands),
            "setp" => Ok(Op::Setp {
                compare: match words[1] {
                    "eq" => Compare::Eq,
                    "ne" => Compare::Ne,
                    "lt" => Compare::Lt,
                    "le" => Compare::Le,
                    "gt" => Compare::Gt,
                    "ge" => Compare::Ge,
                    "neu" => Compare::Neu,
                    "nan" => Compare::Nan,
                    other => return Err(format!("comparison `{other}`")),
                },
                ty: last()?,
                to: self.register(arg(0)?)?,
                from: [self.from(arg(1)?)?, self.from(arg(2)?)?],
            }),
            "selp" => Ok(Op::Selp {
                to: self.register(arg(0)?)?,
                from: [self.from(arg(1)?)?, self.from(arg(2)?)?],
                condition: self.from(arg(3)?)?,
            }),
            "shfl" => {
                if arg(3)? != "31" || arg(4)? != "0xffffffff" {
                    return Err("shuffles are of whole warps".to_owned());
                }
                Ok(Op::Shfl {
                    butterfly: match words[2] {
                        "bfly" => true,
                        "idx" => false,
                        other => return Err(format!("shuffle `{other}`")),
                    },
                    to: self.register(arg(0)?)?,
                    from: self.from(arg(1)?)?,
                    lane: self.from(arg(2)?)?,
                })
            }
            "mov" if arg(0)?.starts_with('{') => {
                let to = self.group_to(arg(0)?)?;
                Ok(Op::Split {
                    to: to.try_into().map_err(|_| "two halves")?,
                    from: self.from(arg(1)?)?,
                    half: last()?.bits / 2,
                })
            }
            "mov" if arg(1)?.starts_with('{') => Ok(Op::Join {
                to: self.register(arg(0)?)?,
                from: self.exactly(arg(1)?)?,
                half: last()?.bits / 2,
            }),
            "cp" => self.copy(name, operands),
            "ldmatrix" => {
                let (at, offset) = self.address(arg(1)?)?;
                let to = self.group_to(arg(0)?)?;
                let count = ["x1", "x2", "x4"].iter().position(|x| has(x));
                if count.map(|c| 1 << c) != Some(to.len()) || !has("m8n8") || !has("b16") {
                    return Err("matrices do not fit their registers".to_owned());
                }
                Ok(Op::LdMatrix {
                    transposed: has("trans"),
                    to,
                    at,
                    offset,
                })
            }
            "mma" if words[1].starts_with("sp") => self.sparse_product(name, operands),
            "mma" => self.product(name, operands),
            _ => {
                let (function, ty) = function_of(&words, operands)?;
                self.function(function, ty, operands)
            }
        }
    }

    fn function(&self, function: Function, ty: Type, operands: &[String]) -> Result<Op> {
        let (to, from) = operands.split_first().ok_or("a result is missing")?;
        let mut values = [From::Bits(0); 3];
        let from = match function {
            Function::Lop3(_) => &from[..3.min(from.len())],
            _ => from,
        };
        if from.is_empty() || from.len() > 3 {
            return Err("one to three operands".to_owned());
        }
        for (value, text) in values.iter_mut().zip(from) {
            *value = self.from(text)?;
        }
        Ok(Op::Function {
            function,
            ty,
            to: self.register(to)?,
            from: values,
        })
    }

    fn conversion(&self, words: &[&str], operands: &[String]) -> Result<Op> {
        let [to, from] = operands else {
            let [to, a, b] = operands else {
                return Err("a conversion has one operand".to_owned());
            };
            let brain = words.contains(&"bf16x2");
            return Ok(Op::CvtPair {
                to: self.register(to)?,
                brain,
                from: [self.from(a)?, self.from(b)?],
            });
        };
        let [.., to_ty, from_ty] = words else {
            return Err("a conversion has two types".to_owned());
        };
        let round = match words[1] {
            "rni" => Round::Rni,
            "rzi" => Round::Rzi,
            "rmi" => Round::Rmi,
            "rpi" => Round::Rpi,
            _ => Round::Nearest,
        };
        Ok(Op::Cvt {
            to: self.register(to)?,
            to_ty: type_of(to_ty)?,
            from: self.from(from)?,
            from_ty: type_of(from_ty)?,
            round,
        })
    }

    fn copy(&self, name: &str, operands: &[String]) -> Result<Op> {
        let arg = |i: usize| {
            operands
                .get(i)
                .map(String::as_str)
                .ok_or_else(|| "an operand is missing".to_owned())
        };
        match name {
            "cp.async.commit_group" => Ok(Op::Commit),
            "cp.async.wait_group" => {
                let n = arg(0)?.parse().map_err(|_| "a number of groups")?;
                Ok(Op::Wait(n))
            }
            "cp.async.ca.shared.global" | "cp.async.cg.shared.global" => {
                let bytes = arg(2)?.parse().map_err(|_| "a number of bytes")?;
                let allowed: &[u32] = match name.contains(".cg.") {
                    true => &[16],
                    false => &[4, 8, 16],
                };
                if !allowed.contains(&bytes) {
                    return Err(format!("{bytes} bytes are not copied"));
                }
                Ok(Op::CpAsync {
                    bytes,
                    to: self.address(arg(0)?)?,
                    from: self.address(arg(1)?)?,
                    count: match operands.get(3) {
                        Some(count) => Some(self.from(count)?),
                        None => None,
                    },
                })
            }
            _ => Err("not known".to_owned()),
        }
    }

    fn product(&self, name: &str, operands: &[String]) -> Result<Op> {
        let rest = name
            .strip_prefix("mma.sync.aligned.")
            .ok_or("matrix products are of whole warps")?;
        let kind = match rest {
            "m16n8k16.row.col.f32.f16.f16.f32" => Mma::F16,
            "m16n8k16.row.col.f32.bf16.bf16.f32" => Mma::Bf16,
            "m16n8k32.row.col.s32.u8.s8.s32" => Mma::Bytes([false, true]),
            "m16n8k32.row.col.s32.s8.s8.s32" => Mma::Bytes([true, true]),
            "m16n8k32.row.col.s32.u8.u8.s32" => Mma::Bytes([false, false]),
            "m16n8k32.row.col.s32.s8.u8.s32" => Mma::Bytes([true, false]),
            _ => return Err("a shape that is not known".to_owned()),
        };
        let [d, a, b, c] = operands else {
            return Err("a product has four operands".to_owned());
        };
        Ok(Op::Mma {
            kind,
            to: self.four(d)?,
            a: self.exactly(a)?,
            b: self.exactly(b)?,
            c: self.exactly(c)?,
        })
    }

    /// The four registers of a lane's part of a product.
    fn four(&self, text: &str) -> Result<[u32; 4]> {
        let to = self.group_to(text)?.try_into();
        to.map_err(|_| "four results".to_owned())
    }

    /// Both forms: that places are in order is checked of either.
    fn sparse_product(&self, name: &str, operands: &[String]) -> Result<Op> {
        let rest = name
            .strip_prefix("mma.sp::ordered_metadata")
            .or_else(|| name.strip_prefix("mma.sp"));
        if rest != Some(".sync.aligned.m16n8k32.row.col.f32.f16.f16.f32") {
            return Err("a shape that is not known".to_owned());
        }
        let [d, a, b, c, places, selector] = operands else {
            return Err("a sparse product has six operands".to_owned());
        };
        Ok(Op::SparseMma {
            to: self.four(d)?,
            a: self.exactly(a)?,
            b: self.exactly(b)?,
            c: self.exactly(c)?,
            places: self.from(places)?,
            selector: match selector.as_str() {
                "0x0" | "0" => 0,
                "0x1" | "1" => 1,
                _ => return Err("a selector is 0 or 1".to_owned()),
            },
        })
    }
}

/// Operands, divided at commas outside of braces.
fn split(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut depth = 0;
    for c in text.chars() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(String::new());
                continue;
            }
            _ => {}
        }
        if let Some(last) = parts.last_mut() {
            last.push(c);
        }
    }
    parts
        .into_iter()
        .map(|p| p.trim().to_owned())
        .filter(|p| !p.is_empty())
        .collect()
}

fn space_of(words: &[&str]) -> Result<Space> {
    match words {
        _ if words.contains(&"global") => Ok(Space::Global),
        _ if words.contains(&"shared") => Ok(Space::Shared),
        _ => Err("memory that is not known".to_owned()),
    }
}

impl Type {
    pub fn bits(bits: u32) -> Type {
        Type {
            kind: Kind::Bits,
            bits,
        }
    }
}

fn type_of(name: &str) -> Result<Type> {
    let unknown = || format!("type `{name}`");
    let (kind, bits) = match name {
        "pred" => (Kind::Pred, 1),
        "bf16" => (Kind::Brain, 16),
        _ => {
            let kind = match name.chars().next() {
                Some('b') => Kind::Bits,
                Some('u') => Kind::Unsigned,
                Some('s') => Kind::Signed,
                Some('f') => Kind::Float,
                _ => return Err(unknown()),
            };
            (kind, name[1..].parse().map_err(|_| unknown())?)
        }
    };
    match (kind, bits) {
        (Kind::Float, 16 | 32 | 64) | (Kind::Pred | Kind::Brain, _) => Ok(Type { kind, bits }),
        (Kind::Bits | Kind::Unsigned | Kind::Signed, 8 | 16 | 32 | 64) => Ok(Type { kind, bits }),
        _ => Err(unknown()),
    }
}

/// A function, and the type it computes in.
fn function_of(words: &[&str], operands: &[String]) -> Result<(Function, Type)> {
    let (last, flags) = words.split_last().ok_or("an instruction has a name")?;
    let has = |word: &str| flags.contains(&word);
    let pair = match *last {
        "f16x2" => Some(Type {
            kind: Kind::Float,
            bits: 16,
        }),
        "bf16x2" => Some(Type {
            kind: Kind::Brain,
            bits: 16,
        }),
        _ => None,
    };
    if let Some(ty) = pair {
        let function = match words[0] {
            "sub" => Function::Sub2,
            "fma" => Function::Fma2,
            "mul" => Function::Mul2,
            other => return Err(format!("`{other}` of pairs")),
        };
        return Ok((function, ty));
    }
    let ty = type_of(last)?;
    let float = ty.kind == Kind::Float;
    if float && matches!(words[0], "sqrt" | "rcp" | "div" | "fma") && !has("rn") {
        return Err("a rounding is missing".to_owned());
    }
    let function = match words[0] {
        "mov" => Function::Mov,
        "neg" => Function::Neg,
        "abs" => Function::Abs,
        "not" => Function::Not,
        "sqrt" => Function::Sqrt,
        "rcp" => Function::Rcp,
        "add" => Function::Add,
        "sub" => Function::Sub,
        "mul" if has("hi") => Function::MulHi,
        "mul" if has("wide") => Function::MulWide,
        "mul" if has("lo") || float => Function::Mul,
        "div" => Function::Div,
        "min" if has("NaN") => Function::MinNan,
        "max" if has("NaN") => Function::MaxNan,
        "min" => Function::Min,
        "max" => Function::Max,
        "and" => Function::And,
        "or" => Function::Or,
        "xor" => Function::Xor,
        "shl" => Function::Shl,
        "shr" => Function::Shr,
        "mad" if has("lo") => Function::Mad,
        "fma" => Function::Mad,
        "bfe" => Function::Bfe,
        "prmt" => Function::Prmt,
        "lop3" => {
            let table = operands.last().and_then(|t| t.strip_prefix("0x"));
            let table = table.and_then(|t| u8::from_str_radix(t, 16).ok());
            Function::Lop3(table.ok_or("a table of eight bits")?)
        }
        other => return Err(format!("instruction `{other}` is not known")),
    };
    Ok((function, ty))
}
