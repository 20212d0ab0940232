//! How much work a launch of a kernel is, counted from the kernel itself.
//!
//! A kernel's statements are read once with the numbers that its launch gives it: index arithmetic is computed, loops count as
//! often as they run, and what a micro-kernel takes over counts as its call. So whatever can be lowered can be counted, and
//! no schedule states its costs a second time. Of the blocks of a grid, and of the iterations of a loop, one in the middle stands
//! for all but the last, which may have less to do.

use super::function;
use lapidary_ir::kernel::contraction::{self, Facts, Kind};
use lapidary_ir::kernel::packed::{Batch, Bits, Gemv, Halves, TwoOfFour, Weights};
use lapidary_ir::kernel::sparse::{self, Form};
use lapidary_ir::kernel::{
    At, Axis, Binary, Buf, Kernel, Literal, Op, Stmt, TileElem, TileType, Unary, Var,
};
use lapidary_ir::kernel::{blocks, map, moves, softmax, widen};
use lapidary_ir::speeds::Work;
use lapidary_ir::target::Target;
use std::collections::{BTreeMap, HashMap};

/// Work of a launch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Amounts {
    /// Units of each kind at each shape.
    pub work: Vec<(Work, u32, f64)>,
    /// Bytes that are read or written of each parameter; infinite where a micro-kernel reads what it needs.
    pub touched: BTreeMap<u32, f64>,
}

impl Amounts {
    fn add(&mut self, work: Work, shape: u32, units: f64) {
        match self.work.iter_mut().find(|w| (w.0, w.1) == (work, shape)) {
            Some(known) => known.2 += units,
            None => self.work.push((work, shape, units)),
        }
    }

    /// Units of a kind.
    pub fn units(&self, work: Work) -> f64 {
        self.work.iter().filter(|w| w.0 == work).map(|w| w.2).sum()
    }
}

/// A launch, as the kernel sees it.
#[derive(Clone, Debug)]
pub struct Launch<'a> {
    /// The kernel.
    pub kernel: &'a Kernel,
    /// Its size parameters, by position; others are none.
    pub sizes: &'a [Option<i64>],
    /// Operations of the whole launch, as the host program states them: how many entries sparse weights have is not in kernels.
    pub flops: f64,
}

/// Extent of a loop whose ends are known only at run time.
const GUESS: f64 = 16.0;

/// Most of a grid's axes that are looked at from both ends.
const AXES: usize = 3;

/// Counts a launch.
pub fn count(launch: &Launch, target: &Target) -> Amounts {
    let kernel = launch.kernel;
    let mut walk = Walk {
        facts: Facts::new(kernel),
        sizes: launch.sizes,
        values: HashMap::new(),
        grid: vec![],
        vector_bytes: f64::from(target.vector_bytes.max(1)),
        micro_kernels: target.micro_kernels,
        amounts: Amounts::default(),
        sparse: None,
    };
    let extents: Vec<i64> = kernel.grid.iter().map(|e| walk.extent(e)).collect();
    if extents.contains(&0) {
        return walk.amounts;
    }
    if let Some((work, shape, units)) = packed_product(kernel, launch.sizes) {
        walk.amounts.add(work, shape, units);
        let buffers = (0..kernel.params.len() as u32).map(Buf);
        walk.whole(&buffers.collect::<Vec<_>>());
        return walk.amounts;
    }
    for ends in 0..1u32 << extents.len().min(AXES) {
        let (mut times, mut at) = (1.0, vec![]);
        for (i, &n) in extents.iter().enumerate() {
            let last = i < AXES && ends >> i & 1 == 1;
            times *= match (i < AXES, last) {
                (true, true) => 1.0,
                (true, false) => (n - 1) as f64,
                (false, _) => n as f64,
            };
            at.push(if last { n - 1 } else { (n - 1) / 2 });
        }
        if times > 0.0 {
            walk.grid = at;
            walk.values.clear();
            walk.statements(&kernel.body, times);
        }
    }
    if let Some(found) = &walk.sparse {
        // Lanes that do not exist are computed with the others.
        let factor = found.lanes / found.present.max(1.0);
        let (work, shape) = of_form(found.form);
        let units = launch.flops * factor;
        walk.amounts.add(work, shape, units);
    }
    walk.amounts
}

