//! The nearest vectors of the lattice tables, and of two of them that add up.
//!
//! A vector of E8P is an absolute vector with signs, shifted up or down by 1/4. For each of the 2 x 256 pairs of shift and
//! absolute vector `a` the best signs are those of the number itself; if their parity is not that of `a`, the sign that
//! costs least is turned. So the nearest of 65536 is the best of 512, exactly.
//! Source: Tseng et al., "QuIP#: Even Better LLM Quantization with Hadamard Incoherence and Lattice Codebooks", section 4.

use crate::methods::MethodError;
use lapidary_ir::encodings::lattice::{self, DIM};

/// A vector of a table: its code, and its numbers.
pub type Entry = (u16, [f64; DIM]);

/// The vectors of E8P, made for search.
#[derive(Clone, Debug)]
pub struct E8p {
    /// Absolute vectors, half their squares, and whether an odd number of coordinates is negative.
    entries: Vec<([f64; DIM], f64, bool)>,
}

impl E8p {
    /// Of [`lattice::e8p_absolutes`].
    pub fn new() -> E8p {
        let entry = |a: [i8; DIM]| {
            let size = a.map(|v| f64::from(v.abs()) / 2.0);
            let square: f64 = size.iter().map(|v| v * v).sum();
            (size, square / 2.0, a[DIM - 1] < 0)
        };
        E8p {
            entries: lattice::e8p_absolutes().into_iter().map(entry).collect(),
        }
    }

    /// The nearest vector; of equally near ones the one that is shifted up, then the one of the first absolute vector.
    pub fn nearest(&self, x: &[f64; DIM]) -> Entry {
        // What is compared is a x - |a|²/2 of the shifted numbers, less half their square.
        let mut best = (f64::NEG_INFINITY, 0, false);
        for down in [false, true] {
            let y = x.map(|v| v - shift(down));
            let (size, odd) = (y.map(f64::abs), is_odd(&y));
            let square: f64 = y.iter().map(|v| v * v).sum();
            for (k, (a, half_square, negative)) in self.entries.iter().enumerate() {
                let products: [f64; DIM] = std::array::from_fn(|i| a[i] * size[i]);
                let mut score = products.iter().sum::<f64>() - half_square - square / 2.0;
                if odd != *negative && score > best.0 {
                    score -= 2.0 * products.iter().copied().fold(f64::INFINITY, f64::min);
                }
                if score > best.0 {
                    best = (score, k, down);
                }
            }
        }
        let (_, k, down) = best;
        let (a, _, negative) = self.entries[k];
        let y = x.map(|v| v - shift(down));
        let mut below = y.map(|v| v < 0.0);
        if is_odd(&y) != negative {
            let cost = |i: &usize| a[*i] * y[*i].abs();
            let least = (0..DIM).min_by(|i, j| cost(i).total_cmp(&cost(j)));
            least.into_iter().for_each(|i| below[i] = !below[i]);
        }
        // The last coordinate of the table is negative already where an odd number of them is.
        below[DIM - 1] ^= negative;
        let code = (k as u16) << 8 | u16::from(lattice::e8p_signs(below, down));
        (code, self.vector(code))
    }

    /// The vector of a code.
    pub fn vector(&self, code: u16) -> [f64; DIM] {
        let (a, _, negative) = self.entries[usize::from(code >> 8)];
        let (mut below, down) = lattice::e8p_negated(code as u8);
        below[DIM - 1] ^= negative;
        std::array::from_fn(|i| if below[i] { -a[i] } else { a[i] } + shift(down))
    }
}

impl Default for E8p {
    fn default() -> E8p {
        E8p::new()
    }
}

/// The shift of the lattice.
fn shift(down: bool) -> f64 {
    if down { -0.25 } else { 0.25 }
}

/// Whether an odd number of coordinates is below 0.
fn is_odd(y: &[f64; DIM]) -> bool {
    y.iter().filter(|v| **v < 0.0).count() % 2 == 1
}

/// The table that what is left of E8P is rounded to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residual {
    /// [`lattice::e8`]: one more bit for each weight.
    E8,
    /// E8P once more: two bits.
    E8p,
}

/// What numbers of the normal distribution are rounded to.
#[derive(Clone, Debug)]
pub struct Grid {
    /// The root mean square that numbers are brought to.
    pub reach: f64,
    /// The second table, and how many times smaller it is.
    pub residual: Option<(Residual, f64)>,
    first: E8p,
    short: Vec<[f64; DIM]>,
}

