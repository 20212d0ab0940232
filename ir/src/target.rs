//! What the compiler knows of a target: an explicit description, never a name to switch on.

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
    /// True if artefacts link against the runtime's micro-kernels ([`lapidary_abi::kernel::Import`]);
    /// false for freestanding objects, whose kernels are all generated.
    pub micro_kernels: bool,
    /// Bytes of the first-level data cache.
    pub l1_bytes: u64,
    /// Bytes of the second-level cache of one core.
    pub l2_bytes: u64,
    /// Threads that programs are planned for.
    pub threads: u32,
}

impl Target {
    /// x86-64 with the runtime's micro-kernels; code itself uses 128-bit vectors, which is what Cranelift emits.
    pub fn x86_64() -> Target {
        Target {
            triple: "x86_64-unknown-linux-gnu".to_owned(),
            vector_bytes: 16,
            vector_registers: 16,
            fused_multiply_add: true,
            micro_kernels: true,
            l1_bytes: 32 << 10,
            l2_bytes: 1 << 20,
            threads: 1,
        }
    }

    /// This machine.
    pub fn host() -> Target {
        #[cfg(target_arch = "x86_64")]
        return Target {
            fused_multiply_add: std::arch::is_x86_feature_detected!("avx2")
                && std::arch::is_x86_feature_detected!("fma"),
            ..Target::x86_64()
        };
        #[cfg(target_arch = "riscv64")]
        return Target::riscv64();
        #[cfg(not(any(target_arch = "x86_64", target_arch = "riscv64")))]
        return Target::aarch64();
    }

    /// 64-bit Arm.
    pub fn aarch64() -> Target {
        Target {
            triple: "aarch64-unknown-linux-gnu".to_owned(),
            vector_registers: 32,
            ..Target::x86_64()
        }
    }

    /// 64-bit RISC-V with vectors of at least 128 bits.
    pub fn riscv64() -> Target {
        Target {
            triple: "riscv64gc-unknown-linux-gnu".to_owned(),
            vector_registers: 32,
            ..Target::x86_64()
        }
    }
}