/// Sparse products that were met.
struct Found {
    form: Form,
    lanes: f64,
    present: f64,
}

fn of_form(form: Form) -> (Work, u32) {
    match form {
        Form::Numbers(0) => (Work::Sparse, 0),
        Form::Numbers(1) => (Work::SparseFew, 0),
        Form::Numbers(_) => (Work::SparseColumn, 0),
        Form::Codes(lanes) => (Work::SparseCodes, lanes),
    }
}

struct Walk<'a> {
    facts: Facts<'a>,
    sizes: &'a [Option<i64>],
    /// Scalars whose value is known where the walk is.
    values: HashMap<Var, i64>,
    grid: Vec<i64>,
    vector_bytes: f64,
    micro_kernels: bool,
    amounts: Amounts,
    sparse: Option<Found>,
}

impl<'a> Walk<'a> {
    fn extent(&self, extent: &lapidary_ir::kernel::Extent) -> i64 {
        use lapidary_ir::kernel::Extent;
        match extent {
            Extent::Const(n) => i64::try_from(*n).unwrap_or(i64::MAX),
            Extent::Param { param, divisor } => {
                let size = self.sizes.get(*param as usize).copied().flatten();
                size.map_or(1, |n| {
                    (n.max(0) as u64).div_ceil(u64::from((*divisor).max(1))) as i64
                })
            }
        }
    }

    fn statements(&mut self, body: &'a [Stmt], times: f64) {
        let mut i = 0;
        while i < body.len() {
            let (stmt, rest) = (&body[i], &body[i + 1..]);
            i += match self.called(stmt, rest, times) {
                Some(done) => done,
                None => {
                    self.statement(stmt, times);
                    1
                }
            };
        }
    }

    /// Counts what a micro-kernel takes over; how many statements that are.
    fn called(&mut self, stmt: &'a Stmt, rest: &'a [Stmt], times: f64) -> Option<usize> {
        if !self.micro_kernels {
            return None;
        }
        if let Some(sums) = contraction::recognise_sums(&self.facts, stmt, rest) {
            self.before(&sums.tail, rest, times);
            let rows = self.present(sums.tail.c_rows.valid, sums.rows);
            let columns = self.present(sums.tail.cols, sums.width);
            self.call(times);
            // Sums are turned and rounded lane by lane.
            self.amounts
                .add(Work::Scalar, 0, 2.0 * rows * columns * times);
            self.whole(&[sums.tail.c]);
            return Some(sums.tail.last + 2);
        }
        if let Some(plan) = contraction::plan(&self.facts, stmt, rest) {
            if let Some(tail) = &plan.tail {
                self.before(tail, rest, times);
                self.whole(&[tail.c]);
            }
            self.contraction(&plan, times);
            return Some(plan.statements());
        }
        self.panel(stmt, times).then_some(1)
    }

    /// Statements up to the end of an epilogue that a micro-kernel does not take over.
    fn before(&mut self, tail: &contraction::EpilogueMatch<'a>, rest: &'a [Stmt], times: f64) {
        for (i, s) in rest[..=tail.last].iter().enumerate() {
            if !tail.replaced.contains(&i) {
                self.statements(std::slice::from_ref(s), times);
            }
        }
    }

