//! Any bytes to a module: each byte decides something. Most nodes are typed by their op's rule, so that later
//! ones have something to stand on; some are left as they come, wrong in every way the tables allow.

use lapidary_ir::builder::infer_node;
use lapidary_ir::encodings::{affine, dense, int};
use lapidary_ir::ops::{AttrKind, Operand};
use lapidary_ir::tensor::count;
use lapidary_ir::types::MAX_DIM;
use lapidary_ir::verify::signature;
use lapidary_ir::{
    Attr, Attrs, Constant, Dim, ElemType, Module, NodeId, Op, RegionId, Tensor, Type, ValueId,
};
use std::cell::Cell;

/// Words that are attribute values of some op.
const WORDS: &[&str] = &[
    "",
    "SAME_UPPER",
    "SAME_LOWER",
    "VALID",
    "NOTSET",
    "constant",
    "reflect",
    "edge",
    "wrap",
    "linear",
    "cubic",
    "nearest",
    "half_pixel",
    "align_corners",
    "asymmetric",
    "floor",
    "ceil",
    "add",
    "mul",
    "max",
    "min",
    "none",
    "tanh",
    "relu",
    "ij,jk->ik",
    "...ij->...ji",
    "i,i->",
    "forward",
    "reverse",
    "bidirectional",
    "DCR",
    "CRD",
    "LEFT",
    "SUM",
    "BRANCH_LEQ",
    "bilinear",
    "zeros",
    "border",
    "mean",
    "sum",
];

/// Lengths, axes, sizes.
const INTS: &[i64] = &[
    0,
    1,
    2,
    3,
    4,
    -1,
    -2,
    8,
    1 << 31,
    1 << 40,
    i64::MAX,
    i64::MIN,
    -5,
    16,
];

/// Deepest region.
const MAX_DEPTH: usize = 4;

/// The module that these bytes describe.
pub fn module(data: &[u8]) -> Module {
    let mut g = Generator {
        data,
        at: 0,
        module: Module::new("fuzz"),
        visible: vec![],
        fresh: Cell::new(0),
        ops: Op::all().collect(),
        nodes_left: 48,
    };
    for i in 0..=g.below(3) {
        let ty = g.ty(0);
        let v = g.module.add_input(Module::TOP, &format!("x{i}"), ty);
        g.visible.push(v);
    }
    g.region(Module::TOP, 0);
    g.corrupt();
    g.module
}

struct Generator<'d> {
    data: &'d [u8],
    at: usize,
    module: Module,
    visible: Vec<ValueId>,
    fresh: Cell<u32>,
    ops: Vec<Op>,
    nodes_left: usize,
}

