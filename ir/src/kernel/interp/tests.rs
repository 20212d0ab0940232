use super::build::KernelBuilder;
use super::*;

/// Scales rows with a remainder: tiles of 4, `valid` at the end.
#[test]
fn tiles_stop_at_the_end_of_a_row() {
    let mut b = KernelBuilder::new("scale");
    let x = b.buffer("x", ElemType::F32, false);
    let y = b.buffer("y", ElemType::F32, true);
    let n = b.size_param("n");
    let block = b.grid(Extent::Param {
        param: n,
        divisor: 4,
    });
    let four = b.index(4);
    let base = b.binary(Binary::Mul, block, four);
    let n = b.size(n);
    let left = b.binary(Binary::Sub, n, base);
    let v = b.load(x, base, &[4], vec![Axis::stride(1).valid(left)]);
    let two = b.constant(TileType::of(ElemType::F32, &[4]), Literal::Float(2.0));
    let v = b.binary(Binary::Mul, v, two);
    b.store(y, base, vec![Axis::stride(1).valid(left)], v);
    let kernel = b.finish();
    super::verify::verify(&kernel).unwrap();
    let mut x: Vec<u8> = (0..6).flat_map(|i| (i as f32).to_le_bytes()).collect();
    let mut y = vec![0u8; 24];
    run(&kernel, &mut [&mut x, &mut y], &[6], 0, 2).unwrap();
    let want: Vec<u8> = (0..6)
        .flat_map(|i| (2.0 * i as f32).to_le_bytes())
        .collect();
    assert_eq!(y, want);
    assert!(run(&kernel, &mut [&mut x, &mut y], &[9], 0, 3).is_err());
}
