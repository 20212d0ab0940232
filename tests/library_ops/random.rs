//! Random operands.

use lapidary_ir::ElemType;
use lapidary_ir::tensor::{Data, Tensor, Value};

/// Random operands: the same on every run.
pub struct Gen(pub u64);

impl Gen {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from `low` to `high`, both possible.
    pub fn int(&mut self, low: i64, high: i64) -> i64 {
        low + (self.next() % (high - low + 1) as u64) as i64
    }

    pub fn flag(&mut self) -> bool {
        self.next() & 1 == 1
    }

    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.next() as usize % of.len()]
    }

    pub fn dims(&mut self, least: i64, most: i64) -> Vec<usize> {
        let rank = self.int(least, most);
        // Empty axes are rare.
        (0..rank)
            .map(|_| {
                if self.int(0, 15) == 0 {
                    0
                } else {
                    self.int(1, 4) as usize
                }
            })
            .collect()
    }

    pub fn ints(&mut self, elem: ElemType, dims: &[usize], low: i64, high: i64) -> Value {
        let n = dims.iter().product();
        let values = (0..n).map(|_| self.int(low, high).into()).collect();
        Tensor::from_int(elem, dims, values).into()
    }

    pub fn float(&mut self) -> f64 {
        match self.int(0, 40) {
            0 => f64::NAN,
            1 => f64::INFINITY,
            2 => -0.0,
            3 => 1e20,
            4..=15 => self.int(-3, 3) as f64,
            _ => self.int(-100_000, 100_000) as f64 / 997.0,
        }
    }

    /// Numbers without NaN and infinities.
    pub fn plain(&mut self, elem: ElemType, dims: &[usize]) -> Value {
        let n = dims.iter().product();
        let values = (0..n)
            .map(|_| self.int(-4000, 4000) as f64 / 1000.0)
            .collect();
        Tensor::from_f64(elem, dims, values).into()
    }

    pub fn texts(&mut self, dims: &[usize]) -> Value {
        const WORDS: &[&str] = &[
            "", "a", "b", "ab", " a  b ", "a,b,,c", "A", "Äb", "b a", "3", "-2.5", "x1",
        ];
        let n: usize = dims.iter().product();
        let words = (0..n).map(|_| self.pick(WORDS).to_owned()).collect();
        Tensor::new(ElemType::String, dims, Data::Str(words)).into()
    }

    /// A tensor of this type, with few distinct elements.
    pub fn of(&mut self, elem: ElemType, dims: &[usize]) -> Value {
        let n: usize = dims.iter().product();
        match elem {
            ElemType::String => self.texts(dims),
            ElemType::C64 | ElemType::C128 => {
                let pairs = (0..n)
                    .map(|_| [0, 1].map(|_| self.int(-2, 2) as f64))
                    .collect();
                Tensor::new(elem, dims, Data::Complex(pairs)).into()
            }
            e if e.is_float() => {
                let values = (0..n).map(|_| self.float()).collect();
                Tensor::from_f64(e, dims, values).into()
            }
            e => self.ints(e, dims, -5, 9),
        }
    }

    pub fn any(&mut self, dims: &[usize]) -> Value {
        use ElemType::*;
        let elem = self.pick(&[
            F32, F64, F16, BF16, I64, I32, U8, I8, U4, I2, Bool, String, C64, F8E4M3FN,
        ]);
        self.of(elem, dims)
    }

    pub fn sequence(&mut self) -> Value {
        let (dims, elem) = (
            self.dims(1, 3),
            self.pick(&[ElemType::F32, ElemType::String]),
        );
        let n = self.int(1, 4);
        Value::Sequence((0..n).map(|_| self.of(elem, &dims)).collect())
    }
}
