//! Micro-kernels: the innermost dense products that compiled code calls instead of generating them.
//!
//! Cranelift emits 128-bit vectors only, so the few loops where a compiled program spends its time are
//! written here by hand, once per instruction set, and reached through a table of addresses
//! ([`KernelContext::imports`](lapidary_abi::kernel::KernelContext)). One file is one kernel family: its
//! variants, and below them the scalar reference they are tested against. Which variant runs is decided
//! once per process from what the CPU reports; every variant can be forced by [`table_for`].

// Indices name the same row or column of several arrays, and unroll as written.
#![allow(clippy::needless_range_loop)]

use core::ffi::c_void;
use std::sync::OnceLock;

use lapidary_abi::kernel::{IMPORT_COUNT, Import};

/// The operations of a module, each with the instructions that it needs; of the unsafe ones, the lanes that are meant must
/// be readable, or writable.
#[cfg(target_arch = "x86_64")]
macro_rules! operations {
    ($features:literal: $($name:ident($($arg:ident: $ty:ty),*) -> $out:ty { $body:expr })*) => {
        $(
            #[inline]
            #[target_feature(enable = $features)]
            pub(crate) fn $name($($arg: $ty),*) -> $out {
                $body
            }
        )*
    };
    (unsafe $features:literal: $($name:ident($($arg:ident: $ty:ty),*) -> $out:ty { $body:expr })*) => {
        $(
            #[inline]
            #[target_feature(enable = $features)]
            unsafe fn $name($($arg: $ty),*) -> $out {
                // SAFETY: as promised to this function.
                unsafe { $body }
            }
        )*
    };
}

mod gemm_bf16;
mod gemm_blocks;
mod gemm_f32;
mod gemm_i8;
mod move_f32;
mod round_blocks;
mod softmax_f32;
mod sparse_f32;
mod sparse_i8;
mod unary_f32;
mod unpack_blocks;
mod widen_f16;
mod window_f32;
#[cfg(target_arch = "x86_64")]
mod window_i8;

/// Instruction set that a table of micro-kernels needs, weakest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Plain Rust; any CPU.
    Portable,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ and VL: wide f32; int8 and blocks as with [`Level::Avx2`].
    Avx512,
    /// [`Level::Avx512`] and VNNI: wide int8 and blocks too.
    Avx512Vnni,
    /// [`Level::Avx512Vnni`] and BF16: products of `bf16`.
    Avx512Bf16,
}

impl Level {
    /// Every level, weakest first.
    pub const ALL: [Level; 5] = [
        Level::Portable,
        Level::Avx2,
        Level::Avx512,
        Level::Avx512Vnni,
        Level::Avx512Bf16,
    ];

    /// The strongest level that this CPU has.
    pub fn best() -> Level {
        static BEST: OnceLock<Level> = OnceLock::new();
        *BEST.get_or_init(|| {
            Level::ALL
                .into_iter()
                .rfind(|l| l.is_available())
                .unwrap_or(Level::Portable)
        })
    }

    /// Whether this CPU can run the level's kernels.
    #[cfg(target_arch = "x86_64")]
    pub fn is_available(self) -> bool {
        let avx2 = || {
            is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c")
        };
        let avx512 = || {
            is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
        };
        let vnni = || avx2() && avx512() && is_x86_feature_detected!("avx512vnni");
        match self {
            Level::Portable => true,
            Level::Avx2 => avx2(),
            Level::Avx512 => avx2() && avx512(),
            Level::Avx512Vnni => vnni(),
            Level::Avx512Bf16 => vnni() && is_x86_feature_detected!("avx512bf16"),
        }
    }

    /// Whether this CPU can run the level's kernels.
    #[cfg(not(target_arch = "x86_64"))]
    pub fn is_available(self) -> bool {
        self == Level::Portable
    }
}

/// Addresses of functions; shared freely because code is immutable.
struct Table([*const c_void; IMPORT_COUNT]);

// SAFETY: the pointers are addresses of functions, which any thread may read and call.
unsafe impl Sync for Table {}

/// The imports of compiled kernels, for the best level of this CPU, in the order of
/// [`Import`].
pub fn table() -> &'static [*const c_void; IMPORT_COUNT] {
    table_unchecked(Level::best())
}

/// The imports for one level, or `None` when this CPU lacks it.
pub fn table_for(level: Level) -> Option<&'static [*const c_void; IMPORT_COUNT]> {
    level.is_available().then(|| table_unchecked(level))
}

