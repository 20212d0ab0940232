//! Prints kernels for people: one statement per line, bodies indented.

use super::*;
use std::fmt::{self, Display, Formatter};

impl Display for Var {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "%{}", self.0)
    }
}

impl Display for TileType {
    /// `index`, `f32`, `f32[4,16]`.
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.elem {
            TileElem::Index => f.write_str("index")?,
            TileElem::Elem(e) => write!(f, "{e}")?,
        }
        if !self.shape.is_empty() {
            let dims: Vec<String> = self.shape.iter().map(u32::to_string).collect();
            write!(f, "[{}]", dims.join(","))?;
        }
        Ok(())
    }
}

impl Display for Literal {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Literal::Int(i) => write!(f, "{i}"),
            Literal::Float(x) => write!(f, "{x:?}"),
        }
    }
}

impl Display for Axis {
    /// `*4`, `*%3`, `@%5` (offsets), then `<%n` (valid) and `?%m` (mask).
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.at {
            At::Stride(s) => write!(f, "*{s}")?,
            At::DynStride(v) => write!(f, "*{v}")?,
            At::Offsets(v) => write!(f, "@{v}")?,
        }
        if let Some(v) = self.valid {
            write!(f, " <{v}")?;
        }
        match self.mask {
            Some(m) => write!(f, " ?{m}"),
            None => Ok(()),
        }
    }
}

impl Display for Kernel {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let params: Vec<String> = self
            .params
            .iter()
            .map(|p| match p {
                Param::Buffer {
                    name,
                    elem,
                    written,
                } => {
                    format!("{name}: {}{elem}", if *written { "mut " } else { "" })
                }
                Param::Size { name } => format!("{name}: size"),
            })
            .collect();
        let grid: Vec<String> = self
            .grid
            .iter()
            .map(|e| match *e {
                Extent::Const(n) => n.to_string(),
                Extent::Param { param, divisor: 1 } => self.buffer_name(param),
                Extent::Param { param, divisor } => {
                    format!("ceil({} / {divisor})", self.buffer_name(param))
                }
            })
            .collect();
        writeln!(
            f,
            "kernel {}({}) grid [{}] {{",
            self.name,
            params.join(", "),
            grid.join(", ")
        )?;
        for (i, s) in self.scratch.iter().enumerate() {
            writeln!(
                f,
                "  scratch {}: {}[{}]",
                self.buffer_name((self.params.len() + i) as u32),
                s.elem,
                s.len
            )?;
        }
        self.print_body(f, &self.body, 1)?;
        writeln!(f, "}}")
    }
}

impl Kernel {
    fn buffer_name(&self, position: u32) -> String {
        match self.params.get(position as usize) {
            Some(Param::Buffer { name, .. } | Param::Size { name }) => name.clone(),
            None => format!("scratch{}", position as usize - self.params.len()),
        }
    }

    fn print_body(&self, f: &mut Formatter<'_>, body: &[Stmt], depth: usize) -> fmt::Result {
        body.iter().try_for_each(|s| self.print_stmt(f, s, depth))
    }

    fn print_stmt(&self, f: &mut Formatter<'_>, stmt: &Stmt, depth: usize) -> fmt::Result {
        let pad = "  ".repeat(depth);
        f.write_str(&pad)?;
        if !stmt.results.is_empty() {
            let results: Vec<String> = stmt
                .results
                .iter()
                .map(|&r| format!("{r}: {}", self.ty(r)))
                .collect();
            write!(f, "{} = ", results.join(", "))?;
        }
        match &stmt.op {
            Op::For {
                index,
                begin,
                end,
                step,
                carried,
                body,
                yields,
            } => {
                let carry: Vec<String> =
                    carried.iter().map(|(c, v)| format!("{c} = {v}")).collect();
                writeln!(
                    f,
                    "for {index} in {begin}..{end} step {step} carry({}) {{",
                    carry.join(", ")
                )?;
                self.print_body(f, body, depth + 1)?;
                writeln!(f, "{pad}  yield {}", list(yields))?;
                writeln!(f, "{pad}}}")
            }
            Op::If {
                condition,
                then_body,
                then_yields,
                else_body,
                else_yields,
            } => {
                writeln!(f, "if {condition} {{")?;
                self.print_body(f, then_body, depth + 1)?;
                writeln!(f, "{pad}  yield {}", list(then_yields))?;
                writeln!(f, "{pad}}} else {{")?;
                self.print_body(f, else_body, depth + 1)?;
                writeln!(f, "{pad}  yield {}", list(else_yields))?;
                writeln!(f, "{pad}}}")
            }
            op => writeln!(f, "{}", self.op_text(op)),
        }
    }

    fn op_text(&self, op: &Op) -> String {
        let axes = |axes: &[Axis]| {
            axes.iter()
                .map(Axis::to_string)
                .collect::<Vec<_>>()
                .join(", ")
        };
        let lower = |name: String| name.to_lowercase();
        match op {
            Op::Const(l) => format!("const {l}"),
            Op::Grid(axis) => format!("grid {axis}"),
            Op::Size(p) => format!("size {}", self.buffer_name(*p)),
            Op::Iota => "iota".into(),
            Op::Unary(g, x) => format!("{} {x}", lower(format!("{g:?}"))),
            Op::Binary(g, a, b) => format!("{} {a}, {b}", lower(format!("{g:?}"))),
            Op::Select(c, a, b) => format!("select {c}, {a}, {b}"),
            Op::MulAdd(a, b, c) => format!("mul_add {a}, {b}, {c}"),
            Op::Cast(x) => format!("cast {x}"),
            Op::Bitcast(x) => format!("bitcast {x}"),
            Op::Broadcast { x, axis } => format!("broadcast {x} axis {axis}"),
            Op::Reduce { kind, x, axis } => {
                format!("reduce_{} {x} axis {axis}", lower(format!("{kind:?}")))
            }
            Op::Transpose(x) => format!("transpose {x}"),
            Op::Dot { acc, a, b } => format!("dot {acc}, {a}, {b}"),
            Op::Unpack { x, bits, signed } => {
                format!("unpack{bits}{} {x}", if *signed { " signed" } else { "" })
            }
            Op::Load { buf, base, axes: a } => {
                format!("load {}[{base}; {}]", self.buffer_name(buf.0), axes(a))
            }
            Op::Store {
                buf,
                base,
                axes: a,
                x,
            } => {
                format!(
                    "store {}[{base}; {}] <- {x}",
                    self.buffer_name(buf.0),
                    axes(a)
                )
            }
            Op::For { .. } | Op::If { .. } => String::new(),
        }
    }
}

fn list(vars: &[Var]) -> String {
    vars.iter()
        .map(Var::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}
