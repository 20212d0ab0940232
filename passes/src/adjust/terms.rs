//! The parts that a weight's term is the sum of.

use lapidary_ir::encodings::affine::affine;
use lapidary_ir::encodings::{DecodeError, Encoding, dense, scale};
use lapidary_ir::{Attr, ElemType, Tensor};

/// About the sum of squares of a term.
pub fn size(part: &Encoding) -> Result<f64, DecodeError> {
    let squares = |e: &Encoding| -> Result<f64, DecodeError> {
        let values = e.decode()?.to_f64s().unwrap_or_default();
        Ok(values.iter().map(|v| v * v).sum::<f64>() / values.len().max(1) as f64)
    };
    let mean = match (part.ctor.name, part.children.get(1)) {
        // Codes are spread evenly over their range; without decoding them.
        ("affine", Some(codes)) if codes.int_param("bits").is_some() => {
            let steps = 2f64.powi(codes.int_param("bits").unwrap_or(8) as i32);
            squares(&part.children[0])? * (steps * steps - 1.0) / 12.0
        }
        _ => squares(part)?,
    };
    Ok(mean * part.len() as f64)
}

/// The terms of a weight: the sum of its parts, times scales of its inputs.
pub struct Terms {
    /// `[1, I]`.
    pub scales: Option<Encoding>,
    /// Matrices `[O, I]`, those that matter most first.
    pub parts: Vec<Encoding>,
}

impl Terms {
    /// Of a matrix `[O, I]`.
    pub fn of(term: &Encoding) -> Result<Terms, DecodeError> {
        term.check()?;
        let inputs = [1, term.shape[1]];
        let scaled = Some(&term.children[..]).filter(|_| term.ctor.name == "scale");
        if let Some([scales, of]) = scaled
            && scales.shape == inputs
        {
            return Ok(Terms {
                scales: Some(scales.as_ref().clone()),
                parts: parts(of)?,
            });
        }
        Ok(Terms {
            scales: None,
            parts: parts(term)?,
        })
    }
}

/// True for a term of which there are parts.
pub fn has_parts(term: &Encoding) -> bool {
    let second = term.children.get(1);
    term.elem == ElemType::F32
        && match term.ctor.name {
            "sum" => second.is_some(),
            "scale" => second.is_some_and(|e| has_parts(e)),
            "affine" => second.is_some_and(|c| c.ctor.name == "bits" && c.children.len() > 1),
            _ => false,
        }
}

/// The parts of a term, of which it is the sum.
fn parts(term: &Encoding) -> Result<Vec<Encoding>, DecodeError> {
    let children = || term.children.iter();
    Ok(match term.ctor.name {
        "sum" => children().map(|c| c.as_ref().clone()).collect(),
        "scale" if has_parts(term) => {
            let scaled = |part| scale::scale(term.elem, term.children[0].as_ref().clone(), part);
            let of = parts(&term.children[1])?;
            of.into_iter().map(scaled).collect()
        }
        "affine" if has_parts(term) => planes(term)?,
        _ => vec![term.clone()],
    })
}

/// What each plane of codes adds. Where `r` bits are missing behind a plane, a code stands for the middle of what it could be,
/// `code << r | 1 << r >> 1`; the next plane moves that.
fn planes(term: &Encoding) -> Result<Vec<Encoding>, DecodeError> {
    let codes = &term.children[1];
    let full = codes.int_param("full").unwrap_or(0);
    let Some(Attr::Ints(widths)) = codes.params.get("widths") else {
        return Ok(vec![term.clone()]);
    };
    let scales = &term.children[0];
    let numbers = |e: &Encoding| Ok(e.decode()?.to_f64s().unwrap_or_default());
    let scale_numbers: Vec<f64> = numbers(scales)?;
    let middle = |missing: i64| ((1i64 << missing) >> 1) as f64;
    let mut missing = full;
    let mut out = vec![];
    for (i, (plane, width)) in codes.children.iter().zip(widths).enumerate() {
        let before = missing;
        missing -= width;
        let step = (1i64 << missing) as f64;
        let scaled = scale_numbers.iter().map(|s| s * step).collect();
        let scaled = Tensor::from_f64(ElemType::F32, scales.shape.clone(), scaled);
        let (shape, zeros) = match (i, term.children.get(2)) {
            (0, Some(zero)) => (zero.shape.clone(), numbers(zero)?),
            (0, None) => (vec![1; term.shape.len()], vec![0.0]),
            _ => (vec![1; term.shape.len()], vec![middle(before)]),
        };
        let zeros = zeros.iter().map(|z| (z - middle(missing)) / step).collect();
        let zeros = Tensor::from_f64(ElemType::F32, shape, zeros);
        let [scaled, zeros] = [scaled, zeros].map(|t| dense::from_tensor(&t));
        let plane = plane.as_ref().clone();
        out.push(affine(term.elem, scaled, plane, Some(zeros)));
    }
    Ok(out)
}

/// Signs and factors of a term of signs times a product, if it is one.
pub fn signs(term: &Encoding) -> Option<[&Encoding; 3]> {
    let [signs, product] = &term.children[..] else {
        return None;
    };
    let [u, v] = &product.children[..] else {
        return None;
    };
    let is_it = term.ctor.name == "emul"
        && signs.ctor.name == "affine"
        && product.ctor.name == "matmul"
        && [term, signs, product]
            .iter()
            .all(|e| e.elem == ElemType::F32);
    is_it.then_some([signs, u, v])
}
