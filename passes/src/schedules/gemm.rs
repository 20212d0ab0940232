//! Matrix product with a packed right side: `c[b][m][n] = clamp(a[b][m][k] * w[b][k][n] + bias[n] + residual[b][m][n])`.
//!
//! ```text
//! grid (batch, panel of 32 columns, tile of up to 14 rows)     rows fastest: a panel stays in cache
//! ```
//! A panel of `w` is `[k][32]`, so a block reads one forward stream of weights. Rows of a tile divide `m` evenly: 128 rows
//! are 9 tiles of 13 and one of 11, not 9 of 14 and one of 2.

use super::activation::Activation;
use super::codes::{self, Codes, Tail};
use super::epilogue::finish;
use super::pack::panel_at;
use super::{Num, add, even_rows, mul, mul_const};
use lapidary_ir::ElemType;
use lapidary_ir::kernel::build::KernelBuilder;
use lapidary_ir::kernel::contraction::{self, Epilogue, GemmTile, Kind, MAX_ROWS, PANEL, RowsAt};
use lapidary_ir::kernel::{At, Axis, Binary, Kernel};

/// Extents and epilogue of a product.
#[derive(Clone, Debug, PartialEq)]
pub struct Gemm {
    /// Independent products.
    pub batch: Num,
    /// Rows.
    pub m: Num,
    /// Columns.
    pub n: Num,
    /// Inner extent.
    pub k: Num,
    /// `a` has a matrix for each product, rather than one for all.
    pub a_batched: bool,
    /// `w` has.
    pub w_batched: bool,
    /// Add a row of `n` values.
    pub bias: bool,
    /// Add a tensor of the result's shape.
    pub residual: bool,
    /// Lower bound of the result.
    pub lo: Option<f32>,
    /// Upper bound of the result.
    pub hi: Option<f32>,
    /// Applied last.
    pub activation: Option<Activation>,
    /// `a` and `w` are codes.
    pub codes: Option<Codes>,
    /// `w` is of `bf16`, and so is `a` when it is multiplied; not for codes.
    pub bf16: bool,
    /// What a result's codes go through.
    pub tail: Tail,
    /// Columns of a panel.
    pub width: u32,
}

impl Gemm {
    /// A plain product.
    pub fn new(batch: Num, m: Num, n: Num, k: Num) -> Gemm {
        Gemm {
            batch,
            m,
            n,
            k,
            a_batched: true,
            w_batched: true,
            bias: false,
            residual: false,
            lo: None,
            hi: None,
            activation: None,
            codes: None,
            bf16: false,
            tail: Tail::default(),
            width: PANEL,
        }
    }

    /// Operand types.
    pub fn kind(&self) -> Kind {
        codes::kind(self.codes, self.bf16)
    }

    /// Elements of `w` packed, for one product.
    pub fn packed_len(&self, n: i64, k: i64) -> i64 {
        let panels = (n as u64).div_ceil(u64::from(self.width)) as i64;
        panels * self.kind().padded(k) * i64::from(self.width)
    }

    /// Rows of a tile.
    pub fn tile_rows(&self) -> u32 {
        even_rows(self.m, MAX_ROWS)
    }

