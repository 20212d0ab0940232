//! `coded`: codes behind a lossless second stage.
//!
//! The parameter `coder` names the stage; each is a file of its own:
//!
//! | coder | bytes | children | for |
//! | --- | --- | --- | --- |
//! | `base3` | five digits a byte | | ternary codes at 1.6 bits |
//! | `dictionary` | 16-bit words of QMoE's dictionary | starts of rows | ternary codes that are mostly zero |
//! | `rans` | an entropy coder's, in blocks | starts of blocks, frequencies | codes of any distribution |
//!
//! What it decodes to are codes, `u8`, for a term around it to give meaning.

pub mod base3;
pub mod dictionary;
pub mod rans;

use super::sampling::Sampler;
use super::{Constructor, DecodeError, Encoding};
use crate::builder::Builder;
use crate::ops::OpError;
use crate::{ElemType, Tensor, ValueId};

/// The constructor.
pub static CODED: Constructor = Constructor {
    name: "coded",
    summary: "codes behind a lossless coder",
    children: &["starts?", "frequencies?"],
    has_blob: true,
    algebraic: false,
    contents: Some(|e| coder(e).and_then(|c| (c.contents)(e))),
    check,
    decode: |e| coder(e).and_then(|c| (c.decode)(e)),
    open,
    sample,
};

/// One lossless coder.
struct Coder {
    name: &'static str,
    children: usize,
    check: fn(&Encoding) -> Result<(), DecodeError>,
    contents: fn(&Encoding) -> Result<(), DecodeError>,
    decode: fn(&Encoding) -> Result<Tensor, DecodeError>,
    open: fn(&Encoding, &mut Builder) -> Result<ValueId, OpError>,
    /// Codes below a limit, coded.
    sample: fn(&mut Sampler, &[usize]) -> Option<Encoding>,
}

static CODERS: &[Coder] = &[base3::BASE3, dictionary::DICTIONARY, rans::RANS];

fn coder(e: &Encoding) -> Result<&'static Coder, DecodeError> {
    let name = e.str_param("coder").unwrap_or_default();
    let coder = CODERS.iter().find(|c| c.name == name);
    coder.ok_or_else(|| e.error(format!("there is no coder `{name}`")))
}

fn check(e: &Encoding) -> Result<(), DecodeError> {
    let coder = coder(e)?;
    if e.elem != ElemType::U8 {
        return Err(e.error("decodes to codes of u8"));
    }
    if e.children.len() != coder.children {
        return Err(e.error(format!(
            "`{}` has {} child terms",
            coder.name, coder.children
        )));
    }
    (coder.check)(e)
}

fn open(e: &Encoding, b: &mut Builder) -> Result<ValueId, OpError> {
    let coder = coder(e).map_err(|e| OpError::new(e.to_string()))?;
    (coder.open)(e, b)
}

fn sample(s: &mut Sampler, elem: ElemType, shape: &[usize]) -> Option<Encoding> {
    let coder = &CODERS[s.below(CODERS.len())];
    (elem == ElemType::U8).then(|| (coder.sample)(s, shape))?
}
