//! A model computed piece by piece over all samples, so that what is gathered of one piece, and its weights, need not be in
//! memory beside those of the others.
//!
//! Between two pieces lies a *cut*: the values of floats before it that something behind it reads and that depend on weights.
//! A piece takes the values of its cut as inputs and gives those of the next one, which are kept for each sample in the
//! store. Whatever else it reads of what comes before (masks, positions, rotations) it computes again from the model's own
//! inputs, which is why a cut may be any set of values: it decides what is computed twice, and never what comes of it.

use super::CompressError;
use super::samples::{Failure, Program, Samples};
use super::sites::Site;
use super::work::{Key, Store};
use lapidary_ir::builder::Builder;
use lapidary_ir::infer::first_fresh;
use lapidary_ir::ops::OpError;
use lapidary_ir::{ElemType, Module, NodeId, Type, ValueId};
use std::cell::Cell;
use std::collections::{BTreeMap, HashMap, HashSet};

/// Computes a module's pieces from front to back.
pub(super) struct Segments<'a> {
    module: &'a Module,
    samples: &'a dyn Samples,
    store: &'a dyn Store,
    key: Key,
    /// The values of the last cut, and their shapes.
    held: BTreeMap<ValueId, Vec<i64>>,
    /// What each value that depends on weights is read by last, as a place in the order of the program.
    last_reads: HashMap<ValueId, usize>,
    /// Where each such value is made.
    places: HashMap<ValueId, usize>,
}

