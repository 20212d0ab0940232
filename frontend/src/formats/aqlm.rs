//! AQLM: each run of a row is a sum of vectors, one from each codebook, times a scale of the row.
//!
//! ```text
//! codes i8 or i16 [to, from/d, M]   wrapped around: code mod 2^bits is the vector's number
//! codebooks f16 [M, 2^bits, 1, d]   scales f16 [to, 1, 1, 1]
//! value[o, d j ..] = scale[o] * (codebook0[code0[o, j]] + codebook1[code1[o, j]] + ..)
//! ```
//! Source: `Extreme Compression of Large Language Models via Additive Quantization`, section 3; Vahe1994/AQLM,
//! `inference_lib/src/aqlm/utils.py`.

use super::{Format, Parts, whole};
use crate::error::Problem;
use lapidary_ir::ElemType;
use lapidary_ir::encodings::{Encoding, codebook, scale, sum};

/// The format.
pub static AQLM: Format = Format {
    method: "aqlm",
    marker: "codebooks",
    term,
    split: whole,
};

fn term(p: &Parts) -> Result<Option<Encoding>, Problem> {
    let [to, runs, books] = p.shape("codes")?;
    let [books_, vectors, outputs, d] = p.shape("codebooks")?;
    if books_ != books {
        let reason = format!("are {books_}, but there are codes for {books}");
        return Err(p.wrong("codebooks", reason));
    }
    if outputs != 1 {
        let reason = format!("hold vectors over {outputs} outputs; one is read");
        return Err(p.wrong("codebooks", reason));
    }
    let mut codes = p.of("codes", &[ElemType::I8, ElemType::I16], &[to, runs, books])?;
    // The same bits without a sign are the code modulo the number of vectors, if that is all that fit.
    codes.elem = match codes.elem {
        ElemType::I8 => ElemType::U8,
        _ => ElemType::U16,
    };
    let all = 1usize << codes.elem.bits();
    let narrow = vectors < all;
    if vectors > all || narrow && !within(&codes.bytes, codes.elem.size_bytes(), vectors) {
        let reason = format!("holds codes outside of its {vectors} vectors");
        return Err(p.wrong("codes", reason));
    }
    let tables = p.floats("codebooks", &[books, vectors, 1, d])?;
    let scales = p.floats("scales", &[to, 1, 1, 1])?.dense(&[to, 1]);
    let book = |m: usize| {
        let digits = [(vectors, d), (d, 1)];
        let table = tables.strided(&[1, 1, vectors, d], m * vectors * d, &digits);
        let chosen = codes.strided(&[to, runs], m, &[(to, runs * books), (runs, books)]);
        codebook::codebook(ElemType::F32, table, chosen)
    };
    let sum = sum::sum(ElemType::F32, (0..books).map(book).collect());
    Ok(Some(scale::scale(ElemType::F32, scales, sum)))
}

/// Whether all codes of one or two bytes are below a limit.
fn within(bytes: &[u8], size: usize, limit: usize) -> bool {
    let code = |c: &[u8]| c.iter().rev().fold(0usize, |n, &b| n << 8 | usize::from(b));
    bytes.chunks_exact(size).all(|c| code(c) < limit)
}
