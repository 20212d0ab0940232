//! `hashed`: every weight is one of a small pool, chosen by a hash of its place.
//!
//! ```text
//! children: pool                     ([m])
//! i = q * chunk + o:  value[i] = sign(i) * pool[(hash(q; h) + o) mod m]
//! hash(x; a) = ((a1 x + a2 x² + a3) mod P) ,  sign(i) = hash(i; sign) is odd ? 1 : -1
//! ```
//! `i` is the row-major place, `chunk` (1 by default) the number of weights that lie together in the pool, `hash` the
//! numbers `[a1, a2, a3]` of the hash, `sign` those of the signs (all 1 without it), `P` is 2038074743.
//! Source: `Compressing Neural Networks with the Hashing Trick`; `In defense of parameter sharing for model-compression`,
//! section 3.

use super::sampling::Sampler;
use super::{Constructor, DecodeError, Encoding};
use crate::builder::Builder;
use crate::ops::OpError;
use crate::ops::compose::Len;
use crate::{Attr, ElemType, Tensor, ValueId};

/// The constructor.
pub static HASHED: Constructor = Constructor {
    name: "hashed",
    summary: "weights of a shared pool, by a hash of their place",
    children: &["pool"],
    has_blob: false,
    algebraic: false,
    contents: None,
    check: |e| parts(e).map(|_| ()),
    decode,
    open,
    sample,
};

/// The prime of the hash.
pub const PRIME: i64 = 2_038_074_743;

/// A term decoding to the pool's element type.
pub fn hashed(
    shape: Vec<usize>,
    pool: Encoding,
    chunk: usize,
    hash: [i64; 3],
    sign: Option<[i64; 3]>,
) -> Encoding {
    let params = [
        ("chunk", Attr::Int(chunk as i64)),
        ("hash", Attr::Ints(hash.to_vec())),
    ];
    let sign = sign.map(|s| ("sign", Attr::Ints(s.to_vec())));
    Encoding::of(
        &HASHED,
        pool.elem,
        shape,
        params.into_iter().chain(sign),
        [pool],
    )
}

struct Parts {
    chunk: i64,
    hash: [i64; 3],
    sign: Option<[i64; 3]>,
    pool: i64,
}

fn parts(e: &Encoding) -> Result<Parts, DecodeError> {
    let numbers = |name: &str| match e.params.get(name) {
        None => Ok(None),
        Some(Attr::Ints(v)) if v.iter().all(|a| (0..PRIME).contains(a)) => {
            let v: Option<[i64; 3]> = v.as_slice().try_into().ok();
            v.map(Some)
                .ok_or_else(|| e.error(format!("`{name}` is three numbers")))
        }
        Some(_) => Err(e.error(format!("`{name}` is three numbers below {PRIME}"))),
    };
    let pool = &e.children[0];
    if pool.elem != e.elem || !e.elem.is_float() || pool.shape.len() != 1 || pool.is_empty() {
        return Err(e.error("the pool is a list of the result's float type"));
    }
    // Places must be below the prime for the products of the hash to stay inside 64 bits.
    if e.len() as u64 >= PRIME as u64 || pool.len() as u64 >= PRIME as u64 {
        return Err(e.error("result and pool must have fewer elements than the hash has values"));
    }
    Ok(Parts {
        chunk: e.size_param("chunk")?.min(PRIME as usize) as i64,
        hash: numbers("hash")?.ok_or_else(|| e.error("needs `hash`"))?,
        sign: numbers("sign")?,
        pool: pool.len() as i64,
    })
}

fn hash(x: i64, [a1, a2, a3]: [i64; 3]) -> i64 {
    // Horner's rule, reduced at each step.
    (((a2 * x % PRIME + a1) % PRIME) * x % PRIME + a3) % PRIME
}

fn decode(e: &Encoding) -> Result<Tensor, DecodeError> {
    let p = parts(e)?;
    let pool = e.floats(0)?;
    let values = (0..e.len() as i64).map(|i| {
        let at = (hash(i / p.chunk, p.hash) + i % p.chunk) % p.pool;
        let negative = p.sign.is_some_and(|s| hash(i, s) % 2 == 0);
        let v = pool[at as usize];
        if negative { -v } else { v }
    });
    Ok(e.tensor(values.collect()))
}

fn open(e: &Encoding, b: &mut Builder) -> Result<ValueId, OpError> {
    let p = parts(e).map_err(|e| OpError::new(e.to_string()))?;
    let i = b.iota(Len::N(e.len() as i64))?;
    let with = |b: &mut Builder, op: &str, x: ValueId, y: i64| {
        let y = b.constant(&Tensor::int(y));
        b.op(op, &[x, y])
    };
    let hash = |b: &mut Builder, x: ValueId, [a1, a2, a3]: [i64; 3]| {
        let mut y = with(b, "mul", x, a2)?;
        y = with(b, "mod", y, PRIME)?;
        y = with(b, "add", y, a1)?;
        y = with(b, "mod", y, PRIME)?;
        y = b.op("mul", &[y, x])?;
        y = with(b, "mod", y, PRIME)?;
        y = with(b, "add", y, a3)?;
        with(b, "mod", y, PRIME)
    };
    let chunk = with(b, "div", i, p.chunk)?;
    let offset = with(b, "mod", i, p.chunk)?;
    let at = hash(b, chunk, p.hash)?;
    let at = b.op("add", &[at, offset])?;
    let at = with(b, "mod", at, p.pool)?;
    let pool = e.child(b, 0);
    let mut y = b.op("gather", &[pool, at])?;
    if let Some(sign) = p.sign {
        let odd = hash(b, i, sign)?;
        let odd = with(b, "mod", odd, 2)?;
        let odd = b.cast(odd, ElemType::Bool)?;
        let negative = b.op("neg", &[y])?;
        y = b.op("where", &[odd, y, negative])?;
    }
    let lens: Vec<Len> = e.shape.iter().map(|&n| Len::N(n as i64)).collect();
    b.reshape(y, &lens)
}

fn sample(s: &mut Sampler, elem: ElemType, shape: &[usize]) -> Option<Encoding> {
    if !elem.is_float() {
        return None;
    }
    let m = s.below(24) + 1;
    let pool = s.term(elem, &[m]);
    let mut numbers = || [0; 3].map(|_: i64| s.below(PRIME as usize) as i64);
    let (hash, sign) = (numbers(), numbers());
    let chunk = s.one_of(&[1, 3, 8]);
    Some(hashed(
        shape.to_vec(),
        pool,
        chunk,
        hash,
        (s.below(2) == 0).then_some(sign),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encodings::dense;

    #[test]
    fn the_hash_is_that_of_the_sheet() {
        let (x, a) = (123_456i128, [17i64, 1_999_999_999, 5]);
        let want = (i128::from(a[0]) * x + i128::from(a[1]) * x * x + i128::from(a[2]))
            % i128::from(PRIME);
        assert_eq!(i128::from(hash(x as i64, a)), want);
        let pool = Tensor::from_f64(ElemType::F32, [4], vec![1.0, 2.0, 3.0, 4.0]);
        let e = hashed(vec![6], dense::from_tensor(&pool), 3, [2, 0, 1], None);
        // Chunks 0 and 1 begin at 1 and 3.
        assert_eq!(
            e.decode().expect("valid").floats(),
            Some(&[2.0, 3.0, 4.0, 4.0, 1.0, 2.0][..])
        );
    }
}
