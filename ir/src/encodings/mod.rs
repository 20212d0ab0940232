//! The algebra of weight encodings: terms that say how stored bytes decode to a tensor.
//!
//! A term is a tree of *constructors*. Each constructor is one file here and one line in
//! [`ENCODINGS`]; it states its stored size, validity, decode and sample terms once, and everything else (text
//! form, evaluator, lowering, size reports, tests) is derived from the list.
//!
//! Decode is stated twice, on purpose: [`Constructor::decode`] is the plain meaning that everything is compared with,
//! and [`Constructor::open`] is one level of the term as graph ops over its child terms. Opening is what every target
//! compiles, and what rewrite rules see: that `sum{a, b} x` is `a x + b x` is no rule about encodings but one about `add`.
//!
//! Numbers are computed in `f32` (in `f64` for a term of `f64`), each operation rounded, and rounded at the end to
//! the term's element type. Where a sum is involved (`matmul`, `rotate`, `tt`) its order is free.

pub mod affine;
pub mod affmin;
pub mod bits;
mod blocks;
pub mod codebook;
pub mod coded;
pub mod concat;
pub mod dense;
mod elementwise;
pub mod emul;
pub mod gather;
pub mod r#gen;
pub mod hadamard;
pub mod hashed;
pub mod int;
pub mod lattice;
pub mod matmul;
pub mod patch;
mod pattern;
pub mod rotate;
pub mod sampling;
pub mod scale;
#[cfg(test)]
mod sha256;
pub mod sparse;
pub mod strided;
pub mod sum;
pub mod tt;

use crate::builder::Builder;
use crate::infer::first_fresh;
use crate::ops::OpError;
use crate::tensor::{Data, count};
use crate::{Attr, Attrs, ElemType, Module, Tensor, ValueId, minifloat};
use bytes::Bytes;
use sampling::Sampler;
use std::cell::Cell;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

/// Every constructor.
pub static ENCODINGS: &[&Constructor] = &[
    &dense::DENSE,
    &strided::STRIDED,
    &int::INT,
    &bits::BITS,
    &coded::CODED,
    &affine::AFFINE,
    &affmin::AFFMIN,
    &codebook::CODEBOOK,
    &scale::SCALE,
    &sparse::SPARSE,
    &patch::PATCH,
    &sum::SUM,
    &emul::EMUL,
    &matmul::MATMUL,
    &rotate::ROTATE,
    &gather::GATHER,
    &concat::CONCAT,
    &tt::TT,
    &hashed::HASHED,
    &r#gen::GEN,
];

/// Most elements that a term decodes to at once. Terms come from files, and a few bytes can stand for any size.
const MAX_DECODED: usize = 1 << 30;

/// Definition of one constructor.
#[derive(Debug)]
pub struct Constructor {
    /// Name in the text form.
    pub name: &'static str,
    /// One line: what the bytes are.
    pub summary: &'static str,
    /// Names of its child terms, in order; a trailing `?` marks children at the end that may be absent, a trailing
    /// `*` any number of last children.
    pub children: &'static [&'static str],
    /// True if it owns bytes of its own.
    pub has_blob: bool,
    /// True if rewrite rules know what to do with its ops: a product with a sum of terms is a sum of products.
    pub algebraic: bool,
    /// Checks parameters, children's shapes and the length of the bytes, without decoding a child. The number of children,
    /// and whether there are bytes, are checked for all constructors alike.
    pub check: fn(&Encoding) -> Result<(), DecodeError>,
    /// Checks what the children hold, such as that an index is inside its axis; `decode` refuses the same.
    pub contents: Option<fn(&Encoding) -> Result<(), DecodeError>>,
    /// Decodes a checked term.
    pub decode: fn(&Encoding) -> Result<Tensor, DecodeError>,
    /// A checked term as ops of a graph, its child terms as constants.
    pub open: fn(&Encoding, &mut Builder) -> Result<ValueId, OpError>,
    /// A random term of this type, for tests; none if the constructor has none of it.
    pub sample: fn(&mut Sampler, ElemType, &[usize]) -> Option<Encoding>,
}

