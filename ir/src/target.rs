//! What the compiler knows of a target: an explicit description, never a name to switch on.

use crate::speeds::Speeds;
use std::sync::Arc;

macro_rules! features {
    ($($feature:ident $arch:literal $name:literal needs $needs:expr; $doc:literal)*) => {
        /// Instructions that not every machine of an architecture has.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Feature { $(#[doc = $doc] $feature,)* }

        /// Every feature.
        pub const FEATURES: &[FeatureRow] = &[$(FeatureRow {
            feature: Feature::$feature,
            arch: $arch,
            name: $name,
            needs: $needs,
        },)*];
    };
}

/// A feature's names.
#[derive(Clone, Copy, Debug)]
pub struct FeatureRow {
    /// The feature.
    pub feature: Feature,
    /// Instruction set: `x86_64`, `aarch64`, `riscv64` or `nvptx64`.
    pub arch: &'static str,
    /// As users write it.
    pub name: &'static str,
    /// A feature that comes with it.
    pub needs: Option<Feature>,
}

features! {
    Avx2 "x86_64" "avx2" needs None; "256-bit vectors, fused multiply-add, half-precision conversion (x86-64-v3)."
    Avx512 "x86_64" "avx512" needs Some(Feature::Avx2); "512-bit vectors: F, BW, CD, DQ, VL (x86-64-v4)."
    Avx512Vnni "x86_64" "avx512vnni" needs Some(Feature::Avx512); "8-bit dot products."
    Avx512Bf16 "x86_64" "avx512bf16" needs Some(Feature::Avx512); "bf16 dot products."
    AvxVnni "x86_64" "avxvnni" needs Some(Feature::Avx2); "8-bit dot products of 256-bit vectors."
    DotProd "aarch64" "dotprod" needs None; "8-bit dot products of equal signs."
    I8mm "aarch64" "i8mm" needs Some(Feature::DotProd); "8-bit dot products of mixed signs."
    Bf16 "aarch64" "bf16" needs None; "bf16 dot products."
    Sm80 "nvptx64" "sm_80" needs None; "A100: copies to shared memory that are waited for, bf16 matrix products."
    Sm86 "nvptx64" "sm_86" needs Some(Feature::Sm80); "Ampere for graphics."
    Sm89 "nvptx64" "sm_89" needs Some(Feature::Sm86); "Ada."
    Sm90a "nvptx64" "sm_90a" needs Some(Feature::Sm89); "H100."
    Sm100 "nvptx64" "sm_100" needs Some(Feature::Sm89); "B200."
}

/// Levels of x86-64 above the least one that code is made for, which is x86-64-v2.
const LEVELS: &[(&str, &[Feature])] = &[
    ("x86-64-v2", &[]),
    ("x86-64-v3", &[Feature::Avx2]),
    ("x86-64-v4", &[Feature::Avx512]),
];

/// Features of this machine.
fn detected() -> Vec<Feature> {
    #[cfg(target_arch = "x86_64")]
    let all = {
        use std::arch::is_x86_feature_detected as has;
        let avx2 = has!("avx2") && has!("fma") && has!("f16c") && has!("bmi1") && has!("bmi2");
        let avx512 = has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl");
        [
            (avx2 && has!("lzcnt"), Feature::Avx2),
            (avx512 && has!("avx512cd"), Feature::Avx512),
            (avx512 && has!("avx512vnni"), Feature::Avx512Vnni),
            (avx512 && has!("avx512bf16"), Feature::Avx512Bf16),
            (has!("avxvnni"), Feature::AvxVnni),
        ]
    };
    #[cfg(target_arch = "aarch64")]
    let all = {
        use std::arch::is_aarch64_feature_detected as has;
        [
            (has!("dotprod"), Feature::DotProd),
            (has!("i8mm"), Feature::I8mm),
            (has!("bf16"), Feature::Bf16),
        ]
    };
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let all: [(bool, Feature); 0] = [];
    all.into_iter().filter(|f| f.0).map(|f| f.1).collect()
}

/// Description of a machine that code is generated for.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// Target triple (`x86_64-unknown-linux-gnu`).
    pub triple: String,
    /// Bytes of one vector register that generated code uses.
    pub vector_bytes: u32,
    /// Vector registers.
    pub vector_registers: u32,
    /// True if generated code may use fused multiply-add (on x86-64: AVX2 and FMA, "x86-64-v3"; otherwise
    /// it needs SSE4.2, "x86-64-v2").
    pub fused_multiply_add: bool,
    /// Instructions beyond those that every machine of the triple has, ascending.
    pub features: Vec<Feature>,
    /// True if artefacts link against the runtime's micro-kernels ([`lapidary_abi::kernel::Import`]);
    /// false for freestanding objects, whose kernels are all generated.
    pub micro_kernels: bool,
    /// Bytes of the first-level data cache.
    pub l1_bytes: u64,
    /// Bytes of the second-level cache of one core.
    pub l2_bytes: u64,
    /// Threads that programs are planned for.
    pub threads: u32,
    /// Operations that one block of a kernel should at least do, so that starting it costs little.
    pub block_work: u32,
    /// How fast it is, where that was measured.
    pub measured: Option<Arc<Speeds>>,
}

