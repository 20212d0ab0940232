//! One suite of kernels for every backend: each runs natively and is compared with its interpretation.
//!
//! A backend's tests are `lapidary_suite::suite!(BACKEND)` with its [`Backend`]; a new case is a function in [`kernels`] and
//! its name in [`suite!`].

mod blocks;
pub mod kernels;
mod packed;
mod panels;
mod softmax;

use lapidary_abi::kernel::{KernelContext, KernelFn, ZEROS_BYTES};
use lapidary_ir::backend::{Code, Error};
use lapidary_ir::kernel::{Kernel, Param, interp, verify};
use lapidary_ir::target::Target;

/// A backend to test.
pub struct Backend {
    /// Its translation.
    pub compile: fn(&[Kernel], &Target) -> Result<Code, Error>,
    /// Descriptions that this machine can run code for, with and without micro-kernels.
    pub targets: fn() -> Vec<Target>,
    /// Runs a kernel over its whole grid on copies of these buffers: [`run_native`] for code of this machine.
    pub run: fn(&Backend, &Kernel, &Target, &[Vec<u8>], &[i64]) -> Vec<Vec<u8>>,
}

/// The tests of a backend.
#[macro_export]
macro_rules! suite {
    // One list: `then` is what is made of its names.
    (list $($then:tt)*) => {
        $crate::suite! { $($then)*
            tiles_with_remainders_of_every_type
            gathers_masks_and_transpositions
            loops_branches_reductions_scratch
            integer_division_never_traps
            index_division_by_constants
            packed_codes_are_unpacked
            contractions_with_and_without_micro_kernels
            sparse_products_and_their_panels
            sparse_products_of_codes
            products_of_blocks
            blocks_are_rounded
            weights_become_numbers
            windows_of_numbers_and_codes
            vectors_times_packed_weights
            batches_times_packed_weights
            batches_times_two_of_four
            products_of_halves
            scores_become_weights
            halves_become_numbers
        }
    };
    (functions; $($name:ident)*) => {
        [$($crate::kernels::$name as fn(&$crate::Backend)),*]
    };
    // For a backend that makes no code of processors.
    (kernels $backend:expr) => {
        $crate::suite!(list @ $backend;);
    };
    ($backend:expr) => {
        $crate::suite!(kernels $backend);
        $crate::suite!(@ $backend; other_machines_get_code);
    };
    (@ $backend:expr; $($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                $crate::kernels::$name(&$backend);
            }
        )*
    };
}

/// Every case of kernels, for a backend that runs many at a time.
pub static FUNCTIONS: &[fn(&Backend)] = &suite!(list functions;);

/// Code in executable memory.
pub struct Loaded {
    at: *mut u8,
    len: usize,
    entries: Vec<u64>,
}

