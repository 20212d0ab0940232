//! How a compiled model lies in a file: behind the runtime stub of an executable, or in a file of its own.
//!
//! ```text
//! [stub, or nothing] pad [code] pad [weights] pad [program] [trailer]
//!                    ^ CODE_ALIGN   ^ WEIGHTS_ALIGN          ^ the last TRAILER_BYTES of the file
//! ```
//! All offsets count from the beginning of the file, so that code and weights can be mapped as they lie.
//! The trailer is what a reader looks for first; a tool that removes appended data (`strip`) removes it.

/// Alignment of the code in the file: a page of every target.
pub const CODE_ALIGN: u64 = 1 << 14;

/// Alignment of the weights in the file.
pub const WEIGHTS_ALIGN: u64 = 1 << 14;

/// Alignment of the program in the file.
pub const PROGRAM_ALIGN: u64 = 64;

/// What a trailer begins with.
pub const MAGIC: [u8; 16] = *b"LAPIDARY-IMAGE\0\n";

/// Version of this layout.
pub const IMAGE_VERSION: u32 = 1;

/// Length of an encoded trailer.
pub const TRAILER_BYTES: usize = 96;

/// Where the parts of an image are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trailer {
    /// Offset of the code, a multiple of [`CODE_ALIGN`].
    pub code_offset: u64,
    /// Length of the code.
    pub code_bytes: u64,
    /// Offset of the weights, a multiple of [`WEIGHTS_ALIGN`].
    pub weights_offset: u64,
    /// Length of the weights.
    pub weights_bytes: u64,
    /// Offset of the encoded program.
    pub program_offset: u64,
    /// Length of the encoded program.
    pub program_bytes: u64,
    /// [`checksum`] of the encoded program.
    pub program_checksum: u64,
    /// Number of the instruction set that the code is for ([`machine`]).
    pub machine: u32,
}

/// The number of NVIDIA's GPUs, as in ELF's `e_machine`: the code is a PTX module as text, and a kernel begins at the offset of
/// its lines in it.
pub const CUDA: u32 = 190;

/// The number of the instruction set this crate was compiled for, as in ELF's `e_machine`; 0 for others.
pub const fn machine() -> u32 {
    if cfg!(target_arch = "x86_64") {
        62
    } else if cfg!(target_arch = "aarch64") {
        183
    } else if cfg!(target_arch = "riscv64") {
        243
    } else {
        0
    }
}

/// Why there is no usable image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageError {
    /// No trailer at the end.
    Missing,
    /// A trailer of another layout version.
    Version(u32),
    /// The parts do not lie in the file as they must.
    Damaged(&'static str),
}

impl std::fmt::Display for ImageError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ImageError::Missing => f.write_str(
                "no compiled model at the end of this file; `strip` and some packers remove it: use the file as it was built",
            ),
            ImageError::Version(v) => write!(
                f,
                "compiled model of layout version {v}, this runtime understands {IMAGE_VERSION}"
            ),
            ImageError::Damaged(what) => write!(f, "damaged compiled model: {what}"),
        }
    }
}

impl std::error::Error for ImageError {}

impl Trailer {
    /// The layout of an image whose parts have these lengths, in a file that holds `start` bytes already.
    pub fn layout(start: u64, code: u64, weights: u64, program: u64) -> Option<Trailer> {
        let code_offset = start.checked_next_multiple_of(CODE_ALIGN)?;
        let weights_offset = code_offset
            .checked_add(code)?
            .checked_next_multiple_of(WEIGHTS_ALIGN)?;
        let program_offset = weights_offset
            .checked_add(weights)?
            .checked_next_multiple_of(PROGRAM_ALIGN)?;
        program_offset
            .checked_add(program)?
            .checked_add(TRAILER_BYTES as u64)?;
        Some(Trailer {
            code_offset,
            code_bytes: code,
            weights_offset,
            weights_bytes: weights,
            program_offset,
            program_bytes: program,
            program_checksum: 0,
            machine: machine(),
        })
    }

