//! Hadamard matrices whose order is no power of two: those that published checkpoints are turned by, from their constructions.
//!
//! | order | made of | |
//! | --- | --- | --- |
//! | 12, 20, 60, 108, 140 | residues modulo the prime `order - 1` | Paley, first construction |
//! | 28, 36 | residues modulo the prime `order / 2 - 1` | Paley, second construction |
//! | 52, 116, 124, 156, 172 | four symmetric circulant matrices | Williamson |
//!
//! A side of length `K 2^k` is turned by the Kronecker product of the one of order `K` with that of order `2^k`, which [`order`] finds.
//! Source: Paley, "On orthogonal matrices", 1933; Williamson, "Hadamard's determinant theorem and the sum of four squares", 1944;
//! Sloane, "A Library of Hadamard Matrices", files `had.12` to `had.172.will`, whose rows are in this order.

/// The circulant matrices of Williamson's construction: their order, and of each the first half of its first row, from bit 0 on, where
/// a set bit is 1 and others are -1.
const WILLIAMSON: &[(usize, [u32; 4])] = &[
    (13, [0x65, 0x71, 0x4b, 0x21]),
    (29, [0x6e93, 0x716f, 0x74c5, 0x14c7]),
    (31, [0x84b9, 0x84b9, 0x95c1, 0x6a3f]),
    (39, [0x320a7, 0x50c8f, 0x25167, 0xb82b1]),
    (43, [0x1baf31, 0x2ca1fb, 0xbd4d7, 0x325e3]),
];

/// Which of the four matrices stands where, and its sign.
const ARRAY: [[(usize, i8); 4]; 4] = [
    [(0, 1), (1, 1), (2, 1), (3, 1)],
    [(1, -1), (0, 1), (3, -1), (2, 1)],
    [(2, -1), (3, 1), (0, 1), (1, -1)],
    [(3, -1), (2, -1), (1, 1), (0, 1)],
];

/// The orders of [`matrix`].
pub const ORDERS: [usize; 12] = [12, 20, 28, 36, 52, 60, 108, 116, 124, 140, 156, 172];

/// How `n` is divided into the order of one of these matrices, or 1, and a power of two; none if it is not.
pub fn order(n: usize) -> Option<(usize, usize)> {
    let rest = |k: usize| (n > 0 && n.is_multiple_of(k)).then(|| (k, n / k));
    // An odd factor belongs to one order.
    let mut all = ORDERS.into_iter().chain([1]).filter_map(rest);
    all.find(|(_, rest)| rest.is_power_of_two())
}

/// The matrix of one of the [`ORDERS`], row-major, of 1 and -1; none of another order.
pub fn matrix(order: usize) -> Option<Vec<i8>> {
    let at: Box<dyn Fn(usize, usize) -> i8> = match order {
        12 | 20 | 60 | 108 | 140 => Box::new(first_of_paley(order)),
        28 | 36 => Box::new(second_of_paley(order)),
        _ => Box::new(of_williamson(order)?),
    };
    Some(
        (0..order * order)
            .map(|i| at(i / order, i % order))
            .collect(),
    )
}

/// Of a difference modulo a prime: 0, or 1 for a square and -1 for what is none.
fn residue(prime: usize) -> impl Fn(usize, usize) -> i8 {
    let mut signs = vec![-1; prime];
    (1..prime).for_each(|x| signs[x * x % prime] = 1);
    signs[0] = 0;
    move |i, j| signs[(j + prime - i) % prime]
}

fn first_of_paley(order: usize) -> impl Fn(usize, usize) -> i8 {
    let residue = residue(order - 1);
    move |i, j| match (i, j) {
        (_, 0) => 1,
        (0, _) => -1,
        (i, j) if i == j => 1,
        (i, j) => -residue(i - 1, j - 1),
    }
}

/// With the symmetric conference matrix `C`: `[C + 1, C - 1; C - 1, -C - 1]`.
fn second_of_paley(order: usize) -> impl Fn(usize, usize) -> i8 {
    let half = order / 2;
    let residue = residue(half - 1);
    move |i, j| {
        let (row, column) = (i % half, j % half);
        let lower = [i, j].map(|v| v >= half);
        match (row, column) {
            (r, c) if r == c => {
                if lower == [false, false] {
                    1
                } else {
                    -1
                }
            }
            (0, _) | (_, 0) => {
                if lower == [true, true] {
                    -1
                } else {
                    1
                }
            }
            (r, c) => residue(r - 1, c - 1) * if lower == [true, true] { -1 } else { 1 },
        }
    }
}

fn of_williamson(order: usize) -> Option<impl Fn(usize, usize) -> i8> {
    let (n, rows) = WILLIAMSON.iter().find(|(n, _)| 4 * n == order)?;
    let n = *n;
    Some(move |i: usize, j: usize| {
        let (which, sign) = ARRAY[i / n][j / n];
        let at = (j % n + n - i % n) % n;
        // First rows are symmetric.
        if rows[which] >> at.min(n - at) & 1 == 1 {
            sign
        } else {
            -sign
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encodings::sha256::sha256;

    #[test]
    fn rows_are_orthogonal() {
        for n in ORDERS {
            let m = matrix(n).expect("known");
            let row = |i: usize| &m[n * i..][..n];
            let dot = |i, j| {
                row(i)
                    .iter()
                    .zip(row(j))
                    .map(|(a, b)| i32::from(a * b))
                    .sum::<i32>()
            };
            for (i, j) in (0..n).flat_map(|i| (0..=i).map(move |j| (i, j))) {
                assert_eq!(
                    dot(i, j),
                    if i == j { n as i32 } else { 0 },
                    "{n}: {i}, {j}"
                );
            }
        }
        assert_eq!(matrix(8), None);
        assert_eq!(matrix(44), None);
    }

    /// Digests of bytes 1 and 0, for 1 and -1.
    #[test]
    fn matrices_are_the_published_ones() {
        for (n, want) in [
            (12, "c1be30fecbc13e7e"),
            (20, "cff143e84622972b"),
            (28, "90e9b61e93164eb5"),
            (36, "147097e41d5a3707"),
            (52, "9aa6bec96394cfca"),
            (60, "e0d3fe922af47d1e"),
            (108, "f2515b85a3163765"),
            (116, "54ed86047196455d"),
            (124, "d8b24cc196d0c5a6"),
            (140, "2b20c54cd8c49cdc"),
            (156, "1f9950c8e2e00ddc"),
            (172, "ac825f9b6bbb0ae4"),
        ] {
            let bytes: Vec<u8> = matrix(n)
                .expect("known")
                .iter()
                .map(|&v| u8::from(v > 0))
                .collect();
            assert_eq!(sha256(&bytes)[..16], *want, "{n}");
        }
    }

    #[test]
    fn lengths_of_models_are_divided() {
        for (n, want) in [
            (1, Some((1, 1))),
            (4096, Some((1, 4096))),
            (5120, Some((20, 256))),
            (11008, Some((172, 64))),
            (12288, Some((12, 1024))),
            (13824, Some((108, 128))),
            (28672, Some((28, 1024))),
            (12, Some((12, 1))),
            (3, None),
            (6, None),
            (44, None),
            (0, None),
        ] {
            assert_eq!(order(n), want, "{n}");
        }
    }
}