impl<'a> Segments<'a> {
    /// Of a module with these weights, on these samples. Entries of the store go by `key`.
    pub fn new(
        module: &'a Module,
        sites: &[Site],
        samples: &'a dyn Samples,
        store: &'a dyn Store,
        key: Key,
    ) -> Segments<'a> {
        let mut weighty: HashSet<ValueId> = sites.iter().map(|s| s.weight).collect();
        let (mut last_reads, mut places) = (HashMap::new(), HashMap::new());
        for (place, &n) in module.top().nodes.iter().enumerate() {
            let read = reads(module, n);
            let depends = read.iter().any(|v| weighty.contains(v));
            for v in read.into_iter().filter(|v| places.contains_key(v)) {
                last_reads.insert(v, place);
            }
            if depends {
                for &v in &module.node(n).results {
                    weighty.insert(v);
                    places.insert(v, place);
                }
            }
        }
        // A transposed or widened weight is a weight, which every piece reads for itself.
        let constant = constants(module);
        places.retain(|v, _| {
            let elem = module.value(*v).ty.elem();
            let narrow = matches!(elem, Some(ElemType::F32 | ElemType::F16 | ElemType::BF16));
            narrow && !constant.contains(v)
        });
        Segments {
            module,
            samples,
            store,
            key,
            held: BTreeMap::new(),
            last_reads,
            places,
        }
    }

    /// Computes the piece that ends behind the node at `last`, with outputs of its own: `outputs` adds them to a copy of the module,
    /// and `see` is shown each sample's, by number. Unless it is the last piece, the values of its end are kept.
    pub fn run(
        &mut self,
        last: usize,
        is_last: bool,
        outputs: impl FnOnce(&mut Module) -> Result<Vec<ValueId>, OpError>,
        progress: &dyn Fn(usize),
        see: &mut dyn FnMut(usize, &[f32]) -> Result<(), Failure>,
    ) -> Result<(), CompressError> {
        let mut piece = self.module.clone();
        let own = outputs(&mut piece).map_err(CompressError::Graph)?;
        let next = if is_last { vec![] } else { self.cut(last) };
        let new: Vec<ValueId> = next
            .iter()
            .copied()
            .filter(|v| !self.held.contains_key(v))
            .collect();
        let taken = self
            .finish(&mut piece, &own, &new)
            .map_err(CompressError::Graph)?;
        let mut program = self.samples.prepare(piece).map_err(CompressError::Data)?;
        let mut shapes: Vec<Vec<i64>> = vec![];
        for sample in 0..self.samples.count() {
            progress(sample);
            self.give(&mut *program, &taken, sample)
                .map_err(CompressError::Data)?;
            let mut seen = |i: usize, values: &[f32]| {
                let Some(k) = i.checked_sub(own.len()) else {
                    return see(i, values);
                };
                match k.is_multiple_of(2) {
                    true => self.keep(new[k / 2], sample, values),
                    false => {
                        if sample == 0 {
                            shapes.push(values.iter().map(|&n| n as i64).collect());
                        }
                        Ok(())
                    }
                }
            };
            program
                .run(sample, &mut seen)
                .map_err(CompressError::Data)?;
        }
        self.forget(&next);
        self.held.extend(new.into_iter().zip(shapes));
        Ok(())
    }

    /// Forgets the values of the last cut.
    pub fn clear(mut self) {
        self.forget(&[]);
    }

    /// Forgets the values of the last cut but these.
    fn forget(&mut self, but: &[ValueId]) {
        let gone: Vec<ValueId> = self.held.keys().copied().collect();
        for v in gone.into_iter().filter(|v| !but.contains(v)) {
            self.held.remove(&v);
            for sample in 0..self.samples.count() {
                self.store.remove(&self.name(v, sample));
            }
        }
    }

    /// What is made up to the node at `last` and read behind it.
    fn cut(&self, last: usize) -> Vec<ValueId> {
        let crosses =
            |v: &ValueId, place: usize| place <= last && self.last_reads.get(v) > Some(&last);
        let mut cut: Vec<ValueId> = self
            .places
            .iter()
            .filter(|&(v, &place)| crosses(v, place))
            .map(|(&v, _)| v)
            .collect();
        cut.sort_unstable();
        cut
    }

    /// Gives a piece its inputs and outputs: its own, then each new value and its shape. Returns which values it takes.
    fn finish(
        &self,
        piece: &mut Module,
        own: &[ValueId],
        new: &[ValueId],
    ) -> Result<Vec<ValueId>, OpError> {
        let fresh = Cell::new(first_fresh(piece));
        let mut outputs = own.to_vec();
        for &v in new {
            let mut b = Builder::new(piece, Module::TOP, "cut", &fresh);
            let value = b.cast(v, ElemType::F32)?;
            let shape = b.op("shape", &[value])?;
            let shape = b.cast(shape, ElemType::F32)?;
            outputs.extend([value, shape]);
        }
        piece.output_names = (0..outputs.len()).map(|i| format!("value{i}")).collect();
        piece.region_mut(Module::TOP).outputs = outputs;
        for (&v, shape) in &self.held {
            let ty = Type::tensor(ElemType::F32, shape.iter().copied());
            let elem = piece.value(v).ty.elem().unwrap_or(ElemType::F32);
            let input = piece.add_input(Module::TOP, &format!("cut {}", v.0), ty);
            let given = match elem {
                ElemType::F32 => input,
                elem => {
                    let mut b = Builder::new(piece, Module::TOP, "cut", &fresh);
                    let cast = b.cast(input, elem)?;
                    // It stands before whatever reads it.
                    let nodes = &mut piece.region_mut(Module::TOP).nodes;
                    nodes.rotate_right(1);
                    cast
                }
            };
            piece.replace_uses(v, given);
        }
        piece.remove_dead_nodes();
        Ok(self.held.keys().copied().collect())
    }

    fn name(&self, v: ValueId, sample: usize) -> String {
        let place = [u64::from(v.0), sample as u64].map(u64::to_le_bytes);
        self.key.bytes(&place.concat()).name("cut")
    }

    fn keep(&self, v: ValueId, sample: usize, values: &[f32]) -> Result<(), Failure> {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.store.put(&self.name(v, sample), &[&bytes])
    }

    fn give(
        &self,
        program: &mut dyn Program,
        taken: &[ValueId],
        sample: usize,
    ) -> Result<(), Failure> {
        for (i, &v) in taken.iter().enumerate() {
            let bytes = self.store.get(&self.name(v, sample));
            let bytes = bytes.ok_or("the work folder lost a value between two pieces")?;
            let numbers = bytes.as_chunks::<4>().0.iter();
            let values: Vec<f32> = numbers.map(|&b| f32::from_le_bytes(b)).collect();
            program.set(i, &values)?;
        }
        Ok(())
    }
}

/// What a node reads, within its regions too.
fn reads(module: &Module, n: NodeId) -> Vec<ValueId> {
    let node = module.node(n);
    let mut read: Vec<ValueId> = node.operands.iter().flatten().copied().collect();
    for &r in &node.regions {
        let region = module.region(r);
        read.extend(&region.outputs);
        region
            .nodes
            .iter()
            .for_each(|&n| read.extend(reads(module, n)));
    }
    read
}

/// Values that depend on nothing but constants.
fn constants(module: &Module) -> HashSet<ValueId> {
    let mut found = HashSet::new();
    for &n in &module.top().nodes {
        let read = reads(module, n);
        let known = |v: &ValueId| found.contains(v) || module.as_constant(*v).is_some();
        if !read.is_empty() && read.iter().all(known) {
            found.extend(&module.node(n).results);
        }
    }
    found
}