impl Loaded {
    /// Compiles kernels and makes them executable.
    pub fn new(backend: &Backend, kernels: &[Kernel], target: &Target) -> Loaded {
        let code = (backend.compile)(kernels, target).unwrap_or_else(|e| panic!("{e}"));
        let len = code.bytes.len().next_multiple_of(4096);
        // SAFETY: a fresh private mapping of `len` bytes, filled before it becomes executable.
        let at = unsafe {
            let at = libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            );
            assert_ne!(at, libc::MAP_FAILED);
            std::ptr::copy_nonoverlapping(code.bytes.as_ptr(), at.cast(), code.bytes.len());
            assert_eq!(
                libc::mprotect(at, len, libc::PROT_READ | libc::PROT_EXEC),
                0
            );
            at.cast()
        };
        Loaded {
            at,
            len,
            entries: code.entries,
        }
    }

    /// Runs the blocks `begin..end` of one kernel. `args` are addresses and sizes in parameter order.
    pub fn run(&self, kernel: usize, args: &[u64], scratch_bytes: u64, begin: u64, end: u64) {
        let mut scratch = vec![0xFFu8; scratch_bytes as usize + 64];
        let zeros = vec![0u8; ZEROS_BYTES];
        let ctx = KernelContext {
            imports: lapidary_runtime::micro::table().as_ptr(),
            scratch: scratch
                .as_mut_ptr()
                .wrapping_add(scratch.as_ptr().align_offset(64)),
            zeros: zeros.as_ptr(),
        };
        // SAFETY: the mapping holds a function of this type there; the caller's arguments are buffers that
        // the kernel stays within.
        unsafe {
            let f: KernelFn = std::mem::transmute(self.at.add(self.entries[kernel] as usize));
            f(&ctx, args.as_ptr(), begin, end);
        }
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`, which nothing uses any more.
        unsafe { libc::munmap(self.at.cast(), self.len) };
    }
}

/// Runs a kernel natively over its whole grid on copies of these buffers, with a guard after each.
pub fn run_native(
    backend: &Backend,
    kernel: &Kernel,
    target: &Target,
    buffers: &[Vec<u8>],
    sizes: &[i64],
) -> Vec<Vec<u8>> {
    const GUARD: usize = 64;
    let mut copies: Vec<Vec<Line>> = buffers
        .iter()
        .map(|b| {
            let mut copy = vec![Line([0xAB; 64]); b.len().div_ceil(64) + GUARD / 64];
            bytes_mut(&mut copy)[..b.len()].copy_from_slice(b);
            copy
        })
        .collect();
    let (mut next_buffer, mut next_size) = (copies.iter_mut(), sizes.iter());
    let args: Vec<u64> = kernel
        .params
        .iter()
        .map(|p| match p {
            Param::Buffer { .. } => next_buffer.next().unwrap().as_mut_ptr() as u64,
            Param::Size { .. } => *next_size.next().unwrap() as u64,
        })
        .collect();
    let blocks: u64 = interp::grid(kernel, sizes).unwrap().iter().product();
    let loaded = Loaded::new(backend, std::slice::from_ref(kernel), target);
    // In two parts: the coordinates must be right from any block on.
    loaded.run(0, &args, kernel.scratch_bytes(), 0, blocks / 3);
    loaded.run(0, &args, kernel.scratch_bytes(), blocks / 3, blocks);
    copies
        .iter_mut()
        .zip(buffers)
        .map(|(copy, b)| {
            let all = bytes_mut(copy);
            assert!(
                all[b.len()..].iter().all(|&x| x == 0xAB),
                "kernel `{}` wrote past the end of a buffer",
                kernel.name
            );
            all[..b.len()].to_vec()
        })
        .collect()
}

/// Buffers are aligned like the runtime's.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line(#[allow(dead_code, reason = "read as bytes")] [u8; 64]);

fn bytes_mut(lines: &mut [Line]) -> &mut [u8] {
    // SAFETY: any bytes are valid, the length is the same memory's.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), size_of_val(lines)) }
}

/// Interprets a kernel over its whole grid.
pub fn run_interpreted(kernel: &Kernel, buffers: &[Vec<u8>], sizes: &[i64]) -> Vec<Vec<u8>> {
    verify::verify(kernel).unwrap_or_else(|e| panic!("{e:?}"));
    let mut copies = buffers.to_vec();
    let mut slices: Vec<&mut [u8]> = copies.iter_mut().map(|b| &mut b[..]).collect();
    let blocks: u64 = interp::grid(kernel, sizes).unwrap().iter().product();
    interp::run(kernel, &mut slices, sizes, 0, blocks).unwrap();
    copies
}

/// Native and interpreted results are the same bytes, but for float rounding of `ulps` in `f32` buffers.
pub fn check(
    backend: &Backend,
    kernel: &Kernel,
    buffers: &[Vec<u8>],
    sizes: &[i64],
    tolerance: f32,
) {
    let want = run_interpreted(kernel, buffers, sizes);
    for target in (backend.targets)() {
        let got = (backend.run)(backend, kernel, &target, buffers, sizes);
        for (i, (got, want)) in got.iter().zip(&want).enumerate() {
            if got == want {
                continue;
            }
            let elem = kernel
                .buf_elem(lapidary_ir::kernel::Buf(buffer_position(kernel, i)))
                .unwrap();
            assert_eq!(
                elem,
                lapidary_ir::ElemType::F32,
                "`{}`: buffer {i} differs: {got:?} {want:?} ({target:?})",
                kernel.name
            );
            for (j, (g, w)) in floats(got).iter().zip(floats(want)).enumerate() {
                let same = g == &w
                    || (g.is_nan() && w.is_nan())
                    || (g - w).abs() <= tolerance * w.abs().max(1.0);
                assert!(
                    same,
                    "`{}`: buffer {i} element {j} is {g}, should be {w} ({target:?})",
                    kernel.name
                );
            }
        }
    }
}

fn buffer_position(kernel: &Kernel, nth: usize) -> u32 {
    let buffers = kernel
        .params
        .iter()
        .enumerate()
        .filter(|(_, p)| matches!(p, Param::Buffer { .. }));
    buffers.map(|(i, _)| i as u32).nth(nth).unwrap()
}

/// Numbers of bytes.
pub fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes
        .chunks(4)
        .map(|c| f32::from_le_bytes(c.try_into().unwrap()))
        .collect()
}

/// Bytes of numbers.
pub fn bytes<const N: usize, T>(values: &[T], to: impl Fn(&T) -> [u8; N]) -> Vec<u8> {
    values.iter().flat_map(to).collect()
}

/// A small reproducible generator.
pub struct Rng(pub u64);

impl Rng {
    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.bits() % n
    }

    /// A number from 0 to 1.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Numbers from -2 to 2, as bytes.
    pub fn f32s(&mut self, n: usize) -> Vec<u8> {
        (0..n)
            .flat_map(|_| (self.unit() as f32 * 4.0 - 2.0).to_le_bytes())
            .collect()
    }
}
