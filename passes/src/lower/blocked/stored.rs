//! Codes as terms hold them, without decoding them to integers of 128 bits.

use lapidary_ir::encodings::{Encoding, int, strided};

/// What is known of the codes of a term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Bits of a code.
    pub bits: u32,
    /// Added to codes so that none is negative.
    pub shift: i64,
}

impl Stored {
    /// Of a term of integers of at most 8 bits; none for those that are made of other numbers.
    pub fn of(codes: &Encoding) -> Option<Stored> {
        let (low, _) = codes.elem.int_range()?;
        let bits = match codes.ctor.name {
            "int" => codes.int_param("bits")?,
            "dense" | "strided" => i64::from(codes.elem.bits()),
            // Where planes are missing codes are the middle of those that they stand for.
            "bits" => {
                let planes = codes.children.iter().map(|c| Stored::of(c));
                let held: Option<u32> = planes.map(|p| Some(p?.bits)).sum();
                let full = codes.int_param("full")?;
                Some(full).filter(|&full| held.map(i64::from) == Some(full))?
            }
            _ => return None,
        };
        let bits = u32::try_from(bits).ok().filter(|b| (1..=8).contains(b))?;
        let shift = if low < 0 { 1 << (bits - 1) } else { 0 };
        Some(Stored { bits, shift })
    }

    /// The codes of a term of which this is known, shifted, one a byte.
    pub fn bytes(self, codes: &Encoding) -> Result<Vec<u8>, String> {
        if codes.ctor.name == "bits" {
            let mut all = vec![0u8; codes.len()];
            for plane in &codes.children {
                let stored = Stored::of(plane).ok_or("planes are codes")?;
                for (code, field) in all.iter_mut().zip(stored.bytes(plane)?) {
                    *code = ((u16::from(*code) << stored.bits) as u8) | field;
                }
            }
            return Ok(all);
        }
        let packed = match codes.ctor.name {
            "int" => int::packed(codes).map_err(|e| e.to_string())?,
            "strided" => strided::bytes(codes).map_err(|e| e.to_string())?.into(),
            _ => codes.blob.as_deref().unwrap_or(&[]).into(),
        };
        // What is added to a signed code is its sign bit turned over.
        let fields = int::unpack(&packed, self.bits, false).take(codes.len());
        Ok(fields.map(|code| code as u8 ^ self.shift as u8).collect())
    }
}