    fn contraction(&mut self, plan: &contraction::Plan<'a>, times: f64) {
        let (found, tail) = (&plan.found, plan.tail.as_ref());
        let rows = self.present(tail.and_then(|t| t.c_rows.valid), found.rows);
        if rows == 0.0 {
            return;
        }
        let taps = f64::from(found.taps);
        if let Some((index, prefix)) = found.tap {
            self.values.insert(index, 0);
            self.statements(prefix, times * taps);
        }
        let k = self.value(found.k).map_or(GUESS, |k| k.max(0) as f64);
        let (pointers, columns) = (
            rows * taps,
            self.present(tail.and_then(|t| t.cols), found.width()),
        );
        let (work, shape, units) = match (found.kind, found.window) {
            (_, Some(_)) => {
                let codes =
                    self.facts.kernel().buf_elem(found.a) == Some(lapidary_ir::ElemType::U8);
                let work = if codes {
                    Work::WindowCodes
                } else {
                    Work::Window
                };
                (work, 0, 2.0 * rows * taps * columns)
            }
            (kind, None) => {
                let work = match kind {
                    Kind::F32 => Work::Gemm,
                    Kind::Bf16 => Work::GemmBf16,
                    Kind::I8 => Work::GemmCodes,
                };
                (
                    work,
                    rows as u32,
                    2.0 * rows * taps * k * f64::from(found.panel),
                )
            }
        };
        self.call(times);
        self.amounts.add(Work::Scalar, 0, pointers * times);
        self.amounts.add(Work::Store, 0, rows * columns * times);
        self.amounts.add(work, shape, units * times);
        self.whole(&[found.a, found.b]);
    }

    /// Counts a loop that a micro-kernel takes over; false if it is none.
    fn panel(&mut self, stmt: &'a Stmt, times: f64) -> bool {
        let between = |s: &Self, a, b| match (s.value(a), s.value(b)) {
            (Some(a), Some(b)) => (b - a).max(0) as f64,
            _ => GUESS,
        };
        let length = |s: &Self, v| s.value(v).map_or(GUESS, |v| v.max(0) as f64);
        let (work, shape, units) = if let Some(t) = sparse::recognise(&self.facts, stmt) {
            let [_, lanes] = t.form.shape();
            let present = self.present(t.cols, lanes);
            // Vectors of codes that hold no lane are left out.
            let computed = match t.form {
                Form::Codes(_) => (present / 16.0).ceil() * 16.0,
                Form::Numbers(_) => f64::from(lanes),
            };
            let found = self.sparse.get_or_insert(Found {
                form: t.form,
                lanes: 0.0,
                present: 0.0,
            });
            found.lanes += computed * times;
            found.present += present * times;
            let m = t.matrix;
            self.whole(&[m.values, m.offsets, m.starts, m.rows, t.x.0, t.c.buf]);
            self.call(times);
            return true;
        } else if let Some(t) = blocks::recognise(&self.facts, stmt) {
            let (rows, block) = (between(self, t.first, t.end), f64::from(t.format.block));
            let units = 2.0 * rows * block * length(self, t.blocks) * f64::from(blocks::PANEL);
            self.whole(&[t.a.buf, t.w.0, t.c.buf]);
            (of_blocks(t.format), rows as u32, units)
        } else if let Some(t) = blocks::recognise_round(&self.facts, stmt) {
            self.whole(&[t.x.0, t.y.0]);
            (
                Work::Round,
                0,
                between(self, t.first, t.end) * f64::from(t.block),
            )
        } else if let Some(t) = blocks::recognise_unpack(&self.facts, stmt) {
            let numbers = length(self, t.blocks) * f64::from(t.format.block * blocks::PANEL);
            let work = match t.format.bits {
                2 => Work::Unpack2,
                3 | 4 => Work::Unpack4,
                _ => Work::Unpack8,
            };
            self.whole(&[t.w.0]);
            (work, t.format.block, numbers)
        } else if let Some(m) = moves::recognise(&self.facts, stmt) {
            let width = self.facts.ty(m.at).shape.first().copied().unwrap_or(1);
            let columns = self.present(m.cols, width);
            self.whole(&[m.src.0, m.dst.0]);
            let work = if self.value(m.src.2) == Some(1) {
                Work::Move
            } else {
                Work::Copy
            };
            (work, 0, length(self, m.rows) * columns)
        } else if let Some(m) = map::recognise(&self.facts, stmt, &map::CALLED.map(|a| a.0)) {
            let known = map::CALLED.iter().find(|a| a.0 == m.activation);
            let Some(work) = known.and_then(|a| function(a.1)) else {
                return false;
            };
            self.whole(&[m.src.0, m.dst.0]);
            (work, 0, length(self, m.n))
        } else if let Some(x) = softmax::recognise(&self.facts, stmt) {
            let mask: Vec<Buf> = x.mask.iter().map(|m| m.buf).collect();
            self.whole(&mask);
            (Work::Exp, 0, length(self, x.rows) * length(self, x.here))
        } else if let Some(w) = widen::recognise(&self.facts, stmt) {
            self.whole(&[w.src.0, w.dst.0]);
            (Work::Copy, 0, length(self, w.n))
        } else {
            return false;
        };
        self.call(times);
        self.amounts.add(work, shape, units * times);
        true
    }

