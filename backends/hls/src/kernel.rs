//! A kernel as a C++ function: arguments, scratch, grid loops, statements.

use crate::cost::{Cost, FILL};
use crate::folding::{self, Folding, Product};
use crate::group::{Group, Uses, count};
use crate::types::{storage, value};
use lapidary_ir::backend::Error;
use lapidary_ir::kernel::{Buf, Extent, Kernel, Op, Param, Stmt, TileType, Var};
use std::collections::{HashMap, HashSet};
use std::fmt::Write;

/// Names of the loops over a tile's dimensions.
const PLACE: [&str; 2] = ["i", "j"];

/// A function being written.
pub struct Fun<'k> {
    pub kernel: &'k Kernel,
    /// Values that are written where they are read.
    pub views: HashMap<Var, &'k Op>,
    /// Scalars of the loop over elements that is being written.
    pub inside: HashSet<Var>,
    /// Results of loops: the variable that was carried.
    pub carried: HashMap<Var, Var>,
    /// Tiles that are written where they are read, element by element.
    pub inlined: HashMap<Var, &'k Stmt>,
    pub uses: Uses,
    pub folding: Folding,
    /// Inside a loop that is pipelined, where every loop over elements is unrolled.
    pub pipelined: bool,
    /// What was written so far costs.
    pub cost: Cost,
    /// How often what is being written runs in a launch.
    pub times: f64,
    /// Elements that are computed at once.
    pub copies: f64,
    pub blocks: &'k Blocks,
    /// Known numbers, of an iteration in the middle of a loop.
    pub known: HashMap<Var, i64>,
    pub text: String,
    pub depth: usize,
}

/// Writes a kernel that holds no elementary functions.
pub fn write(
    kernel: &Kernel,
    name: &str,
    folding: Folding,
    lengths: &[Option<u64>],
) -> Result<String, Error> {
    write_counted(kernel, name, folding, &Blocks::default(), lengths).map(|(text, _)| text)
}

/// Blocks of a launch, one of which stands for all.
#[derive(Clone, Debug, Default)]
pub struct Blocks {
    /// Size parameters by position, where they are known.
    pub sizes: Vec<Option<i64>>,
    /// The position of that one.
    pub at: Vec<i64>,
    /// How many they are.
    pub count: f64,
}

/// The same, and what these blocks cost.
pub fn write_counted<'k>(
    kernel: &'k Kernel,
    name: &str,
    folding: Folding,
    blocks: &'k Blocks,
    lengths: &[Option<u64>],
) -> Result<(String, Cost), Error> {
    let mut uses = Uses::new();
    count(&kernel.body, &mut uses);
    let mut fun = Fun {
        kernel,
        views: HashMap::new(),
        inside: HashSet::new(),
        carried: HashMap::new(),
        inlined: HashMap::new(),
        uses,
        folding,
        pipelined: false,
        cost: Cost::default(),
        times: blocks.count,
        copies: 1.0,
        blocks,
        known: HashMap::new(),
        text: String::new(),
        depth: 0,
    };
    let params: Vec<String> = (0..kernel.params.len())
        .map(|i| fun.declared_param(i, lengths.get(i).copied().flatten()))
        .collect();
    fun.open(&format!("static void {name}({})", params.join(", ")));
    for (i, scratch) in kernel.scratch.iter().enumerate() {
        let name = fun.buffer(Buf((kernel.params.len() + i) as u32));
        fun.line(&format!(
            "{} {name}[{}];",
            storage(scratch.elem),
            scratch.len
        ));
    }
    for (axis, extent) in kernel.grid.iter().enumerate() {
        let end = match extent {
            Extent::Const(n) => n.to_string(),
            Extent::Param { param, divisor } => {
                format!("lp::tiles({}, {divisor})", fun.param(*param))
            }
        };
        fun.open(&format!(
            "for (int64_t g{axis} = 0; g{axis} < {end}; ++g{axis})"
        ));
    }
    if !kernel.grid.is_empty() && folding::is_pipelined(kernel, &kernel.body) {
        fun.pipeline(1.0);
        fun.pipelined = true;
    }
    fun.body(&kernel.body)?;
    for _ in &kernel.grid {
        fun.close();
    }
    fun.close();
    let scratch = kernel.scratch.iter();
    let bits = scratch.map(|s| f64::from(s.len) * 8.0 * s.elem.size_bytes() as f64);
    fun.cost.scratch_bits = bits.sum();
    fun.cost.cycles += fun.cost.iterations;
    Ok((fun.text, fun.cost))
}