impl Target {
    /// x86-64 with the runtime's micro-kernels; code itself uses 128-bit vectors, which is what Cranelift emits.
    pub fn x86_64() -> Target {
        Target {
            triple: "x86_64-unknown-linux-gnu".to_owned(),
            vector_bytes: 16,
            vector_registers: 16,
            fused_multiply_add: true,
            features: vec![Feature::Avx2],
            micro_kernels: true,
            l1_bytes: 32 << 10,
            l2_bytes: 1 << 20,
            threads: 1,
            block_work: 16 << 10,
            measured: None,
        }
    }

    /// How fast it is: as measured, or as the description says.
    pub fn speeds(&self) -> Arc<Speeds> {
        let described = || Arc::new(Speeds::of(self));
        self.measured.clone().unwrap_or_else(described)
    }

    /// True if a vector is what the threads of a block hold: elements that do not exist cost nothing there, loops over
    /// single ones do.
    pub fn has_wide_vectors(&self) -> bool {
        self.vector_bytes > 64
    }

    /// Names of its features, as users write them.
    pub fn feature_names(&self) -> Vec<&'static str> {
        let rows = FEATURES
            .iter()
            .filter(|f| self.features.contains(&f.feature));
        rows.map(|f| f.name).collect()
    }

    /// This machine.
    pub fn host() -> Target {
        #[cfg(target_arch = "x86_64")]
        let base = Target::x86_64();
        #[cfg(target_arch = "riscv64")]
        let base = Target::riscv64();
        #[cfg(not(any(target_arch = "x86_64", target_arch = "riscv64")))]
        let base = Target::aarch64();
        base.with_features(detected())
    }

    /// True if this machine runs code for the target.
    pub fn runs_here(&self) -> bool {
        let host = Target::host();
        self.triple == host.triple && self.features.iter().all(|f| host.features.contains(f))
    }

    /// The description of a target by its triple and processor; `None` stands for this machine's. `processor` is
    /// `native`, a level (`x86-64-v2`, `x86-64-v3`, `x86-64-v4`) or `generic`, followed by names of [`FEATURES`] after
    /// commas. Without it, this machine's own triple has this machine's features, and any other none.
    ///
    /// The error says what is wrong and what there is.
    pub fn named(triple: Option<&str>, processor: Option<&str>) -> Result<Target, [String; 2]> {
        let host = Target::host();
        let triple = triple.unwrap_or(&host.triple);
        if let Some(gpu) = Target::gpu_named(triple, processor) {
            return gpu;
        }
        let arch = triple.split('-').next().unwrap_or_default();
        let generic = match arch {
            "x86_64" => Target::x86_64().with_features(vec![]),
            "aarch64" => Target::aarch64(),
            _ if arch.starts_with("riscv64") => Target::riscv64(),
            _ => {
                return Err([
                    format!("there is no target `{triple}`"),
                    format!(
                        "targets begin with `x86_64-`, `aarch64-` or `riscv64gc-`, or are GPUs: `ptx`, {}",
                        Target::gpus().join(", ")
                    ),
                ]);
            }
        };
        let own = triple == host.triple;
        let mut words = processor
            .unwrap_or(if own { "native" } else { "generic" })
            .split(',');
        let first = words.next().unwrap_or_default();
        let level = LEVELS.iter().find(|l| l.0 == first && arch == "x86_64");
        let mut features = match (first, level) {
            ("native", _) if own => host.features,
            ("generic", _) => vec![],
            (_, Some(level)) => level.1.to_vec(),
            _ => {
                let levels: Vec<&str> = LEVELS.iter().map(|l| l.0).collect();
                return Err([
                    format!("`{first}` is no processor of `{triple}`"),
                    format!(
                        "there are `native` (for this machine's triple), `generic` and, for x86_64, {}",
                        levels.join(", ")
                    ),
                ]);
            }
        };
        for word in words {
            let row = FEATURES
                .iter()
                .find(|f| f.name == word && f.arch == generic.arch());
            features.push(row.map(|f| f.feature).ok_or_else(|| {
                let names: Vec<&str> = FEATURES
                    .iter()
                    .filter(|f| f.arch == generic.arch())
                    .map(|f| f.name)
                    .collect();
                [
                    format!("`{word}` is no feature of `{triple}`"),
                    format!("there are {}", names.join(", ")),
                ]
            })?);
        }
        Ok(Target {
            triple: triple.to_owned(),
            ..generic.with_features(features)
        })
    }

    /// The same machine with these features and what they need.
    pub fn with_features(self, mut features: Vec<Feature>) -> Target {
        let mut i = 0;
        while let Some(&feature) = features.get(i) {
            features.extend(
                FEATURES
                    .iter()
                    .filter(|f| f.feature == feature)
                    .filter_map(|f| f.needs),
            );
            i += 1;
        }
        features.sort_unstable();
        features.dedup();
        Target {
            fused_multiply_add: self.arch() != "x86_64" || features.contains(&Feature::Avx2),
            features,
            ..self
        }
    }

    /// The same machine with the widest vectors that its features give.
    pub fn widest(self) -> Target {
        let has = |f| self.features.contains(&f);
        let (vector_bytes, vector_registers) = if has(Feature::Avx512) {
            (64, 32)
        } else if has(Feature::Avx2) {
            (32, 16)
        } else {
            (16, self.vector_registers)
        };
        Target {
            vector_bytes,
            vector_registers,
            ..self
        }
    }

    /// Instruction set, as [`FEATURES`] names it.
    pub fn arch(&self) -> &'static str {
        match self.triple.split('-').next().unwrap_or_default() {
            "x86_64" => "x86_64",
            "aarch64" => "aarch64",
            "nvptx64" => "nvptx64",
            arch if arch.starts_with("riscv64") => "riscv64",
            _ => "",
        }
    }

    /// Names of the GPUs that code is written for.
    pub fn gpus() -> Vec<&'static str> {
        let rows = FEATURES.iter().filter(|f| f.arch == "nvptx64");
        rows.map(|f| f.name).collect()
    }

    /// A GPU by its name alone, or by `ptx` (or its triple) and a processor; `None` if that is no GPU.
    fn gpu_named(triple: &str, processor: Option<&str>) -> Option<Result<Target, [String; 2]>> {
        let any = triple == "ptx" || triple.split('-').next() == Some("nvptx64");
        let name = match (any, processor) {
            (true, name) => name.unwrap_or("sm_80"),
            (false, None) if Target::gpus().contains(&triple) => triple,
            _ => return None,
        };
        let row = FEATURES
            .iter()
            .find(|f| f.arch == "nvptx64" && f.name == name);
        Some(match row {
            Some(row) => Ok(Target::nvptx64(row.feature)),
            None => Err([
                format!("`{name}` is no GPU that code is written for"),
                format!("there are {}", Target::gpus().join(", ")),
            ]),
        })
    }

    /// A GPU. Its vectors are what the threads of a block hold at a time; memory that a block shares takes the place of the
    /// caches.
    pub fn nvptx64(gpu: Feature) -> Target {
        // An H100's, or an A100's.
        let newer = matches!(gpu, Feature::Sm90a | Feature::Sm100);
        Target {
            triple: "nvptx64-nvidia-cuda".to_owned(),
            vector_bytes: 512,
            vector_registers: 32,
            fused_multiply_add: true,
            micro_kernels: false,
            l1_bytes: 48 << 10,
            l2_bytes: if newer { 50 << 20 } else { 40 << 20 },
            threads: if newer { 132 } else { 108 },
            block_work: 1 << 10,
            ..Target::x86_64()
        }
        .with_features(vec![gpu])
    }

    /// 64-bit Arm.
    pub fn aarch64() -> Target {
        Target {
            triple: "aarch64-unknown-linux-gnu".to_owned(),
            features: vec![],
            vector_registers: 32,
            ..Target::x86_64()
        }
    }

    /// 64-bit RISC-V with vectors of at least 128 bits.
    pub fn riscv64() -> Target {
        Target {
            triple: "riscv64gc-unknown-linux-gnu".to_owned(),
            features: vec![],
            vector_registers: 32,
            ..Target::x86_64()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_have_what_their_names_say() {
        let wide =
            |cpu| Target::named(Some("x86_64-unknown-linux-gnu"), Some(cpu)).map(Target::widest);
        let v2 = wide("x86-64-v2").unwrap();
        assert!(!v2.fused_multiply_add && v2.vector_bytes == 16);
        let v3 = wide("x86-64-v3,avxvnni").unwrap();
        assert!(v3.fused_multiply_add && v3.vector_bytes == 32);
        assert_eq!(v3.features, [Feature::Avx2, Feature::AvxVnni]);
        let vnni = wide("generic,avx512vnni").unwrap();
        assert_eq!(
            vnni.features,
            [Feature::Avx2, Feature::Avx512, Feature::Avx512Vnni]
        );
        assert_eq!(vnni.vector_bytes, 64);
        assert!(wide("x86-64-v3,dotprod").unwrap_err()[0].contains("dotprod"));
        assert!(Target::named(Some("sparc-sun-solaris"), None).is_err());
        let gpu = Target::named(Some("sm_90a"), None).unwrap();
        assert_eq!(gpu, Target::named(Some("ptx"), Some("sm_90a")).unwrap());
        assert!(gpu.features.contains(&Feature::Sm80) && gpu.arch() == "nvptx64");
        assert!(Target::named(Some("ptx"), Some("sm_20")).unwrap_err()[1].contains("sm_100"));
        let arm = Target::named(Some("aarch64-unknown-linux-gnu"), Some("generic,i8mm")).unwrap();
        assert_eq!(arm.features, [Feature::DotProd, Feature::I8mm]);
    }
}
