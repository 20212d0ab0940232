//! Kernels for weights that stay packed, of which GPUs have entries of their own: chosen by predicted time, packed, launched.
//!
//! ```text
//! few rows  => gemv (x, codes, scales)                                   of `f32`, exact as the plain product
//! batches   => half x; batch (half x, codes, scales) => sums of parts    of `f16`, where the user allows it
//! 2:4       => half x; sparse batch (half x, codes, places, scales) => sums of parts      the same, for any number of rows
//! what follows the product (bias, residual, activation): an element-wise kernel behind it
//! ```
//! How many rows there are may be known only at run time: then there is a launch for one row and another for more, of which one has
//! no blocks.

use super::{Plan, Weights};
use crate::lower::{Choice, KernelArg, Lowerer, WeightSource, halves, linear};
use crate::predict::{self, Operand};
use lapidary_ir::kernel::Kernel;
use lapidary_ir::kernel::blocks::Zeros;
use lapidary_ir::kernel::packed::{self, Batch, Bits, Gemv, MOST_BATCH, TwoOfFour};
use lapidary_ir::ops::OpError;
use lapidary_ir::{Dim, ElemType, NodeId, ValueId};
use std::mem;
use std::sync::Arc;

/// A product's kernels, and for how many rows each is.
pub type Launches = Vec<(Product, When)>;

/// A kernel.
#[derive(Clone, Debug)]
pub enum Product {
    /// Of `f32`, a few rows at a time.
    Vectors(Gemv),
    /// Of `f16`.
    Halves(Batch),
    /// Of `f16`, with two of four weights.
    Sparse(TwoOfFour),
}

/// When a launch has blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    Always,
    OneRow,
    MoreRows,
}

impl Product {
    fn kernel(&self) -> Kernel {
        match self {
            Product::Vectors(g) => g.kernel(),
            Product::Halves(b) => b.kernel(),
            Product::Sparse(s) => s.kernel(),
        }
    }

    fn weights(&self) -> &packed::Weights {
        match self {
            Product::Vectors(g) => &g.weights,
            Product::Halves(b) => &b.weights,
            Product::Sparse(s) => &s.batch.weights,
        }
    }

    /// Results that must be added up.
    fn parts(&self) -> u32 {
        match self {
            Product::Vectors(_) => 1,
            Product::Halves(b) => b.parts,
            Product::Sparse(s) => s.batch.parts,
        }
    }

    /// Rows of a block, and blocks of that many rows.
    fn grid(&self) -> [u32; 2] {
        match self {
            Product::Vectors(g) => [g.batch, g.blocks()],
            Product::Halves(b) => [b.tile(), b.parts * b.across()],
            Product::Sparse(s) => [s.batch.tile(), s.batch.parts * s.across()],
        }
    }

    /// Whether it multiplies halves.
    fn of_halves(&self) -> bool {
        !matches!(self, Product::Vectors(_))
    }

    /// Bytes of what the kernel reads of the weights, in its order; scales are the last.
    fn bytes(&self) -> Vec<u64> {
        match self {
            Product::Sparse(s) => s.bytes().into(),
            _ => vec![self.weights().code_bytes(), self.weights().scale_bytes()],
        }
    }

    /// The same as the kernel reads it.
    fn pack(&self, weights: &Weights) -> Result<Vec<Vec<u8>>, String> {
        let (codes, scales) = weights.plain()?;
        let parts = match self {
            Product::Vectors(g) => {
                vec![g.weights.pack_codes(&codes), g.weights.pack_scales(&scales)]
            }
            Product::Halves(b) => vec![b.pack_codes(&codes), b.pack_scales(&scales)],
            Product::Sparse(s) => {
                let places = weights.places()?;
                vec![
                    s.pack_codes(&codes),
                    s.pack_places(&places),
                    s.pack_scales(&scales),
                ]
            }
        };
        let parts: Result<Vec<Vec<u8>>, _> = parts.into_iter().collect();
        parts.map_err(|e| e.to_string())
    }
}

/// The matrix as these kernels know it, if they do.
fn matrix(weights: &Weights) -> Option<packed::Weights> {
    let f = weights.format;
    let bits = match f.bits {
        4 => Bits::Four,
        8 => Bits::Eight,
        _ => return None,
    };
    if f.zeros != Zeros::Shared || weights.factor != -i32::from(bits.zero()) {
        return None;
    }
    let sizes = [weights.n, weights.columns()].map(|n| u32::try_from(n).ok());
    let [Some(rows), Some(columns)] = sizes else {
        return None;
    };
    let name = format!("gemv_int{}", f.bits);
    let matrix = packed::Weights::new(&name, rows, columns, bits, f.block).ok()?;
    Some(matrix.with_wide_scales(f.scale_bytes == 4))
}