fn table_unchecked(level: Level) -> &'static [*const c_void; IMPORT_COUNT] {
    static PORTABLE: Table = Table([
        gemm_f32::portable as *const c_void,
        gemm_i8::portable as *const c_void,
        gemm_blocks::portable as *const c_void,
        move_f32::portable as *const c_void,
        window_f32::portable as *const c_void,
        sparse_f32::portable as *const c_void,
        unary_f32::portable::entry as *const c_void,
        sparse_i8::portable as *const c_void,
        round_blocks::portable as *const c_void,
        unpack_blocks::portable as *const c_void,
        softmax_f32::portable::entry as *const c_void,
        widen_f16::portable as *const c_void,
        gemm_bf16::portable as *const c_void,
    ]);
    #[cfg(target_arch = "x86_64")]
    {
        static AVX2: Table = Table([
            gemm_f32::avx2::entry as *const c_void,
            gemm_i8::avx2::entry as *const c_void,
            gemm_blocks::avx2::entry as *const c_void,
            move_f32::avx2::entry as *const c_void,
            window_f32::avx2::entry as *const c_void,
            sparse_f32::avx2::entry as *const c_void,
            unary_f32::avx2::entry as *const c_void,
            sparse_i8::avx2::entry as *const c_void,
            round_blocks::avx2 as *const c_void,
            unpack_blocks::avx2 as *const c_void,
            softmax_f32::avx2::entry as *const c_void,
            widen_f16::avx2 as *const c_void,
            gemm_bf16::portable as *const c_void,
        ]);
        static AVX512: Table = Table([
            gemm_f32::avx512::entry as *const c_void,
            gemm_i8::avx2::entry as *const c_void,
            gemm_blocks::avx2::entry as *const c_void,
            move_f32::avx512::entry as *const c_void,
            window_f32::avx512::entry as *const c_void,
            sparse_f32::avx512::entry as *const c_void,
            unary_f32::avx512::entry as *const c_void,
            sparse_i8::avx2::entry as *const c_void,
            round_blocks::avx512 as *const c_void,
            unpack_blocks::avx512 as *const c_void,
            softmax_f32::avx512::entry as *const c_void,
            widen_f16::avx512 as *const c_void,
            gemm_bf16::portable as *const c_void,
        ]);
        const VNNI: [*const c_void; IMPORT_COUNT] = [
            gemm_f32::avx512::entry as *const c_void,
            gemm_i8::avx512::entry as *const c_void,
            gemm_blocks::avx512::entry as *const c_void,
            move_f32::avx512::entry as *const c_void,
            window_i8::entry as *const c_void,
            sparse_f32::avx512::entry as *const c_void,
            unary_f32::avx512::entry as *const c_void,
            sparse_i8::avx512::entry as *const c_void,
            round_blocks::avx512 as *const c_void,
            unpack_blocks::avx512 as *const c_void,
            softmax_f32::avx512::entry as *const c_void,
            widen_f16::avx512 as *const c_void,
            gemm_bf16::portable as *const c_void,
        ];
        static AVX512_VNNI: Table = Table(VNNI);
        static AVX512_BF16: Table = Table({
            let mut table = VNNI;
            table[Import::GemmBf16 as usize] = gemm_bf16::avx512::entry as *const c_void;
            table
        });
        match level {
            Level::Portable => {}
            Level::Avx2 => return &AVX2.0,
            Level::Avx512 => return &AVX512.0,
            Level::Avx512Vnni => return &AVX512_VNNI.0,
            Level::Avx512Bf16 => return &AVX512_BF16.0,
        }
    }
    debug_assert_eq!(level, Level::Portable);
    &PORTABLE.0
}

/// Whether rows at these addresses would evict each other from a level-1 data cache.
///
/// Rows a multiple of 4 KiB apart fall into the same set of a cache with 4 KiB ways (every x86-64 CPU
/// with 32 or 48 KiB of it), which keeps 8 to 12 of them: a tile of 14 rows then misses on every step.
/// Such rows are copied in pieces to a buffer of another pitch, which costs a few per cent.
#[cfg(target_arch = "x86_64")]
fn rows_collide<T>(rows: &[*const T]) -> bool {
    const SET_MASK: usize = 4096 - 64;
    rows.len() > 8 && {
        let first = rows[0] as usize & SET_MASK;
        rows.iter()
            .filter(|&&p| p as usize & SET_MASK == first)
            .count()
            > 8
    }
}

#[cfg(test)]
pub(crate) mod test_support {
    //! What the tests of all kernel families share.

    use super::*;

    /// Runs `check` with the import at `index` of every level this CPU has; prints the others as skipped.
    pub fn for_each_level(index: usize, mut check: impl FnMut(Level, *const c_void)) {
        for level in Level::ALL {
            match table_for(level) {
                Some(table) => check(level, table[index]),
                None => eprintln!("skipped: this CPU lacks {level:?}"),
            }
        }
    }

    /// xorshift64*: small, deterministic.
    pub struct Random(pub u64);

    impl Random {
        pub fn next(&mut self) -> u64 {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16
        }

        /// Integer in `low..=high`.
        pub fn int(&mut self, low: i64, high: i64) -> i64 {
            low + (self.next() % (high - low + 1) as u64) as i64
        }
    }

    /// `n` values, 64-byte aligned like packed panels are.
    pub struct Aligned<T>(Vec<T>, usize, usize);

    impl<T: Copy> Aligned<T> {
        pub fn new(n: usize, mut value: impl FnMut(usize) -> T) -> Aligned<T> {
            let slack = 64 / size_of::<T>();
            let mut storage = vec![value(0); n + slack];
            let start = storage.as_ptr().align_offset(64);
            for i in 0..n {
                storage[start + i] = value(i);
            }
            Aligned(storage, start, n)
        }
    }

    impl<T> core::ops::Deref for Aligned<T> {
        type Target = [T];
        fn deref(&self) -> &[T] {
            &self.0[self.1..self.1 + self.2]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn best_level_is_available_and_has_all_imports() {
        assert!(Level::best().is_available());
        assert!(table().iter().all(|p| !p.is_null()));
        assert_eq!(table_for(Level::best()), Some(table()));
        assert!(table_for(Level::Portable).is_some());
    }
}
