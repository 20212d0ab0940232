//! A product of `f16` or `bf16` with sums of `f32`, for tensor cores: the canonical kernel, written and recognised.
//!
//! ```text
//! grid (p in parts, i in ceil(m / tile), j in ceil(n / 128))
//!   for a, b in the tile:
//!     acc = const 0
//!     for k in pieces of the part carry acc:
//!       acc = acc + reduce sum (load A[a, k] * load B[b, k])      [32]
//!     store C[p, a, b], acc
//! ```

use super::{TILE_OUTPUTS, count, facts, tiles};
use crate::ElemType;
use crate::backend::Error;
use crate::kernel::build::KernelBuilder;
use crate::kernel::{Axis, Binary, Extent, Kernel, Literal, Param, ReduceKind, TileElem, TileType};

/// Columns of a piece in shared memory.
pub const DEPTH: u32 = 32;

/// `c[p, i, j] = sum over part p of the k of a[i, k] b[j, k]`, all row-major: parameters `a` and `b` (of one type), `c` (`f32`), and the
/// size `m` where it is not known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Halves {
    /// Name of the kernel.
    pub name: String,
    /// Type of the operands: `f16` or `bf16`.
    pub elem: ElemType,
    /// Rows of `a` and `c`, where their number is known.
    pub m: Option<u32>,
    /// Rows of `b`, columns of `c`.
    pub n: u32,
    /// Columns of `a` and `b`.
    pub k: u32,
    /// Parts of `k`, of which each has a `c` of its own.
    pub parts: u32,
}

impl Halves {
    /// Whether there is such a kernel.
    ///
    /// # Errors
    /// The type is another, a size is none, `n` or `k` is no multiple of 8, there are more parts than pieces, or an operand or
    /// result has more than 2^31 bytes, which offsets do not reach.
    pub fn check(&self) -> Result<(), Error> {
        let error = |what| {
            Err(Error::Unsupported {
                kernel: self.name.clone(),
                what,
            })
        };
        let (m, n, k) = (self.m, u64::from(self.n), u64::from(self.k));
        let eights = n.is_multiple_of(8) && k.is_multiple_of(8);
        if m == Some(0) || n * k == 0 || !eights {
            return error(format!("a product of {m:?} x {n} x {k}"));
        }
        if ![ElemType::F16, ElemType::BF16].contains(&self.elem) {
            return error(format!("a product of {} as halves", self.elem));
        }
        if self.parts == 0 || self.parts > self.k.div_ceil(DEPTH) {
            return error(format!("{} parts of {k} columns", self.parts));
        }
        let m = u64::from(m.unwrap_or(1));
        match (2 * m.max(n) * k).max(4 * m * n * u64::from(self.parts)) > 1 << 31 {
            true => error("more than 2^31 bytes".to_owned()),
            false => Ok(()),
        }
    }

    /// Fragments of 16 rows of a warp.
    pub fn fragments(&self) -> u32 {
        match self.m {
            Some(0..=32) => 1,
            Some(33..=64) => 2,
            _ => 4,
        }
    }

    /// Rows of a tile: two warps.
    pub fn tile(&self) -> u32 {
        2 * 16 * self.fragments()
    }

    /// Pieces of a part.
    pub fn pieces(&self) -> u32 {
        self.k.div_ceil(DEPTH).div_ceil(self.parts)
    }

    /// Tiles of columns.
    pub fn across(&self) -> u32 {
        self.n.div_ceil(TILE_OUTPUTS)
    }

    /// Blocks of `m` rows.
    pub fn grid(&self, m: u32) -> u32 {
        self.parts * self.across() * m.div_ceil(self.tile())
    }

