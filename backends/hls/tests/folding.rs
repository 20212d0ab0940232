//! Cycles of folded products are those of the formula, for every number of processing elements.

use lapidary_hls::{Folding, cost};
use lapidary_ir::kernel::build::KernelBuilder;
use lapidary_ir::kernel::contraction::{GemmTile, Kind, PANEL, RowsAt, gemm};
use lapidary_ir::kernel::{Axis, Binary, Extent, Kernel};

const VECTORS: u32 = 12;
const PANELS: u64 = 3;
const INPUTS: i64 = 40;

/// `VECTORS` vectors of `INPUTS` times a matrix with `PANELS` panels of columns.
fn product(kind: Kind) -> Kernel {
    let mut b = KernelBuilder::new("product");
    let [of_a, of_b, of_c] = kind.elems();
    let a = b.buffer("a", of_a, false);
    let w = b.buffer("w", of_b, false);
    let c = b.buffer("c", of_c, true);
    let panel = b.grid(Extent::Const(PANELS));
    let (k, len) = (b.index(INPUTS), b.index(INPUTS * i64::from(PANEL)));
    let b_base = b.binary(Binary::Mul, panel, len);
    let tile = GemmTile {
        kind,
        rows: VECTORS,
        a,
        b: w,
        b_base,
        k,
        taps: 1,
        width: PANEL,
    };
    let acc = gemm(&mut b, tile, |b, _| RowsAt {
        base: b.index(0),
        rows: Axis::stride(INPUTS),
    });
    let width = b.index(i64::from(PANEL));
    let column = b.binary(Binary::Mul, panel, width);
    let stride = PANELS as i64 * i64::from(PANEL);
    b.store(c, column, vec![Axis::stride(stride), Axis::stride(1)], acc);
    b.finish()
}

#[test]
fn a_product_takes_the_cycles_of_its_folding() {
    for (kind, simd) in [(Kind::F32, 1), (Kind::I8, 4)] {
        let kernel = product(kind);
        for pe in [1, 2, 4, 8, 16, 32] {
            let found = cost(&kernel, &[], Folding { pe }).expect("it is translated");
            let (mh, mw) = (PANELS * u64::from(PANEL), INPUTS as u64);
            let formula = (mh / u64::from(pe)) * (mw / simd) * u64::from(VECTORS);
            // Sums are set to zero before, and stored behind.
            let sums = mh * u64::from(VECTORS);
            let beside = 2 * sums / u64::from(pe.min(16));
            assert_eq!(
                found.iterations,
                (formula + beside) as f64,
                "{kind:?}, PE {pe}"
            );
            let multipliers = match kind {
                // Two columns share one, so a column alone has its own.
                Kind::I8 if pe == 1 => 4,
                Kind::I8 => 2 * pe,
                _ => 5 * pe,
            };
            assert_eq!(found.dsp, f64::from(multipliers), "{kind:?}, PE {pe}");
        }
    }
}