impl Grid {
    /// The published tables for codes of `bits` bits for each weight; the reach of 4 bits is what loses least of normal
    /// numbers.
    ///
    /// # Errors
    /// There are tables of 2, 3 and 4 bits.
    pub fn of(bits: u32) -> Result<Grid, MethodError> {
        let (reach, residual) = match bits {
            2 => (1.03, None),
            3 => (0.98, Some((Residual::E8, 2.04))),
            4 => (0.93, Some((Residual::E8p, 3.45))),
            _ => {
                return Err(MethodError::Settings(format!(
                    "codes of 2 to 4 bits, not of {bits}"
                )));
            }
        };
        let halves = |v: [i8; DIM]| v.map(|x| f64::from(x) / 2.0);
        Ok(Grid {
            reach,
            residual,
            first: E8p::new(),
            short: lattice::e8_vectors().into_iter().map(halves).collect(),
        })
    }

    /// How many tables add up.
    pub fn tables(&self) -> usize {
        1 + usize::from(self.residual.is_some())
    }

    /// Codes of `x` in each table (0 where there is no second): the nearest vector of the first table, and the nearest in the
    /// second one of what is left.
    pub fn round(&self, x: &[f64; DIM]) -> [u16; 2] {
        let (first, values) = self.first.nearest(x);
        let Some((table, finer)) = self.residual else {
            return [first, 0];
        };
        let left: [f64; DIM] = std::array::from_fn(|i| (x[i] - values[i]) * finer);
        let second = match table {
            Residual::E8 => self.nearest_short(&left),
            Residual::E8p => self.first.nearest(&left).0,
        };
        [first, second]
    }

    /// What codes of [`Grid::round`] add up to.
    pub fn vector(&self, [first, second]: [u16; 2]) -> [f64; DIM] {
        let values = self.first.vector(first);
        let (rest, finer) = match self.residual {
            None => return values,
            Some((Residual::E8, finer)) => (self.short[usize::from(second)], finer),
            Some((Residual::E8p, finer)) => (self.first.vector(second), finer),
        };
        std::array::from_fn(|i| values[i] + rest[i] / finer)
    }

    fn nearest_short(&self, x: &[f64; DIM]) -> u16 {
        let far = |v: &[f64; DIM]| -> f64 { v.iter().zip(x).map(|(v, x)| (v - x).powi(2)).sum() };
        let all = self.short.iter().enumerate();
        let best = all.min_by(|a, b| far(a.1).total_cmp(&far(b.1)));
        best.map_or(0, |(k, _)| k as u16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::methods::testing::{near, random};

    /// Runs of normal numbers.
    fn runs(count: usize, seed: u64) -> Vec<[f64; DIM]> {
        let all = random(count, DIM, seed);
        (0..count)
            .map(|r| std::array::from_fn(|i| all[(r, i)]))
            .collect()
    }

    fn far(a: &[f64], b: &[f64]) -> f64 {
        a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum()
    }

    #[test]
    fn nearest_is_the_nearest_of_all() {
        let table = lattice::e8p().decode().expect("valid");
        let table = table.floats().expect("floats");
        let e8p = E8p::new();
        for (n, x) in runs(1000, 7).into_iter().enumerate() {
            let x = x.map(|v| v * (0.3 + n as f64 / 400.0));
            let (code, values) = e8p.nearest(&x);
            let entry = &table[usize::from(code) * DIM..][..DIM];
            assert_eq!(values, entry, "{code:x}");
            let all = table.chunks(DIM).map(|v| far(&x, v));
            let least = all.fold(f64::INFINITY, f64::min);
            assert!(far(&x, &values) <= least + 1e-12, "{x:?}");
        }
    }

    /// Mean squared error of a normal number that is multiplied by `reach` before it is rounded.
    fn error(grid: &Grid, reach: f64) -> f64 {
        let runs = runs(20_000, 3);
        let of = |x: &[f64; DIM]| {
            let x = x.map(|v| v * reach);
            far(&x, &grid.vector(grid.round(&x)))
        };
        let sum: f64 = runs.iter().map(of).sum();
        sum / (runs.len() * DIM) as f64 / (reach * reach)
    }

    #[test]
    fn errors_of_normals_are_the_known_ones() {
        let grid = Grid::of(2).expect("known");
        for (reach, golden) in [(0.9, 0.0996), (1.03, 0.0916), (1.1, 0.0926)] {
            near(error(&grid, reach), golden, 0.01);
        }
    }

    /// Scalar codes of 3 and 4 bits lose 0.03744 and 0.01154 at best.
    #[test]
    fn residual_tables_beat_scalars_at_their_reach() {
        for (bits, scalar, golden) in [(3, 0.0374, 0.0298), (4, 0.01154, 0.00875)] {
            let grid = Grid::of(bits).expect("known");
            let own = error(&grid, grid.reach);
            assert!(own < 0.9 * scalar);
            near(own, golden, 0.02);
            assert!(own < error(&grid, 0.9 * grid.reach));
            assert!(own < error(&grid, 1.1 * grid.reach));
        }
        assert!(Grid::of(1).is_err() && Grid::of(5).is_err());
    }
}