    /// The kernel. Parameters: `a`, `w` packed, those of [`codes::Params`], `bias`?, `residual`?, those of
    /// [`codes::TailParams`], `c`, then those of `batch`, `m`, `n`, `k` that are [`Num::Sym`].
    pub fn kernel(&self, name: &str) -> Kernel {
        let mut b = KernelBuilder::new(name);
        let [of_a, of_w, _] = self.kind().elems();
        let of_c = codes::result(self.codes, &self.tail);
        let a = b.buffer("a", of_a, false);
        let w = b.buffer("w", of_w, false);
        let for_codes = self.codes.map(|c| (c, c.params(&mut b)));
        let bias = self.bias.then(|| b.buffer("bias", ElemType::F32, false));
        let residual = self
            .residual
            .then(|| b.buffer("residual", ElemType::F32, false));
        let tail = self.tail.params(&mut b);
        let c = b.buffer("c", of_c, true);
        let [batch, m, n, k] = [
            (self.batch, "batch"),
            (self.m, "m"),
            (self.n, "n"),
            (self.k, "k"),
        ]
        .map(|(num, name)| num.bind(&mut b, name));
        let rows = self.tile_rows();
        let (batch_at, panel, tile) = (
            b.grid(batch.tiles(1)),
            b.grid(n.tiles(self.width)),
            b.grid(m.tiles(rows)),
        );

        let row0 = mul_const(&mut b, tile, i64::from(rows));
        let rows_left = b.binary(Binary::Sub, m.var, row0);
        let zero = b.index(0);
        // Element offset of the first row: (product * m + row0) * width.
        let first = |b: &mut KernelBuilder, batched: bool, width| {
            let product = if batched {
                mul(b, batch_at, m.var)
            } else {
                zero
            };
            let row = add(b, product, row0);
            mul(b, row, width)
        };
        let a_base = first(&mut b, self.a_batched, k.var);
        let panels = match self.n.known() {
            Some(n) => b.index((n as u64).div_ceil(u64::from(self.width)) as i64),
            None => {
                let up = super::add_const(&mut b, n.var, i64::from(self.width) - 1);
                let width = b.index(i64::from(self.width));
                b.binary(Binary::FloorDiv, up, width)
            }
        };
        let product_panels = if self.w_batched {
            mul(&mut b, batch_at, panels)
        } else {
            zero
        };
        let panel_index = add(&mut b, product_panels, panel);
        let w_base = panel_at(
            &mut b,
            self.kind(),
            panel_index,
            [1, i64::from(self.width)],
            k.var,
        );
        let col0 = mul_const(&mut b, panel, i64::from(self.width));
        let scaled = for_codes.map(|(c, params)| c.scaled(&mut b, params, col0));

        let a_rows = Axis {
            at: stride(self.k, k.var),
            valid: Some(rows_left),
            mask: None,
        };
        let spec = GemmTile {
            kind: self.kind(),
            rows,
            a,
            b: w,
            b_base: w_base,
            k: k.var,
            taps: 1,
            width: self.width,
        };
        let acc = contraction::gemm(&mut b, spec, |_, _| RowsAt {
            base: a_base,
            rows: a_rows,
        });

        let cols = b.binary(Binary::Sub, n.var, col0);
        let c_row = first(&mut b, true, n.var);
        let c_base = add(&mut b, c_row, col0);
        let c_at = RowsAt {
            base: c_base,
            rows: Axis {
                at: stride(self.n, n.var),
                valid: Some(rows_left),
                mask: None,
            },
        };
        let exact = self
            .n
            .known()
            .is_some_and(|n| n % i64::from(self.width) == 0);
        let (lo, hi) = match self.codes {
            Some(c) => c.bounds(self.lo, self.hi),
            None => (self.lo, self.hi),
        };
        let epilogue = Epilogue {
            scaled,
            bias: bias.map(|buf| (buf, col0)),
            residual: residual.map(|buf| (buf, c_at.clone())),
            lo,
            hi,
            code: self.tail.code().or(self.codes.and_then(Codes::code)),
            stages: self.tail.stages(&tail, col0, |_| c_at.clone()),
            table: self.tail.table(&tail),
            c,
            c_at,
            cols: (!exact).then_some(cols),
        };
        finish(&mut b, acc, epilogue, self.activation, self.n);
        b.finish()
    }
}

fn stride(num: Num, var: lapidary_ir::kernel::Var) -> At {
    num.known().map_or(At::DynStride(var), At::Stride)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedules::pack;
    use crate::schedules::testing::{close, numbers, run};

    fn check(gemm: &Gemm, [batch, m, n, k]: [usize; 4], transposed: bool) {
        let sizes: Vec<i64> = [(gemm.batch, batch), (gemm.m, m), (gemm.n, n), (gemm.k, k)]
            .iter()
            .filter(|(num, _)| *num == Num::Sym)
            .map(|&(_, v)| v as i64)
            .collect();
        let a = numbers(batch * m * k, 1);
        let w = numbers(batch * k * n, 2);
        let (bias, residual) = (numbers(n, 3), numbers(batch * m * n, 4));
        let packer = pack::kernel(
            "pack",
            Num::Const(batch as i64),
            Num::Const(k as i64),
            Num::Const(n as i64),
            transposed,
        );
        let packed = run(
            &packer,
            &[&w],
            batch * gemm.packed_len(n as i64, k as i64) as usize,
            &[],
        );
        let mut inputs: Vec<&[f32]> = vec![&a, &packed];
        if gemm.bias {
            inputs.push(&bias);
        }
        if gemm.residual {
            inputs.push(&residual);
        }
        let got = run(&gemm.kernel("gemm"), &inputs, batch * m * n, &sizes);
        let mut want = vec![];
        for (p, i, j) in
            (0..batch).flat_map(|p| (0..m).flat_map(move |i| (0..n).map(move |j| (p, i, j))))
        {
            let at = |kk| {
                if transposed {
                    (p * n + j) * k + kk
                } else {
                    (p * k + kk) * n + j
                }
            };
            let mut sum: f32 = (0..k).map(|kk| a[(p * m + i) * k + kk] * w[at(kk)]).sum();
            sum += if gemm.bias { bias[j] } else { 0.0 };
            sum += if gemm.residual {
                residual[(p * m + i) * n + j]
            } else {
                0.0
            };
            want.push(
                sum.max(gemm.lo.unwrap_or(f32::NEG_INFINITY))
                    .min(gemm.hi.unwrap_or(f32::INFINITY)),
            );
        }
        close(&got, &want);
    }

    #[test]
    fn products_match_the_definition() {
        let c = Num::Const;
        let fused = |g: Gemm| Gemm {
            bias: true,
            residual: true,
            lo: Some(0.0),
            hi: Some(2.0),
            ..g
        };
        check(&Gemm::new(c(1), c(1), c(40), c(7)), [1, 1, 40, 7], false);
        check(
            &fused(Gemm::new(c(1), c(17), c(32), c(5))),
            [1, 17, 32, 5],
            false,
        );
        check(
            &fused(Gemm::new(c(2), c(15), c(33), c(8))),
            [2, 15, 33, 8],
            true,
        );
        check(
            &fused(Gemm::new(Num::Sym, Num::Sym, Num::Sym, Num::Sym)),
            [3, 29, 65, 6],
            false,
        );
    }
}