/// A term: a constructor applied to parameters, child terms and bytes.
#[derive(Clone, Debug)]
pub struct Encoding {
    /// The constructor.
    pub ctor: &'static Constructor,
    /// Logical element type of the decoded tensor.
    pub elem: ElemType,
    /// Logical shape of the decoded tensor.
    pub shape: Vec<usize>,
    /// Parameters by name.
    pub params: Attrs,
    /// Child terms.
    pub children: Vec<Arc<Encoding>>,
    /// Bytes of its own.
    pub blob: Option<Bytes>,
}

/// Why a term is not valid or its bytes do not decode.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("encoding `{constructor}`: {reason}")]
pub struct DecodeError {
    /// Name of the constructor.
    pub constructor: &'static str,
    /// What is wrong.
    pub reason: String,
}

impl Encoding {
    /// A term without bytes of its own.
    pub fn of(
        ctor: &'static Constructor,
        elem: ElemType,
        shape: Vec<usize>,
        params: impl IntoIterator<Item = (&'static str, Attr)>,
        children: impl IntoIterator<Item = Encoding>,
    ) -> Encoding {
        Encoding {
            ctor,
            elem,
            shape,
            params: params.into_iter().map(|(k, v)| (k.to_owned(), v)).collect(),
            children: children.into_iter().map(Arc::new).collect(),
            blob: None,
        }
    }

    /// An error about this term.
    pub fn error(&self, reason: impl Into<String>) -> DecodeError {
        DecodeError {
            constructor: self.ctor.name,
            reason: reason.into(),
        }
    }

    /// Checks the whole term.
    pub fn check(&self) -> Result<(), DecodeError> {
        self.children.iter().try_for_each(|c| c.check())?;
        self.check_own()?;
        self.ctor.contents.map_or(Ok(()), |contents| contents(self))
    }

    /// Checks this constructor's part, if the children are valid.
    fn check_own(&self) -> Result<(), DecodeError> {
        let names = self.ctor.children;
        let last = names.last().copied().unwrap_or("");
        let least = names.iter().filter(|n| !n.ends_with(['?', '*'])).count();
        let most = if last.ends_with('*') {
            usize::MAX
        } else {
            names.len()
        };
        if !(least..=most).contains(&self.children.len()) {
            return Err(self.error(format!(
                "needs the terms {}, found {}",
                names.join(", "),
                self.children.len()
            )));
        }
        if self.blob.is_some() && !self.ctor.has_blob {
            return Err(self.error("has no bytes of its own"));
        }
        if self
            .shape
            .iter()
            .try_fold(1usize, |n, &d| n.checked_mul(d))
            .is_none()
        {
            return Err(self.error("shape is too large"));
        }
        (self.ctor.check)(self)
    }

    /// Decodes the whole term after checking it.
    ///
    /// # Errors
    /// The term is not valid, or has more elements than are decoded at once.
    pub fn decode(&self) -> Result<Tensor, DecodeError> {
        self.check_own()?;
        if self.len() > MAX_DECODED {
            return Err(self.error("too many elements to decode at once"));
        }
        (self.ctor.decode)(self)
    }

    /// All stored bytes of the term.
    pub fn stored_bytes(&self) -> u64 {
        let blob = self.blob.as_ref().map_or(0, Bytes::len) as u64;
        // Terms may share the bytes of a file of which each means a part.
        let own = match self.ctor.name {
            "strided" => {
                blob.min((self.len() as u64).saturating_mul(self.elem.size_bytes() as u64))
            }
            _ => blob,
        };
        own + self.children.iter().map(|c| c.stored_bytes()).sum::<u64>()
    }

    /// Number of logical elements.
    pub fn len(&self) -> usize {
        count(&self.shape)
    }

    /// True if there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All stored bits divided by logical elements.
    pub fn bits_per_weight(&self) -> f64 {
        self.stored_bytes() as f64 * 8.0 / self.len().max(1) as f64
    }

    /// True if the bytes are fewer than, or other than, the elements': what reads them must decode. Codes of a type
    /// that has no bytes of its own (`u4`) are not compressed by being packed, nor are elements by lying elsewhere.
    pub fn is_compressed(&self) -> bool {
        match self.ctor.name {
            "dense" | "strided" => false,
            "int" => self.int_param("bits") != Some(i64::from(self.elem.bits())),
            _ => true,
        }
    }

    /// Integer parameter.
    pub fn int_param(&self, name: &str) -> Option<i64> {
        match self.params.get(name) {
            Some(Attr::Int(v)) => Some(*v),
            _ => None,
        }
    }

    /// A parameter that is a size: at least 1.
    fn size_param(&self, name: &str) -> Result<usize, DecodeError> {
        self.int_param(name)
            .and_then(|v| usize::try_from(v).ok())
            .filter(|&v| v >= 1)
            .ok_or_else(|| self.error(format!("needs `{name}`, at least 1")))
    }

    /// The parameter `axis`, counted from the end if it is negative.
    fn axis_param(&self) -> Result<usize, DecodeError> {
        let axis = self.int_param("axis").unwrap_or(0);
        crate::ops::resolve_axis(axis, self.shape.len())
            .map_err(|e| self.error(format!("`axis`: {}", e.0)))
    }

    /// Text parameter.
    fn str_param(&self, name: &str) -> Option<&str> {
        match self.params.get(name) {
            Some(Attr::Str(v)) => Some(v),
            _ => None,
        }
    }

    /// Refuses a term that is not of float type over children of float type.
    fn check_floats(&self) -> Result<(), DecodeError> {
        let all = self.elem.is_float() && self.children.iter().all(|c| c.elem.is_float());
        all.then_some(())
            .ok_or_else(|| self.error("is of floats over floats"))
    }

    /// Decoded numbers of a float child.
    fn floats(&self, child: usize) -> Result<Vec<f64>, DecodeError> {
        let t = self.children[child].decode()?;
        t.floats()
            .map(<[f64]>::to_vec)
            .ok_or_else(|| self.error("a child is not of floats"))
    }

    /// Decoded codes of an integer child.
    fn codes(&self, child: usize) -> Result<Vec<i64>, DecodeError> {
        self.children[child].integers()
    }

    /// The integers of a checked integer term, without the evaluator's wide tensors where the bytes are plain.
    ///
    /// # Errors
    /// It is not of integers, or one is out of the range of `i64`.
    pub fn integers(&self) -> Result<Vec<i64>, DecodeError> {
        let signed = self.elem.int_range().is_some_and(|(lo, _)| lo < 0);
        let plain = |bytes: &[u8], bits: i64| {
            let codes = int::unpack(bytes, bits as u32, signed).take(self.len());
            Ok(codes.map(i64::from).collect())
        };
        match (self.ctor.name, self.elem, self.int_param("bits")) {
            ("int", _, Some(bits)) => {
                self.check_own()?;
                return plain(&int::packed(self)?, bits);
            }
            ("dense", ElemType::U8 | ElemType::I8, _) => {
                self.check_own()?;
                return plain(self.blob.as_deref().unwrap_or(&[]), 8);
            }
            _ => {}
        }
        let codes = self.decode()?.to_i64s();
        codes.ok_or_else(|| self.error("is not of integers"))
    }

    /// The type that its numbers are computed in.
    fn work(&self) -> ElemType {
        match self.elem {
            ElemType::F64 => ElemType::F64,
            _ => ElemType::F32,
        }
    }

    /// A number rounded as an operation of this term rounds.
    fn round(&self, value: f64) -> f64 {
        minifloat::round_to(self.work(), value)
    }

    /// The tensor of these numbers.
    fn tensor(&self, values: Vec<f64>) -> Tensor {
        Tensor::from_f64(self.elem, self.shape.clone(), values)
    }

    /// The tensor of these integers.
    fn int_tensor(&self, values: Vec<i128>) -> Tensor {
        Tensor::new(self.elem, self.shape.clone(), Data::Int(values))
    }

    /// A child as a value of a graph.
    fn child(&self, b: &mut Builder, child: usize) -> ValueId {
        b.term(&self.children[child])
    }

    /// A float child as a value of the type that this term computes in.
    fn worked(&self, b: &mut Builder, child: usize) -> Result<ValueId, OpError> {
        let v = self.child(b, child);
        b.cast(v, self.work())
    }

    /// The parameter `shape` of an op: this term's shape.
    fn lens(&self) -> Vec<i64> {
        self.shape.iter().map(|&d| d as i64).collect()
    }
}

impl PartialEq for Encoding {
    fn eq(&self, other: &Encoding) -> bool {
        self.ctor.name == other.ctor.name
            && self.elem == other.elem
            && self.shape == other.shape
            && self.params == other.params
            && self.children == other.children
            && self.blob == other.blob
    }
}

/// Says whether a constant is to be opened.
type Which<'a> = &'a dyn Fn(ValueId, &Encoding) -> bool;

/// Opens the compressed constants of the module that `which` says, level by level as far as it says so. If that is all
/// of them, what is left are plain bytes and ops on them.
///
/// # Errors
/// A term is not valid; the module is then as it was.
pub fn open_constants(module: &mut Module, which: Which) -> Result<(), OpError> {
    let wanted = |v: &u32| {
        let constant = module.as_constant(ValueId(*v));
        constant.is_some_and(|c| c.is_compressed() && which(ValueId(*v), c.encoding()))
    };
    if (0..module.value_count() as u32).any(|v| wanted(&v)) {
        let mut opened = module.clone();
        open_regions(&mut opened, which)?;
        *module = opened;
    }
    Ok(())
}

fn open_regions(module: &mut Module, which: Which) -> Result<(), OpError> {
    let fresh = Cell::new(first_fresh(module));
    for region in module.reachable_regions() {
        let mut opened: HashMap<ValueId, ValueId> = HashMap::new();
        let nodes = std::mem::take(&mut module.region_mut(region).nodes);
        let mut b = Builder::new(module, region, "", &fresh);
        // Ops on a term's children may read terms in turn, which are opened as they are met.
        for node in nodes {
            for i in 0..b.module.node(node).operands.len() {
                if let Some(v) = b.module.node(node).operands[i] {
                    let v = open_constant(&mut b, v, which, false, &mut opened)?;
                    b.module.node_mut(node).operands[i] = Some(v);
                }
            }
            b.module.region_mut(region).nodes.push(node);
        }
        for i in 0..b.module.region(region).outputs.len() {
            let v = b.module.region(region).outputs[i];
            let v = open_constant(&mut b, v, which, false, &mut opened)?;
            b.module.region_mut(region).outputs[i] = v;
        }
    }
    Ok(())
}

/// The value of a constant by plain constants and ops, which are appended; any other value is itself.
fn open_constant(
    b: &mut Builder,
    v: ValueId,
    which: Which,
    inner: bool,
    opened: &mut HashMap<ValueId, ValueId>,
) -> Result<ValueId, OpError> {
    if let Some(&to) = opened.get(&v) {
        return Ok(to);
    }
    // Inside a term, codes stay packed whatever their type: as a constant of their own they would not.
    let packed = |e: &Encoding| e.is_compressed() || inner && e.ctor.name == "int";
    let term = match b.module.as_constant(v) {
        Some(c) if packed(c.encoding()) && which(v, c.encoding()) => Arc::clone(c.encoding()),
        _ => return Ok(v),
    };
    let (name, before) = (
        b.module.value(v).name.clone(),
        b.module.region(b.region).nodes.len(),
    );
    b.name.clone_from(&name);
    if !inner {
        term.check().map_err(|e| OpError::new(e.to_string()))?;
    }
    let mut to = (term.ctor.open)(&term, b)?;
    let made = b.module.region_mut(b.region).nodes.split_off(before);
    for node in made {
        for i in 0..b.module.node(node).operands.len() {
            if let Some(v) = b.module.node(node).operands[i] {
                let v = open_constant(b, v, which, true, opened)?;
                b.module.node_mut(node).operands[i] = Some(v);
            }
        }
        b.module.region_mut(b.region).nodes.push(node);
    }
    to = open_constant(b, to, which, true, opened)?;
    opened.insert(v, to);
    Ok(to)
}

/// The constructor with this name.
pub fn constructor(name: &str) -> Option<&'static Constructor> {
    ENCODINGS.iter().copied().find(|c| c.name == name)
}