impl Generator<'_> {
    fn byte(&mut self) -> u8 {
        let byte = self.data.get(self.at).copied().unwrap_or(0);
        self.at += 1;
        byte
    }

    fn done(&self) -> bool {
        self.at >= self.data.len()
    }

    fn below(&mut self, n: usize) -> usize {
        let wide = if n > 256 {
            256 * usize::from(self.byte())
        } else {
            0
        };
        (wide + usize::from(self.byte())) % n.max(1)
    }

    /// True once in `n` times, never at the end of the bytes.
    fn rarely(&mut self, n: usize) -> bool {
        self.below(n) == n - 1
    }

    fn elem(&mut self) -> ElemType {
        let all = ElemType::ALL;
        match self.below(8) {
            0..=3 => ElemType::F32,
            4 => ElemType::I64,
            5 => ElemType::Bool,
            _ => all[self.below(all.len())],
        }
    }

    fn int(&mut self) -> i64 {
        INTS[self.below(INTS.len())]
    }

    fn dim(&mut self) -> Dim {
        match self.below(8) {
            0 => Dim::sym("N"),
            1 => Dim::sym("M") * Dim::sym("N"),
            2 => Dim::sym("N").floor_div(&Dim::from(self.int())),
            3 => Dim::from(self.int().clamp(0, MAX_DIM)),
            _ => Dim::from(1 + self.below(4)),
        }
    }

    fn ty(&mut self, depth: usize) -> Type {
        let elem = self.elem();
        match self.below(12) {
            11 if depth < 3 => Type::Sequence(Box::new(self.ty(depth + 1))),
            10 if depth < 3 => Type::Optional(Box::new(self.ty(depth + 1))),
            9 => Type::unranked(elem),
            _ => {
                let rank = self.below(5);
                let dims: Vec<Dim> = (0..rank).map(|_| self.dim()).collect();
                Type::tensor(elem, dims)
            }
        }
    }

    fn tensor(&mut self) -> Tensor {
        let elem = self.elem();
        let shape: Vec<usize> = (0..self.below(4)).map(|_| self.below(4)).collect();
        let n = count(&shape);
        if elem.is_float() {
            let values = (0..n).map(|_| f64::from(self.byte()) - 100.0).collect();
            return Tensor::from_f64(elem, shape, values);
        }
        if elem == ElemType::I64 {
            let values = (0..n).map(|_| i128::from(self.int())).collect();
            return Tensor::from_int(elem, shape, values);
        }
        match elem.int_range() {
            Some((lo, hi)) => {
                let values = (0..n)
                    .map(|_| (i128::from(self.byte()) - 8).clamp(lo, hi))
                    .collect();
                Tensor::from_int(elem, shape, values)
            }
            None => Tensor::zeros(elem, shape),
        }
    }

    fn constant(&mut self) -> ValueId {
        let codes = |g: &mut Self| {
            let (bits, rows, columns) = (1 + g.below(9), 1 + g.below(3), 1 + g.below(16));
            let bytes = (rows * columns * bits).div_ceil(8) + usize::from(g.rarely(8));
            let bytes: Vec<u8> = (0..bytes).map(|_| g.byte()).collect();
            let elem = if g.rarely(8) { g.elem() } else { ElemType::U8 };
            int::int(elem, bits as u32, vec![rows, columns], bytes.into())
        };
        let encoding = match self.below(8) {
            6 => codes(self),
            7 => {
                let (scale, codes) = (self.tensor(), codes(self));
                let zero = self.rarely(2).then(|| dense::from_tensor(&self.tensor()));
                affine::affine(self.elem(), dense::from_tensor(&scale), codes, zero)
            }
            _ => dense::from_tensor(&self.tensor()),
        };
        self.module.add_constant("", Constant::new(encoding))
    }

    fn value(&mut self) -> ValueId {
        match self.below(16) {
            0..=2 => self.constant(),
            n if n < 10 => {
                // One of the latest.
                let back = 1 + self.below(self.visible.len().clamp(1, 3));
                let at = self.visible.len().saturating_sub(back);
                self.visible.get(at).copied().unwrap_or(ValueId(0))
            }
            _ => {
                let at = self.below(self.visible.len());
                self.visible.get(at).copied().unwrap_or(ValueId(0))
            }
        }
    }

    fn attr(&mut self, kind: AttrKind) -> Attr {
        let n = self.below(5);
        match kind {
            AttrKind::Int => Attr::Int(self.int()),
            AttrKind::Ints => Attr::Ints((0..n).map(|_| self.int()).collect()),
            AttrKind::Float => Attr::Float(f32::from(self.byte()) / 16.0 - 4.0),
            AttrKind::Floats => Attr::Floats((0..n).map(|_| f32::from(self.byte())).collect()),
            AttrKind::Str => Attr::Str(WORDS[self.below(WORDS.len())].into()),
            AttrKind::Strs => Attr::Strs(
                (0..n)
                    .map(|_| WORDS[self.below(WORDS.len())].into())
                    .collect(),
            ),
            AttrKind::Elem => Attr::Elem(self.elem()),
            AttrKind::Type => Attr::Type(self.ty(0)),
            AttrKind::Tensor => Attr::Tensor(self.tensor()),
        }
    }

    /// Nodes and outputs of a region whose inputs are there.
    fn region(&mut self, region: RegionId, depth: usize) {
        let outer = self.visible.len();
        let n = if depth == 0 {
            self.nodes_left
        } else {
            self.below(5)
        };
        for _ in 0..n {
            if self.done() || self.nodes_left == 0 {
                break;
            }
            self.nodes_left -= 1;
            self.node(region, depth);
        }
        let outputs: Vec<ValueId> = (0..=self.below(4)).map(|_| self.value()).collect();
        self.module.region_mut(region).outputs = outputs;
        self.visible.truncate(outer);
    }

    fn node(&mut self, region: RegionId, depth: usize) {
        let at = self.below(self.ops.len());
        let op = self.ops[at];
        let mut operands = vec![];
        for operand in op.operands {
            match operand {
                Operand::One(_) => operands.push((!self.rarely(32)).then(|| self.value())),
                Operand::Optional(_) | Operand::Late(_) => {
                    operands.push(self.rarely(2).then(|| self.value()))
                }
                Operand::Variadic(_) => {
                    for _ in 0..self.below(4) {
                        operands.push(Some(self.value()));
                    }
                }
            }
        }
        let mut attrs = Attrs::new();
        for def in op.attrs {
            let required = def.default == lapidary_ir::ops::Default::Required;
            if required && !self.rarely(32) || self.rarely(3) {
                let kind = if self.rarely(32) {
                    AttrKind::Ints
                } else {
                    def.kind
                };
                attrs.insert(def.name.into(), self.attr(kind));
            }
        }
        let mut regions = vec![];
        if depth < MAX_DEPTH {
            for _ in op.regions {
                let inner = self.module.add_region();
                let outer = self.visible.len();
                for i in 0..self.below(4) {
                    let ty = self.ty(1);
                    let v = self.module.add_input(inner, &format!("i{i}"), ty);
                    self.visible.push(v);
                }
                self.region(inner, depth + 1);
                self.visible.truncate(outer);
                regions.push(inner);
            }
        }
        let id = self
            .module
            .make_node(op, "", operands, attrs, regions, vec![]);
        self.place(region, id);
    }

    /// Sometimes something refers to what does not exist, or to itself.
    fn corrupt(&mut self) {
        let n = self.module.node_count();
        if n == 0 || !self.rarely(16) {
            return;
        }
        let id = NodeId(self.below(n) as u32);
        let (v, other) = (ValueId(self.byte().into()), NodeId(self.byte().into()));
        let (what, length) = (self.below(5), self.int());
        let top = self.module.region_mut(Module::TOP);
        match what {
            0 => top.nodes.push(other),
            1 => top.outputs.push(v),
            4 => {
                let ty = Type::tensor(ElemType::F32, [length]);
                let last = ValueId(self.module.value_count() as u32 - 1);
                self.module.value_mut(last).ty = ty;
            }
            2 => self.module.node_mut(id).regions.push(Module::TOP),
            _ => self.module.node_mut(id).operands.push(Some(v)),
        }
    }

    /// Gives a node its results and its place, or leaves it out.
    fn place(&mut self, region: RegionId, id: NodeId) {
        let sound = signature(&self.module, id, 1).is_empty();
        let types = match sound.then(|| infer_node(&self.module, id, &self.fresh)) {
            Some(Ok(types)) if !self.rarely(32) => types,
            _ if self.rarely(6) => (0..=self.below(2)).map(|_| self.ty(0)).collect(),
            _ => return,
        };
        self.module.set_result_types(id, types);
        self.visible.extend(&self.module.node(id).results);
        self.module.region_mut(region).nodes.push(id);
    }
}