/// What was chosen of the ways to compute a product, and its kernels if weights stay packed; `None` if there are none for it.
pub fn choose(
    low: &Lowerer,
    n: NodeId,
    plan: &Plan,
    weights: &Weights,
) -> Option<(Choice, Option<Launches>)> {
    if !low.target.has_wide_vectors() {
        return None;
    }
    let matrix = matrix(weights)?;
    let known = match plan.m.as_const() {
        Some(m) => Some(u32::try_from(m).ok().filter(|&m| m > 0)?),
        None => None,
    };
    // What is not known is mostly a token at a time.
    let m = known.unwrap_or(1);
    let ways: Vec<Launches> = match weights.places {
        Some(_) => {
            let of = |m| sparse(low, &matrix, m).map(Product::Sparse);
            vec![match known {
                Some(_) => vec![(of(known)?, When::Always)],
                None => vec![(of(Some(1))?, When::OneRow), (of(None)?, When::MoreRows)],
            }]
        }
        None => ways_of_all(low, &matrix, known)?,
    };
    let timed = ways
        .into_iter()
        .map(|way| (time(low, plan, &way[0].0, m), way));
    let (ns, launches) = timed.min_by(|a, b| a.0.total_cmp(&b.0))?;
    let dense = linear::predicted(low, plan, m);
    let names = launches.iter().map(|(p, _)| p.weights().name().to_owned());
    let (choice, stays) = Choice::between(
        [
            low.facts.module.node(n).name.clone(),
            plan.m.to_string(),
            match weights.places {
                Some(_) => format!("weights of {} bits, two of four", weights.format.bits),
                None => format!("weights of {} bits", weights.format.bits),
            },
        ],
        [weights.n, weights.columns()],
        (names.collect(), ns),
        (vec![linear::KERNEL.to_owned()], dense),
        // Without preparation numbers would be made of the weights in every run.
        !low.options.prepare,
    );
    Some((choice, stays.then_some(launches)))
}

/// The ways to multiply weights that are all there.
fn ways_of_all(
    low: &Lowerer,
    matrix: &packed::Weights,
    known: Option<u32>,
) -> Option<Vec<Launches>> {
    let vectors = |batch: u32, m| {
        Gemv::new(matrix.clone(), batch, m)
            .ok()
            .map(Product::Vectors)
    };
    let of_halves = batch(low, matrix, known).map(Product::Halves);
    let m = known.unwrap_or(1);
    let of_few = vectors(m.min(MOST_BATCH), Some(m));
    Some(match known {
        Some(_) => {
            let alone = |p| vec![(p, When::Always)];
            of_few.into_iter().chain(of_halves).map(alone).collect()
        }
        None => {
            let more = of_halves.or_else(|| vectors(MOST_BATCH, None))?;
            vec![vec![(of_few?, When::OneRow), (more, When::MoreRows)]]
        }
    })
}

/// The kernel for batches, if the user allows halves and the weights have it.
fn batch(low: &Lowerer, matrix: &packed::Weights, m: Option<u32>) -> Option<Batch> {
    let of = |parts| Batch::new(matrix.named("gemm_int4_f16"), parts, m).ok();
    in_parts(low, matrix, m, of, Batch::grid)
}

/// The same of weights of which two of four are kept.
fn sparse(low: &Lowerer, matrix: &packed::Weights, m: Option<u32>) -> Option<TwoOfFour> {
    let of = |parts| TwoOfFour::new(matrix.named("gemm_int4_2_of_4_f16"), parts, m).ok();
    in_parts(low, matrix, m, of, TwoOfFour::grid)
}

/// A kernel of halves, where the user allows them: with as many parts of the columns as give each multiprocessor two blocks.
fn in_parts<K>(
    low: &Lowerer,
    matrix: &packed::Weights,
    m: Option<u32>,
    of: impl Fn(u32) -> Option<K>,
    grid: fn(&K, u32) -> u32,
) -> Option<K> {
    if !low.options.halves {
        return None;
    }
    let whole = of(1)?;
    let Some(m) = m else {
        return Some(whole);
    };
    let tiles = grid(&whole, m);
    let parts = (2 * low.target.threads / tiles).clamp(1, matrix.columns() / packed::GROUP);
    of(parts).or(Some(whole))
}