/// Whether an operation only says where elements are, or what they all are.
pub fn is_view(op: &Op) -> bool {
    matches!(
        op,
        Op::Const(_)
            | Op::Iota
            | Op::Grid(_)
            | Op::Size(_)
            | Op::Broadcast { .. }
            | Op::Transpose(_)
    )
}

impl<'k> Fun<'k> {
    pub fn unsupported(&self, what: String) -> Error {
        Error::Unsupported {
            kernel: self.kernel.name.clone(),
            what,
        }
    }

    /// The variable that holds a value.
    pub fn name(&self, v: Var) -> String {
        format!("v{}", self.carried.get(&v).unwrap_or(&v).0)
    }

    /// The value that a view is of.
    pub fn root(&self, v: Var) -> Var {
        match self.views.get(&v) {
            Some(Op::Broadcast { x, .. } | Op::Transpose(x)) => self.root(*x),
            _ => *self.carried.get(&v).unwrap_or(&v),
        }
    }

    /// Whether elements of a value are those of another one at other places.
    pub fn is_moved(&self, v: Var) -> bool {
        match self.views.get(&v) {
            Some(Op::Transpose(_)) => true,
            Some(Op::Broadcast { x, .. }) => {
                let (from, to) = (&self.kernel.ty(*x).shape, &self.kernel.ty(v).shape);
                (!from.is_empty() && from != to) || self.is_moved(*x)
            }
            _ => false,
        }
    }

    pub fn param(&self, index: u32) -> String {
        let name = match self.kernel.params.get(index as usize) {
            Some(Param::Buffer { name, .. } | Param::Size { name }) => name.as_str(),
            None => "",
        };
        let name: String = name
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
            .collect();
        let letter = name.starts_with(|c: char| c.is_ascii_alphabetic());
        format!("{}{name}_{index}", if letter { "" } else { "p" })
    }

    fn declared_param(&self, index: usize, len: Option<u64>) -> String {
        let name = self.param(index as u32);
        match &self.kernel.params[index] {
            Param::Buffer { elem, written, .. } => {
                let constant = if *written { "" } else { "const " };
                let elem = storage(*elem);
                match len {
                    Some(len) => format!("{constant}{elem} {name}[{len}]"),
                    None => format!("{constant}{elem} *{name}"),
                }
            }
            Param::Size { .. } => format!("int64_t {name}"),
        }
    }

    pub fn buffer(&self, buf: Buf) -> String {
        match (buf.0 as usize).checked_sub(self.kernel.params.len()) {
            Some(scratch) => format!("scratch_{scratch}"),
            None => self.param(buf.0),
        }
    }

    pub fn line(&mut self, text: &str) {
        let _ = writeln!(self.text, "{:1$}{text}", "", 2 * self.depth);
    }

    /// Pragmas stand at the beginning of a line, as the vendor's documentation has them.
    pub fn pragma(&mut self, text: &str) {
        let _ = writeln!(self.text, "#pragma HLS {text}");
    }

    /// The loop just opened starts an iteration in every cycle; the simulation counts them.
    pub fn pipeline(&mut self, entered: f64) {
        self.pragma("PIPELINE II=1");
        self.line("LP_CYCLE();");
        self.cost.iterations += self.times;
        self.cost.cycles += entered * FILL;
    }

    /// The same of a loop that is unrolled by a factor.
    fn pipeline_by(&mut self, factor: u32, place: &[String]) {
        self.pragma("PIPELINE II=1");
        self.cost.iterations += self.times;
        if let Some(i) = place.last() {
            self.line(&format!("if ({i} % {factor} == 0) LP_CYCLE();"));
        }
    }

    pub fn open(&mut self, head: &str) {
        self.line(&format!("{head} {{"));
        self.depth += 1;
    }

    pub fn close(&mut self) {
        self.depth -= 1;
        self.line("}");
    }

    /// Declares a variable for a value.
    pub fn declare(&mut self, name: &str, ty: &TileType) {
        let dims: String = ty.shape.iter().map(|n| format!("[{n}]")).collect();
        self.line(&format!("{} {name}{dims};", value(ty.elem)));
        let rank = ty.shape.len();
        if rank == 0 {
            return;
        }
        let kind = match ty.len() <= folding::REGISTERS {
            true => "complete dim=0".to_owned(),
            false => {
                let banks = self.folding.columns(ty.shape[rank - 1]);
                format!("cyclic factor={banks} dim={rank}")
            }
        };
        self.pragma(&format!("ARRAY_PARTITION variable={name} type={kind}"));
    }