impl fmt::Display for Encoding {
    /// The term as the text form writes it, without its bytes: `int{bits = 4} u8[4,32]`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&crate::text::term(self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Constant, Type, eval, text};

    /// The value of a term by its ops, all levels opened.
    fn by_ops(e: &Encoding) -> Result<Tensor, String> {
        let mut m = Module::new("term");
        let y = m.add_constant("", Constant::new(e.clone()));
        m.region_mut(Module::TOP).outputs.push(y);
        m.output_names.push("y".into());
        open_constants(&mut m, &|_, _| true).map_err(|e| e.to_string())?;
        let out = eval::run(&m, vec![]).map_err(|e| e.to_string())?;
        out[0]
            .as_tensor()
            .cloned()
            .ok_or_else(|| "no tensor".into())
    }

    /// Far enough apart that it is not the order of a sum.
    fn differs(a: f64, b: f64, elem: ElemType) -> bool {
        let unit = if elem.bits() <= 16 { 1e-2 } else { 1e-4 };
        (a - b).abs() > unit * (1.0 + a.abs().max(b.abs())) && !(a.is_nan() && b.is_nan()) && a != b
    }

    #[test]
    fn terms_mean_what_their_ops_mean() {
        let mut seen = std::collections::BTreeMap::new();
        for seed in 0..1500u64 {
            let mut s = Sampler::new(seed, 1 + (seed % 3) as u32);
            let elem = s.one_of(&[
                ElemType::F32,
                ElemType::F32,
                ElemType::F16,
                ElemType::F64,
                ElemType::U8,
                ElemType::I8,
            ]);
            let rank = s.one_of(&[1, 2, 2, 2, 3]);
            let shape = s.shape(rank);
            let e = s.term(elem, &shape);
            *seen.entry(e.ctor.name).or_insert(0) += 1;
            assert_eq!((e.elem, &e.shape), (elem, &shape), "seed {seed}: {e}");
            let want = e
                .decode()
                .unwrap_or_else(|f| panic!("seed {seed}: {f}: {e}"));
            assert!(e.check().is_ok(), "seed {seed}: {e}");
            let got = by_ops(&e).unwrap_or_else(|f| panic!("seed {seed}: {f}: {e}"));
            assert_eq!(
                (got.elem(), got.shape()),
                (elem, &shape[..]),
                "seed {seed}: {e}"
            );
            let (a, b) = (
                got.to_f64s().expect("numbers"),
                want.to_f64s().expect("numbers"),
            );
            let far = a.iter().zip(&b).position(|(&a, &b)| differs(a, b, elem));
            assert_eq!(far, None, "seed {seed}: {e}\n{a:?}\n{b:?}");
            assert_eq!(e.integers().is_ok(), !elem.is_float());
            let mut m = Module::new("term");
            let y = m.add_constant("y", Constant::new(e.clone()));
            m.region_mut(Module::TOP).outputs.push(y);
            let back =
                text::parse(&text::print(&m)).unwrap_or_else(|d| panic!("seed {seed}: {d:?}"));
            assert_eq!(m.first_difference(&back), None, "seed {seed}");
            assert_eq!(m.value(y).ty, Type::tensor(elem, shape.iter().copied()));
        }
        let all: Vec<&str> = ENCODINGS.iter().map(|c| c.name).collect();
        let missing: Vec<_> = all.iter().filter(|n| !seen.contains_key(*n)).collect();
        assert!(missing.is_empty(), "no sample of {missing:?}");
    }

    /// A level may cost what its children cost, once: files nest terms as deep as they like.
    #[test]
    fn deep_indices_are_checked_and_decoded_in_time() {
        let mut e = dense::from_tensor(&Tensor::ints(&[1, 0]));
        for _ in 0..60 {
            let table = dense::from_tensor(&Tensor::ints(&[1, 0]));
            e = gather::gather(0, e, table);
        }
        assert!(e.check().is_ok());
        assert_eq!(e.integers(), Ok(vec![1, 0]));
    }

    #[test]
    fn a_term_with_too_few_children_is_refused() {
        for ctor in ENCODINGS {
            let e = Encoding::of(ctor, ElemType::F32, vec![2], [], []);
            assert!(e.check().is_err() && e.decode().is_err(), "{}", ctor.name);
        }
    }
}