    fn call(&mut self, times: f64) {
        self.amounts.add(Work::Call, 0, times);
    }

    fn statement(&mut self, stmt: &'a Stmt, times: f64) {
        match &stmt.op {
            Op::For {
                index,
                begin,
                end,
                step,
                body,
                ..
            } => {
                let step = i64::from(*step).max(1);
                let ends = self.value(*begin).zip(self.value(*end));
                let Some((begin, end)) = ends else {
                    self.set(*index, None);
                    return self.statements(body, times * GUESS);
                };
                let n = ((end - begin).max(0) as u64).div_ceil(step as u64) as i64;
                // Only the last iteration of a loop by more than one may be cut.
                let (middle, last) = if step > 1 { (n - 1, 1.min(n)) } else { (n, 0) };
                for (at, n) in [((n - 1).max(0) / 2, middle), (n - 1, last)] {
                    if n > 0 {
                        self.values.insert(*index, begin + at * step);
                        self.statements(body, times * n as f64);
                    }
                }
            }
            Op::If {
                condition,
                then_body,
                else_body,
                ..
            } => {
                let share = match self.value(*condition) {
                    Some(0) => 0.0,
                    Some(_) => 1.0,
                    None => 0.5,
                };
                for (body, share) in [(then_body, share), (else_body, 1.0 - share)] {
                    if share > 0.0 {
                        self.statements(body, times * share);
                    }
                }
            }
            op => {
                if let &[result] = &stmt.results[..] {
                    let value = self.evaluate(result, op);
                    self.set(result, value);
                }
                self.plain(stmt, times);
            }
        }
    }

    /// Counts an operation of generated code.
    fn plain(&mut self, stmt: &Stmt, times: f64) {
        let ty = match (&stmt.op, stmt.results.first()) {
            (Op::Store { x, .. }, _) => self.facts.ty(*x),
            (Op::Const(_) | Op::Grid(_) | Op::Size(_) | Op::Iota, _) | (_, None) => return,
            (_, Some(result)) => self.facts.ty(*result),
        };
        let n = f64::from(ty.len());
        let vectors = self.vectors(ty);
        let single = ty.shape.is_empty() || ty.elem == TileElem::Index;
        let arithmetic = |cost: f64| match single {
            true => (Work::Scalar, n * cost),
            false => (Work::Vector, vectors * cost),
        };
        let (work, units) = match &stmt.op {
            Op::Load { buf, axes, .. } | Op::Store { buf, axes, .. } => {
                let elem = self.facts.kernel().buf_elem(*buf);
                let bytes = elem.map_or(4, |e| e.size_bytes()) as f64;
                self.touch(*buf, n * bytes * times);
                match self.consecutive(axes) {
                    true if !single => (Work::Vector, vectors),
                    _ => (Work::Scalar, 2.0 * n),
                }
            }
            Op::Unary(f, _) => match map::function_of(*f, ty).filter(|_| self.micro_kernels) {
                Some(number) => {
                    self.call(times);
                    (function(number).unwrap_or(Work::Exp), n)
                }
                None => arithmetic(unary(*f)),
            },
            Op::Binary(f, ..) => arithmetic(binary(*f, ty)),
            Op::Transpose(_) => (Work::Scalar, n),
            Op::Reduce { x, .. } => (Work::Vector, self.vectors(self.facts.ty(*x)) + 2.0),
            Op::Dot { a, .. } => {
                let inner = self.facts.ty(*a).shape.last().copied().unwrap_or(1);
                (Work::Vector, vectors * f64::from(inner))
            }
            Op::Unpack { .. } => arithmetic(2.0),
            _ => arithmetic(1.0),
        };
        self.amounts.add(work, 0, units * times);
    }

