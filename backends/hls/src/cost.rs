//! What a kernel costs as a circuit: cycles of a launch, and what it is built of. Counted while the text is written, from
//! the very loops and operations that are.
//!
//! Nothing here was measured on hardware. Assumed are: a pipeline starts an iteration in every cycle (memory has as many banks as
//! [`Cost::ports`] says) and takes [`FILL`] cycles to fill; of a branch both sides count; operators cost what
//! `operator` says, which are a vendor's usual figures for UltraScale+ at 200 MHz, and none is shared.

use crate::folding::{Folding, Product, trips};
use crate::kernel::{self, Blocks};
use lapidary_ir::backend::Error;
use lapidary_ir::kernel::{Binary, Class, Extent, Kernel, Op, TileElem, Unary, legalize};
use std::collections::BTreeMap;

/// Cycles from the first iteration of a pipeline to its result.
pub const FILL: f64 = 16.0;

/// What is predicted of a launch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cost {
    /// Iterations that pipelines start, one in a cycle: what `LP_CYCLE` counts in simulation.
    pub iterations: f64,
    /// All cycles: those, filling pipelines, and what is not in one.
    pub cycles: f64,
    /// Multipliers (DSP48E2 slices).
    pub dsp: f64,
    /// Look-up tables.
    pub lut: f64,
    /// Bits of scratch memory.
    pub scratch_bits: f64,
    /// Elements of each parameter that are accessed in one cycle at most.
    pub ports: BTreeMap<u32, u32>,
}

/// Predicts a launch. `sizes` are the kernel's size parameters by position, others are none.
///
/// # Errors
/// The kernel uses what is not translated.
pub fn cost(kernel: &Kernel, sizes: &[Option<i64>], folding: Folding) -> Result<Cost, Error> {
    let kernel = legalize::legalize(kernel.clone());
    let extents: Vec<i64> = kernel.grid.iter().map(|e| extent(e, sizes)).collect();
    let mut sum = Cost::default();
    // Along each axis one block in the middle stands for all but the last, which may have less to do.
    for ends in 0..1u32 << extents.len().min(AXES) {
        let mut blocks = Blocks {
            sizes: sizes.to_vec(),
            at: vec![],
            count: 1.0,
        };
        for (i, &n) in extents.iter().enumerate() {
            let last = i < AXES && ends >> i & 1 == 1;
            blocks.count *= match (i < AXES, last) {
                (true, true) => 1.0,
                (true, false) => (n - 1) as f64,
                (false, _) => n as f64,
            };
            blocks.at.push(if last { n - 1 } else { (n - 1) / 2 });
        }
        if blocks.count > 0.0 && !extents.contains(&0) {
            let (_, cost) = kernel::write_counted(&kernel, "counted", folding, &blocks, &[])?;
            sum.iterations += cost.iterations;
            sum.cycles += cost.cycles;
            sum = Cost {
                iterations: sum.iterations,
                cycles: sum.cycles,
                ..cost
            };
        }
    }
    Ok(sum)
}

/// Most axes of a grid that are looked at from both ends.
const AXES: usize = 3;

/// Blocks along a grid axis; one where that is not known.
fn extent(extent: &Extent, sizes: &[Option<i64>]) -> i64 {
    match extent {
        Extent::Const(n) => i64::try_from(*n).unwrap_or(i64::MAX),
        Extent::Param { param, divisor } => {
            let size = sizes.get(*param as usize).copied().flatten();
            size.map_or(1, |n| trips(0, n, *divisor))
        }
    }
}

impl Cost {
    /// Adds an operation on this many elements at once.
    pub(crate) fn charge(&mut self, op: &Op, elem: TileElem, copies: f64) {
        let [dsp, lut] = operator(op, elem);
        self.dsp += copies * dsp;
        self.lut += copies * lut;
    }

    /// Adds the processing elements of a product.
    pub(crate) fn charge_product(&mut self, product: &Product, pe: u32) {
        let macs = f64::from(pe * product.inner);
        let [dsp, lut] = match product.sum.class() {
            Class::F32 => [5.0, 350.0],
            Class::F64 => [11.0, 1100.0],
            // What is left of a multiplier's two products is put right by one carry chain of 27 bits.
            _ if product.is_packed(pe) => [0.5, 32.0 + 13.5],
            _ => [1.0, 32.0],
        };
        self.dsp += macs * dsp;
        self.lut += macs * lut;
    }

    /// Notes that so many elements of a parameter are accessed at once.
    pub(crate) fn access(&mut self, param: u32, elements: u32) {
        let most = self.ports.entry(param).or_default();
        *most = (*most).max(elements);
    }
}

/// DSP slices and look-up tables of one operator.
fn operator(op: &Op, elem: TileElem) -> [f64; 2] {
    let class = elem.class();
    let bits = match class {
        Class::F32 => 32.0,
        Class::F64 => 64.0,
        Class::Bool => 1.0,
        Class::Int { bits, .. } | Class::Bits(bits) => f64::from(bits),
    };
    match (op, class) {
        (Op::Binary(Binary::Mul, ..), Class::F32) => [3.0, 100.0],
        (Op::Binary(Binary::Mul, ..), Class::F64) => [8.0, 300.0],
        (Op::Binary(Binary::Add | Binary::Sub, ..), Class::F32) => [2.0, 250.0],
        (Op::Binary(Binary::Add | Binary::Sub, ..), Class::F64) => [3.0, 800.0],
        (Op::MulAdd(..), Class::F32) => [5.0, 350.0],
        (Op::MulAdd(..), Class::F64) => [11.0, 1100.0],
        (Op::Binary(Binary::Div, ..) | Op::Unary(Unary::Reciprocal, _), Class::F32) => [0.0, 750.0],
        (Op::Binary(Binary::Div, ..) | Op::Unary(Unary::Reciprocal, _), Class::F64) => {
            [0.0, 3200.0]
        }
        (Op::Unary(Unary::Sqrt, _), Class::F32) => [0.0, 450.0],
        (Op::Unary(Unary::Sqrt, _), Class::F64) => [0.0, 1800.0],
        // Index arithmetic is by constants nearly always, which needs neither multiplier nor divider.
        (Op::Binary(Binary::Mul, ..), _) if elem == TileElem::Index => [0.0, bits],
        (Op::Binary(Binary::Div | Binary::Mod | Binary::Rem | Binary::FloorDiv, ..), _)
            if elem == TileElem::Index =>
        {
            [0.0, 4.0 * bits]
        }
        (Op::Binary(Binary::Mul, ..), Class::Int { bits, .. }) => match bits {
            ..=18 => [1.0, 0.0],
            19..=32 => [3.0, 20.0],
            _ => [10.0, 100.0],
        },
        (Op::Cast(_), Class::F32 | Class::F64) => [0.0, 6.0 * bits],
        (Op::Cast(_) | Op::Bitcast(_) | Op::Unpack { .. }, _) => [0.0, 0.0],
        (Op::Load { .. } | Op::Store { .. }, _) => [0.0, 8.0],
        (Op::Binary(Binary::Div | Binary::Mod | Binary::Rem | Binary::FloorDiv, ..), _) => {
            [0.0, bits * bits / 2.0]
        }
        _ => [0.0, bits],
    }
}
