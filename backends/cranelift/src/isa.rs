//! From a target description to Cranelift's settings.

use cranelift_codegen::isa::{self, OwnedTargetIsa};
use cranelift_codegen::settings::{self, Configurable};
use lapidary_ir::backend::Error;
use lapidary_ir::target::Target;
use std::str::FromStr;

/// Settings for functions full of vectors, and for scalar ones.
pub(crate) struct Isas {
    /// `opt_level = none`: the mid-end would move unrolled arithmetic away from its loads and spill it.
    pub vectors: OwnedTargetIsa,
    /// `opt_level = speed`.
    pub scalars: OwnedTargetIsa,
}

/// Feature settings of each architecture: always, and where the target fuses multiply-add.
fn features(
    arch: target_lexicon::Architecture,
) -> (&'static [&'static str], &'static [&'static str]) {
    use target_lexicon::Architecture;
    match arch {
        Architecture::X86_64 => (
            &[
                "has_sse3",
                "has_ssse3",
                "has_sse41",
                "has_sse42",
                "has_popcnt",
            ],
            &[
                "has_avx",
                "has_avx2",
                "has_fma",
                "has_bmi1",
                "has_bmi2",
                "has_lzcnt",
            ],
        ),
        // Vectors of 128 bits need the V extension with at least that length.
        Architecture::Riscv64(_) => (&["has_v", "has_zvl128b"], &[]),
        _ => (&[], &[]),
    }
}

pub(crate) fn isas(target: &Target) -> Result<Isas, Error> {
    Ok(Isas {
        vectors: one(target, "none")?,
        scalars: one(target, "speed")?,
    })
}

fn one(target: &Target, opt_level: &str) -> Result<OwnedTargetIsa, Error> {
    let bad = |message: String| Error::Target {
        triple: target.triple.clone(),
        message,
    };
    let triple =
        target_lexicon::Triple::from_str(&target.triple).map_err(|e| bad(e.to_string()))?;
    if triple.pointer_width() != Ok(target_lexicon::PointerWidth::U64)
        || triple.endianness() != Ok(target_lexicon::Endianness::Little)
    {
        return Err(bad(
            "only 64-bit little-endian machines are supported".to_owned()
        ));
    }
    let mut shared = settings::builder();
    let verifier = if cfg!(debug_assertions) {
        "true"
    } else {
        "false"
    };
    for (name, value) in [
        ("opt_level", opt_level),
        ("is_pic", "true"),
        ("enable_verifier", verifier),
        ("enable_probestack", "false"),
        ("unwind_info", "false"),
    ] {
        shared.set(name, value).map_err(|e| bad(e.to_string()))?;
    }
    let (always, fused) = features(triple.architecture);
    let mut builder = isa::lookup(triple).map_err(|e| bad(e.to_string()))?;
    let wanted = always
        .iter()
        .chain(fused.iter().filter(|_| target.fused_multiply_add));
    for name in wanted {
        builder.enable(name).map_err(|e| bad(e.to_string()))?;
    }
    builder
        .finish(settings::Flags::new(shared))
        .map_err(|e| bad(e.to_string()))
}