    /// Vector registers that a tile takes; narrow elements are held as numbers of 32 bits.
    fn vectors(&self, ty: &TileType) -> f64 {
        let bytes = match ty.elem {
            TileElem::Index => 8,
            TileElem::Elem(e) => e.size_bytes().max(4),
        };
        let inner = ty.shape.last().copied().unwrap_or(1);
        let outer = ty.len() / inner.max(1);
        f64::from(outer) * (f64::from(inner) * bytes as f64 / self.vector_bytes).ceil()
    }

    /// True if elements that follow each other in a tile do so in memory, and all of them exist.
    fn consecutive(&self, axes: &[Axis]) -> bool {
        axes.last().is_none_or(|a| {
            matches!(a.at, At::Stride(0 | 1)) && a.valid.is_none() && a.mask.is_none()
        })
    }

    fn touch(&mut self, buf: Buf, bytes: f64) {
        if (buf.0 as usize) < self.facts.kernel().params.len() {
            *self.amounts.touched.entry(buf.0).or_default() += bytes;
        }
    }

    /// A micro-kernel reads or writes what it needs of these.
    fn whole(&mut self, bufs: &[Buf]) {
        bufs.iter().for_each(|&buf| self.touch(buf, f64::INFINITY));
    }

    /// How many of `all` exist.
    fn present(&self, valid: Option<Var>, all: u32) -> f64 {
        let valid = valid.and_then(|v| self.value(v));
        valid.map_or(f64::from(all), |n| n.clamp(0, i64::from(all)) as f64)
    }

    fn set(&mut self, v: Var, value: Option<i64>) {
        match value {
            Some(value) => self.values.insert(v, value),
            // What it was in another iteration.
            None => self.values.remove(&v),
        };
    }

    fn value(&self, v: Var) -> Option<i64> {
        self.values.get(&v).copied().or_else(|| self.facts.int(v))
    }

    /// The value of a scalar of whole numbers.
    fn evaluate(&self, result: Var, op: &Op) -> Option<i64> {
        if !self.facts.ty(result).shape.is_empty() {
            return None;
        }
        match op {
            Op::Const(Literal::Int(i)) => Some(*i),
            Op::Grid(axis) => self.grid.get(*axis as usize).copied(),
            Op::Size(param) => self.sizes.get(*param as usize).copied().flatten(),
            Op::Select(c, a, b) => match self.value(*c)? {
                0 => self.value(*b),
                _ => self.value(*a),
            },
            Op::Cast(x) => self.value(*x),
            Op::Binary(f, a, b) => whole(*f, self.value(*a)?, self.value(*b)?),
            _ => None,
        }
    }
}