    /// The canonical kernel.
    pub fn kernel(&self) -> Kernel {
        let mut b = KernelBuilder::new(&self.name);
        let [left, right] = ["a", "b"].map(|name| b.buffer(name, self.elem, false));
        let c = b.buffer("c", ElemType::F32, true);
        let down = tiles(&mut b, self.m, self.tile());
        let part = b.grid(Extent::Const(u64::from(self.parts)));
        let down = b.grid(down);
        let across = b.grid(Extent::Const(u64::from(self.across())));
        let [n, k, _] = [self.n, self.k, self.parts].map(|v| b.index(i64::from(v)));
        let m = count(&mut b, self.m, 3);
        let lengths = [self.tile(), TILE_OUTPUTS, self.pieces() * DEPTH];
        let [tile, wide, length] = lengths.map(|v| b.index(i64::from(v)));
        let mut range = |at, length, end| {
            let from = b.binary(Binary::Mul, at, length);
            let to = b.binary(Binary::Add, from, length);
            (from, b.binary(Binary::Min, to, end))
        };
        let (first_m, last_m) = range(down, tile, m);
        let (first_n, last_n) = range(across, wide, n);
        let (first_k, last_k) = range(part, length, k);
        let number = TileElem::Elem(ElemType::F32);
        let nothing = TileType::of(ElemType::F32, &[]);
        let nothing = b.constant(nothing, Literal::Float(0.0));
        b.for_loop(first_m, last_m, 1, &[], |b, i, _| {
            let of_left = b.binary(Binary::Mul, i, k);
            b.for_loop(first_n, last_n, 1, &[], |b, j, _| {
                let of_right = b.binary(Binary::Mul, j, k);
                let acc = b.for_loop(first_k, last_k, DEPTH, &[nothing], |b, at, acc| {
                    let there = b.binary(Binary::Sub, last_k, at);
                    let [x, y] = [(left, of_left), (right, of_right)].map(|(buf, row)| {
                        let from = b.binary(Binary::Add, row, at);
                        let axis = Axis::stride(1).valid(there);
                        let some = b.load(buf, from, &[DEPTH], vec![axis]);
                        b.cast(some, number)
                    });
                    let product = b.binary(Binary::Mul, x, y);
                    let sum = b.reduce(ReduceKind::Sum, product, 0);
                    vec![b.binary(Binary::Add, acc[0], sum)]
                })[0];
                let to = b.binary(Binary::Mul, part, m);
                let to = b.binary(Binary::Add, to, i);
                let to = b.binary(Binary::Mul, to, n);
                let to = b.binary(Binary::Add, to, j);
                b.store(c, to, vec![], acc);
                vec![]
            });
            vec![]
        });
        b.finish()
    }

    /// What a kernel computes, if it is one of these.
    pub fn of(kernel: &Kernel) -> Option<Halves> {
        let [n, k, parts, m] = facts(kernel)?;
        let (elem, m) = match &kernel.params[..] {
            [Param::Buffer { elem, .. }, _, Param::Buffer { .. }] => (*elem, Some(m)),
            [Param::Buffer { elem, .. }, _, _, Param::Size { .. }] => (*elem, None),
            _ => return None,
        };
        let found = Halves {
            name: kernel.name.clone(),
            elem,
            m,
            n,
            k,
            parts,
        };
        found.check().ok()?;
        (found.kernel() == *kernel).then_some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_that_are_written_are_recognised() {
        for (n, k, parts) in [(128, 128, 1), (136, 648, 3)] {
            for (m, elem) in [
                (Some(1), ElemType::F16),
                (Some(65), ElemType::BF16),
                (None, ElemType::F16),
            ] {
                let halves = Halves {
                    name: "halves".to_owned(),
                    elem,
                    m,
                    n,
                    k,
                    parts,
                };
                halves.check().unwrap();
                let kernel = halves.kernel();
                crate::kernel::verify::verify(&kernel).unwrap();
                assert_eq!(Halves::of(&kernel), Some(halves));
                assert_eq!(super::super::Batch::of(&kernel), None);
            }
        }
    }

    #[test]
    fn what_has_no_kernel_is_refused() {
        let good = Halves {
            name: "halves".to_owned(),
            elem: ElemType::F16,
            m: Some(4),
            n: 64,
            k: 64,
            parts: 2,
        };
        assert_eq!(good.check(), Ok(()));
        let edits: [&dyn Fn(&mut Halves); 6] = [
            &|h| h.elem = ElemType::F32,
            &|h| h.m = Some(0),
            &|h| h.n = 12,
            &|h| h.k = 0,
            &|h| h.parts = 3,
            &|h| h.m = Some(1 << 28),
        ];
        for (i, edit) in edits.iter().enumerate() {
            let mut bad = good.clone();
            edit(&mut bad);
            assert!(bad.check().is_err(), "{i}");
        }
    }
}