/// Predicted nanoseconds of a product of `m` rows and of what goes with it.
fn time(low: &Lowerer, plan: &Plan, product: &Product, m: u32) -> f64 {
    let w = product.weights();
    let [m64, rows, columns] = [m, w.rows(), w.columns()].map(u64::from);
    let size = if product.of_halves() { 2 } else { 4 };
    let (parts, results) = (u64::from(product.parts()), 4 * m64 * rows);
    let weights = product.bytes().into_iter().map(Operand::constant);
    let mut operands: Vec<Operand> = weights.collect();
    operands.push(Operand::made(size * m64 * columns));
    operands.push(Operand::made(results * parts));
    let [of_block, blocks] = product.grid();
    let blocks = i64::from(m.div_ceil(of_block)) * i64::from(blocks);
    let mut ns = predict::alone(&product.kernel(), &operands, blocks, &low.target);
    if size == 2 {
        // The left side is rounded before.
        ns += predict::moved(6 * m64 * columns, &low.target);
    }
    if product.parts() > 1 || plan.has_epilogue() {
        ns += predict::moved(results * (parts + 2), &low.target);
    }
    ns
}

/// The steps of a product whose weights stay packed.
pub fn steps(
    low: &mut Lowerer,
    n: NodeId,
    plan: &Plan,
    weights: &Weights,
    launches: &Launches,
) -> Result<(), OpError> {
    let parts = launches.iter().map(|(p, _)| p.parts()).max().unwrap_or(1);
    halves::with_sums(low, n, plan, parts, |low, y| {
        launch(low, plan, weights, launches, y)
    })
}

/// Launches a product, to `y`.
fn launch(
    low: &mut Lowerer,
    plan: &Plan,
    weights: &Weights,
    launches: &Launches,
    y: ValueId,
) -> Result<(), OpError> {
    let one = Dim::from(1i64);
    // 1 where there are more rows than one, else 0; 1 where there is one.
    let more = (&plan.m - &one).max_dim(&Dim::default()).min_dim(&one);
    let single = plan.m.min_dim(&one) - more.clone();
    let flops = Dim::from(2i64) * &plan.m * &plan.n * &plan.k;
    // Launches for other numbers of rows may read the same.
    let mut known: Option<(mem::Discriminant<Product>, Vec<ValueId>)> = None;
    for (product, when) in launches {
        let packed = match known.take_if(|(of, _)| *of == mem::discriminant(product)) {
            Some((_, packed)) => packed,
            None => packed_weights(low, weights, product)?,
        };
        known = Some((mem::discriminant(product), packed.clone()));
        let x = match product.of_halves() {
            true => halves::rounded(low, plan.a, ElemType::F16)?,
            false => plan.a,
        };
        let [rows, blocks] = product.grid().map(|n| Dim::from(i64::from(n)));
        let (blocks, flops) = match when {
            When::Always => (plan.m.ceil_div(&rows) * blocks, flops.clone()),
            When::OneRow => (blocks * single.clone(), flops.clone() * single.clone()),
            When::MoreRows => {
                let blocks = plan.m.ceil_div(&rows) * blocks * more.clone();
                (blocks, flops.clone() * more.clone())
            }
        };
        let values = packed.into_iter().chain([x, y]);
        let mut args: Vec<KernelArg> = values.map(KernelArg::Value).collect();
        if *when == When::MoreRows {
            args.push(KernelArg::Size(plan.m.clone()));
        }
        low.launch(product.kernel(), &args, &blocks, 1, &flops)?;
    }
    Ok(())
}

/// What a kernel reads of weights, as weights of the program, made when they are written.
fn packed_weights(
    low: &mut Lowerer,
    weights: &Weights,
    product: &Product,
) -> Result<Vec<ValueId>, OpError> {
    let lengths = product.bytes().into_iter();
    let padded: Vec<usize> = lengths.map(|n| (n as usize).next_multiple_of(64)).collect();
    let mut parts: Vec<_> = padded.iter().map(|&len| (ElemType::U8, len)).collect();
    if let Some(scales) = parts.last_mut() {
        scales.0 = product.weights().scale();
    }
    let (weights, kernel) = (weights.clone(), product.clone());
    let made = move || {
        let mut all = vec![];
        for (part, len) in kernel.pack(&weights)?.into_iter().zip(&padded) {
            let end = all.len() + len;
            all.extend(part);
            all.resize(end, 0);
        }
        Ok(all)
    };
    Ok(low.made_together(&parts, WeightSource::Made(Arc::new(made))))
}