/// A function of whole numbers.
fn whole(f: Binary, a: i64, b: i64) -> Option<i64> {
    let is = |yes: bool| Some(i64::from(yes));
    match f {
        Binary::Add => a.checked_add(b),
        Binary::Sub => a.checked_sub(b),
        Binary::Mul => a.checked_mul(b),
        Binary::Min => Some(a.min(b)),
        Binary::Max => Some(a.max(b)),
        Binary::Div => a.checked_div(b),
        Binary::FloorDiv => a.checked_div_euclid(b).filter(|_| b > 0),
        Binary::Mod => a.checked_rem_euclid(b).filter(|_| b > 0),
        Binary::And => Some(a & b),
        Binary::Or => Some(a | b),
        Binary::Eq => is(a == b),
        Binary::Ne => is(a != b),
        Binary::Lt => is(a < b),
        Binary::Le => is(a <= b),
        Binary::Gt => is(a > b),
        Binary::Ge => is(a >= b),
        _ => None,
    }
}

/// The work of a kernel that is canonical as a whole: rows that are not there are computed with the others.
fn packed_product(kernel: &Kernel, sizes: &[Option<i64>]) -> Option<(Work, u32, f64)> {
    let given = sizes.last().copied().flatten();
    let tiles = |m: Option<u32>, tile: u32| {
        let m = m.map(i64::from).or(given).unwrap_or(1).max(0);
        (m as u64).div_ceil(u64::from(tile)) as f64 * f64::from(tile)
    };
    let of_codes = |w: &Weights, m, tile| {
        let work = match w.bits() {
            Bits::Four => Work::Blocks4,
            Bits::Eight => Work::Blocks8,
        };
        let codes = w.code_bytes() as f64 * 8.0 / f64::from(w.bits().count());
        (work, tile, 2.0 * tiles(m, tile) * codes)
    };
    if let Some(g) = Gemv::of(kernel) {
        return Some(of_codes(&g.weights, g.m, g.batch));
    }
    if let Some(b) = Batch::of(kernel) {
        return Some(of_codes(&b.weights, b.m, b.tile()));
    }
    if let Some(s) = TwoOfFour::of(kernel) {
        // Tensor cores leave out what is not there.
        let (work, tile, units) = of_codes(&s.batch.weights, s.batch.m, s.batch.tile());
        return Some((work, tile, units / 2.0));
    }
    let h = Halves::of(kernel)?;
    let units = 2.0 * tiles(h.m, h.tile()) * f64::from(h.n) * f64::from(h.k);
    // Tensor cores multiply them as they do batches of packed weights.
    Some((Work::Blocks8, h.tile(), units))
}

/// Codes of 3, 5 and 6 bits take as long as the next wider ones.
fn of_blocks(format: blocks::Format) -> Work {
    /// Blocks from this length on are long: their scales are a small part of the work.
    const LONG: u32 = 64;
    match (format.bits, format.block < LONG) {
        (2, false) => Work::Blocks2,
        (3 | 4, false) => Work::Blocks4,
        (_, false) => Work::Blocks8,
        (2, true) => Work::ShortBlocks2,
        (3 | 4, true) => Work::ShortBlocks4,
        (_, true) => Work::ShortBlocks8,
    }
}

/// Operations that a function takes where it is generated.
fn unary(f: Unary) -> f64 {
    match f {
        Unary::Neg | Unary::Abs | Unary::Not | Unary::BitNot | Unary::IsNan | Unary::IsInf => 1.0,
        Unary::Sign | Unary::Floor | Unary::Ceil | Unary::RoundEven | Unary::Trunc => 2.0,
        Unary::Sqrt | Unary::Reciprocal => 8.0,
        Unary::Exp | Unary::Tanh | Unary::Erf => 20.0,
        _ => 30.0,
    }
}

fn binary(f: Binary, ty: &TileType) -> f64 {
    let float = matches!(ty.elem, TileElem::Elem(e) if e.is_float());
    match f {
        Binary::Div if float => 8.0,
        Binary::Div | Binary::FloorDiv | Binary::Mod | Binary::Rem => 16.0,
        Binary::Pow | Binary::Atan2 => 60.0,
        Binary::Min | Binary::Max if float => 3.0,
        _ => 1.0,
    }
}