    /// Offset of the trailer itself: it follows the program.
    pub fn offset(&self) -> u64 {
        self.program_offset + self.program_bytes
    }

    /// The bytes at the end of the file.
    pub fn encode(&self) -> [u8; TRAILER_BYTES] {
        let mut bytes = [0; TRAILER_BYTES];
        bytes[..16].copy_from_slice(&MAGIC);
        bytes[16..20].copy_from_slice(&IMAGE_VERSION.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.machine.to_le_bytes());
        for (slot, number) in bytes[24..80].chunks_exact_mut(8).zip(self.numbers()) {
            slot.copy_from_slice(&number.to_le_bytes());
        }
        let sum = checksum(&bytes[..88]);
        bytes[88..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    fn numbers(&self) -> [u64; 7] {
        [
            self.code_offset,
            self.code_bytes,
            self.weights_offset,
            self.weights_bytes,
            self.program_offset,
            self.program_bytes,
            self.program_checksum,
        ]
    }

    /// Reads the trailer from the last [`TRAILER_BYTES`] of a file of `file_bytes` bytes, and checks that
    /// every part lies inside the file where it should.
    pub fn decode(last: &[u8; TRAILER_BYTES], file_bytes: u64) -> Result<Trailer, ImageError> {
        let number = |at: usize| {
            let mut eight = [0; 8];
            eight.copy_from_slice(&last[at..at + 8]);
            u64::from_le_bytes(eight)
        };
        if last[..16] != MAGIC {
            return Err(ImageError::Missing);
        }
        let (version, machine) = (number(16) as u32, (number(16) >> 32) as u32);
        if version != IMAGE_VERSION {
            return Err(ImageError::Version(version));
        }
        if number(88) != checksum(&last[..88]) {
            return Err(ImageError::Damaged("the checksum of the trailer differs"));
        }
        let trailer = Trailer {
            code_offset: number(24),
            code_bytes: number(32),
            weights_offset: number(40),
            weights_bytes: number(48),
            program_offset: number(56),
            program_bytes: number(64),
            program_checksum: number(72),
            machine,
        };
        trailer.check(file_bytes)?;
        Ok(trailer)
    }

    fn check(&self, file_bytes: u64) -> Result<(), ImageError> {
        let end = |offset: u64, bytes: u64| {
            offset
                .checked_add(bytes)
                .ok_or(ImageError::Damaged("a length overflows"))
        };
        if !self.code_offset.is_multiple_of(CODE_ALIGN)
            || !self.weights_offset.is_multiple_of(WEIGHTS_ALIGN)
        {
            return Err(ImageError::Damaged("a part is not aligned"));
        }
        if end(self.code_offset, self.code_bytes)? > self.weights_offset
            || end(self.weights_offset, self.weights_bytes)? > self.program_offset
        {
            return Err(ImageError::Damaged("parts overlap"));
        }
        let program_end = end(self.program_offset, self.program_bytes)?;
        if end(program_end, TRAILER_BYTES as u64)? != file_bytes {
            return Err(ImageError::Damaged("the file is cut short or extended"));
        }
        Ok(())
    }
}

/// Checksum of program bytes: FNV-1a, 64 bits. It finds damage; it does not protect against forgery.
pub fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &b| {
        (hash ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trailer_reads_back_and_damage_is_found() {
        let mut trailer = Trailer::layout(1_000_001, 5000, 123_456, 789).expect("small sizes fit");
        trailer.program_checksum = checksum(b"program");
        let bytes = trailer.encode();
        let file = trailer.offset() + TRAILER_BYTES as u64;
        assert_eq!(Trailer::decode(&bytes, file), Ok(trailer));
        assert!(Trailer::decode(&bytes, file - 1).is_err());
        for at in 0..TRAILER_BYTES {
            let mut bad = bytes;
            bad[at] ^= 0x40;
            assert!(Trailer::decode(&bad, file).is_err(), "byte {at}");
        }
    }
}