    /// Loops over the elements of a shape; `write` writes what is done at a place. A scalar's place needs no loop.
    pub fn elements(
        &mut self,
        shape: &[u32],
        write: &mut dyn FnMut(&mut Fun<'k>, &[String]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let place: Vec<String> = PLACE[..shape.len()].iter().map(|&s| s.to_owned()).collect();
        let unrolled = self.pipelined || folding::is_unrolled(shape);
        for (n, i) in shape.iter().zip(&place) {
            self.open(&format!("for (int {i} = 0; {i} < {n}; ++{i})"));
            if unrolled {
                self.pragma("UNROLL");
            }
        }
        let (times, copies) = (self.times, self.copies);
        let len = f64::from(shape.iter().product::<u32>());
        if unrolled {
            self.copies *= len;
            // In a pipeline it is a stage of that; elsewhere a step of its own.
            self.cost.cycles += if self.pipelined { 0.0 } else { times };
        } else {
            let lanes = self.folding.lanes(shape);
            self.copies *= f64::from(lanes);
            self.times *= len / f64::from(lanes);
            self.cost.cycles += times * FILL;
            self.pragma(&format!("UNROLL factor={lanes}"));
            self.pipeline_by(lanes, &place);
        }
        write(self, &place)?;
        shape.iter().for_each(|_| self.close());
        (self.times, self.copies) = (times, copies);
        Ok(())
    }

    fn body(&mut self, body: &'k [Stmt]) -> Result<(), Error> {
        let mut group = Group::default();
        for stmt in body {
            let first = stmt.results.first().copied();
            match (&stmt.op, first) {
                (op, Some(result)) if is_view(op) => {
                    self.views.insert(result, op);
                }
                (Op::Store { .. } | Op::For { .. } | Op::If { .. }, _) => {
                    self.flush(&mut group)?;
                    self.control(stmt)?;
                }
                (Op::Reduce { kind, x, axis }, Some(result)) => {
                    self.flush(&mut group)?;
                    self.reduce(*kind, *x, *axis, result)?;
                }
                (Op::Dot { acc, a, b }, Some(result)) => {
                    self.flush(&mut group)?;
                    self.dot([*acc, *a, *b], result)?;
                }
                (_, Some(result)) => {
                    let shape = &self.kernel.ty(result).shape;
                    if shape.is_empty() {
                        // A scalar depends on no element that is still to be computed.
                        self.define(stmt, result, &[])?;
                        continue;
                    }
                    if !group.takes(self, stmt, shape) {
                        self.flush(&mut group)?;
                    }
                    group.shape.clone_from(shape);
                    group.stmts.push(stmt);
                }
                (op, None) => return Err(self.unsupported(format!("{op:?} without a result"))),
            }
        }
        self.flush(&mut group)
    }

    /// Writes the loop of a group.
    fn flush(&mut self, group: &mut Group<'k>) -> Result<(), Error> {
        let group = std::mem::take(group);
        if group.stmts.is_empty() {
            return Ok(());
        }
        let escaping = group.escaping(&self.uses);
        for &v in &escaping {
            self.declare(&self.name(v), &self.kernel.ty(v).clone());
        }
        self.elements(&group.shape, &mut |fun, place| {
            for stmt in &group.stmts {
                let Some(&result) = stmt.results.first() else {
                    continue;
                };
                if escaping.contains(&result) {
                    fun.charge(&stmt.op, result);
                    let value = fun.value(stmt, result, place)?;
                    let target = fun.at(result, place);
                    fun.line(&format!("{target} = {value};"));
                } else {
                    fun.define(stmt, result, place)?;
                    fun.inside.insert(result);
                }
            }
            Ok(())
        })?;
        self.inside.clear();
        Ok(())
    }

    /// Defines a scalar: a value, or a tile's element that only this loop reads.
    pub fn define(&mut self, stmt: &'k Stmt, result: Var, place: &[String]) -> Result<(), Error> {
        self.charge(&stmt.op, result);
        if place.is_empty() {
            self.know(&stmt.op, result);
        }
        let value_text = self.value(stmt, result, place)?;
        let ty = value(self.kernel.ty(result).elem);
        let name = self.name(result);
        self.line(&format!("const {ty} {name} = {value_text};"));
        Ok(())
    }

    fn control(&mut self, stmt: &'k Stmt) -> Result<(), Error> {
        match &stmt.op {
            Op::Store { buf, base, axes, x } => {
                let ty = self.kernel.ty(*x).clone();
                let stored = self.kernel.buf_elem(*buf).map(storage).unwrap_or_default();
                let narrow = stored != value(ty.elem);
                self.elements(&ty.shape, &mut |fun, place| {
                    fun.charge(&stmt.op, *x);
                    fun.cost.access(buf.0, fun.copies as u32);
                    let to = format!("{}[{}]", fun.buffer(*buf), fun.address(*base, axes, place));
                    let x = fun.at(*x, place);
                    let x = if narrow {
                        format!("({stored})(int)({x})")
                    } else {
                        x
                    };
                    let guards = fun.guards(axes, place);
                    let guard = match guards.is_empty() {
                        true => String::new(),
                        false => format!("if ({}) ", guards.join(" && ")),
                    };
                    fun.line(&format!("{guard}{to} = {x};"));
                    Ok(())
                })
            }
            Op::For {
                index,
                begin,
                end,
                step,
                carried,
                body,
                yields,
            } => {
                for (inner, initial) in carried {
                    self.declare(&self.name(*inner), &self.kernel.ty(*inner).clone());
                    self.copy(&self.name(*inner), *initial)?;
                }
                let times = self.times;
                let range = (self.number(*begin), self.number(*end));
                let trips = match range {
                    (Some(b), Some(e)) => folding::trips(b, e, *step),
                    _ => folding::GUESS,
                };
                if let (Some(b), _) = range {
                    let middle = (trips - 1).max(0) / 2 * i64::from(*step);
                    self.known.insert(*index, b.wrapping_add(middle));
                }
                self.times *= trips as f64;
                let (begin, end) = (self.scalar(*begin), self.scalar(*end));
                let i = self.name(*index);
                self.open(&format!(
                    "for (int64_t {i} = {begin}; {i} < {end}; {i} += {step})"
                ));
                let outside = self.pipelined;
                if let Some(product) = Product::of(self.kernel, &stmt.op) {
                    self.product(&product, body, times)?;
                } else {
                    if !outside && folding::is_pipelined(self.kernel, body) {
                        self.pipeline(times);
                        self.pipelined = true;
                    } else {
                        self.cost.cycles += self.times;
                    }
                    self.body(body)?;
                    self.yields(carried, yields)?;
                }
                self.pipelined = outside;
                self.times = times;
                self.close();
                for (&result, (inner, _)) in stmt.results.iter().zip(carried) {
                    let inner = *self.carried.get(inner).unwrap_or(inner);
                    self.carried.insert(result, inner);
                }
                Ok(())
            }
            Op::If {
                condition,
                then_body,
                then_yields,
                else_body,
                else_yields,
            } => {
                for &r in &stmt.results {
                    self.declare(&self.name(r), &self.kernel.ty(r).clone());
                }
                self.open(&format!("if ({})", self.scalar(*condition)));
                for (body, yields, last) in [
                    (then_body, then_yields, false),
                    (else_body, else_yields, true),
                ] {
                    self.body(body)?;
                    for (&r, &y) in stmt.results.iter().zip(yields) {
                        self.copy(&self.name(r), y)?;
                    }
                    if last || (else_body.is_empty() && stmt.results.is_empty()) {
                        break;
                    }
                    self.depth -= 1;
                    self.open("} else");
                }
                self.close();
                Ok(())
            }
            op => Err(self.unsupported(format!("{op:?}"))),
        }
    }

    /// The next values of what a loop carries. Where one is another's value now, all are read before any is written.
    fn yields(&mut self, carried: &[(Var, Var)], yields: &[Var]) -> Result<(), Error> {
        let next: Vec<(Var, Var)> = carried
            .iter()
            .zip(yields)
            .map(|(c, &y)| (c.0, y))
            .filter(|(c, y)| c != y)
            .collect();
        let is_carried = |v: Var| carried.iter().any(|c| c.0 == v);
        if !next.iter().any(|(_, y)| is_carried(self.root(*y))) {
            return next
                .iter()
                .try_for_each(|(c, y)| self.copy(&self.name(*c), *y));
        }
        for (c, y) in &next {
            let name = format!("next_{}", self.name(*c));
            self.declare(&name, &self.kernel.ty(*c).clone());
            self.copy(&name, *y)?;
        }
        for (c, _) in &next {
            let (name, shape) = (self.name(*c), self.kernel.ty(*c).shape.clone());
            self.elements(&shape, &mut |fun, place| {
                let at: String = place.iter().map(|i| format!("[{i}]")).collect();
                fun.line(&format!("{name}{at} = next_{name}{at};"));
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Copies a value into a variable.
    fn copy(&mut self, to: &str, from: Var) -> Result<(), Error> {
        let shape = self.kernel.ty(from).shape.clone();
        self.elements(&shape, &mut |fun, place| {
            let at: String = place.iter().map(|i| format!("[{i}]")).collect();
            let from = fun.at(from, place);
            fun.line(&format!("{to}{at} = {from};"));
            Ok(())
        })
    }
}
