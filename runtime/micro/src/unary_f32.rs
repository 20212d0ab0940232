//! Elementary functions of many numbers: `exp`, `tanh`, `erf`, as softmax, GELU and their like need them.
//!
//! The formulas are those of generated code ([`lapidary_abi::math`]), written once over a handful of vector operations
//! that each instruction set names.

use lapidary_abi::kernel::{
    UNARY_ERF, UNARY_EXP, UNARY_GELU, UNARY_SIGMOID, UNARY_SWISH, UNARY_TANH, UnaryF32,
};
use lapidary_abi::math;

/// The functions over the operations `set`, `add`, `mul`, `fma`, `div`, `max`, `min` (a NaN in the second operand stays),
/// `round`, `times_power` (of two), `abs`, `with_sign`, `where_less`, `load` and `store` that are in scope.
macro_rules! functions {
    ($(#[$features:meta])* $vector:ty, $lanes:literal) => {
        /// Lowest power first.
        #[inline]
        $(#[$features])*
        fn poly<const N: usize>(x: $vector, p: &[f64; N]) -> $vector {
            let mut y = set(p[N - 1]);
            for i in (0..N - 1).rev() {
                y = fma(y, x, set(p[i]));
            }
            y
        }

        /// `x = k ln 2 + r`; `e^r` is a polynomial.
        #[inline]
        $(#[$features])*
        pub(crate) fn exp(x: $vector) -> $vector {
            let x = min(set(math::EXP_RANGE.1), max(set(math::EXP_RANGE.0), x));
            let k = round(mul(x, set(std::f64::consts::LOG2_E)));
            let r = fma(k, set(-math::LN2.1), fma(k, set(-math::LN2.0), x));
            let y = add(fma(poly(r, &math::EXP), mul(r, r), r), set(1.0));
            times_power(y, k)
        }

        #[inline]
        $(#[$features])*
        fn tanh(x: $vector) -> $vector {
            let (a, z) = (abs(x), mul(x, x));
            let near = fma(poly(z, &math::TANH), mul(z, x), x);
            let twice = min(set(math::TANH_FAR), add(a, a));
            let far = add(div(set(-2.0), add(exp(twice), set(1.0))), set(1.0));
            where_less(a, set(math::TANH_NEAR), near, with_sign(far, x))
        }

        #[inline]
        $(#[$features])*
        fn erf(x: $vector) -> $vector {
            let (a, z) = (abs(x), mul(x, x));
            let near = fma(poly(z, &math::ERF), x, x);
            let t = min(set(math::ERF_FAR), a);
            let far = fma(exp(mul(t, poly(t, &math::ERF_TAIL))), set(-1.0), set(1.0));
            where_less(a, set(math::ERF_NEAR), near, with_sign(far, x))
        }

        #[inline]
        $(#[$features])*
        fn sigmoid(x: $vector) -> $vector {
            div(set(1.0), add(exp(mul(x, set(-1.0))), set(1.0)))
        }

        /// `x * (0.5 * (1 + bent))`
        #[inline]
        $(#[$features])*
        fn half_of_one_and(bent: $vector, x: $vector) -> $vector {
            mul(x, mul(add(bent, set(1.0)), set(0.5)))
        }

        #[inline]
        $(#[$features])*
        fn gelu(x: $vector) -> $vector {
            half_of_one_and(erf(mul(x, set(std::f64::consts::FRAC_1_SQRT_2))), x)
        }

        #[inline]
        $(#[$features])*
        fn gelu_tanh(x: $vector) -> $vector {
            let y = mul(fma(mul(x, x), set(0.044_715), set(1.0)), x);
            half_of_one_and(tanh(mul(y, set(math::SQRT_2_OVER_PI))), x)
        }

        /// # Safety
        /// The block is valid, and the CPU has this module's instructions.
        #[inline]
        $(#[$features])*
        unsafe fn each(u: &UnaryF32, f: impl Fn($vector) -> $vector) {
            let whole = u.n / $lanes * $lanes;
            // SAFETY: whole vectors lie inside the operands and results; the rest goes through a vector of its own.
            unsafe {
                for i in (0..whole).step_by($lanes) {
                    store(u.dst.add(i), f(load(u.src.add(i))));
                }
                if whole < u.n {
                    let mut rest = [0f32; $lanes];
                    let left = u.n - whole;
                    core::ptr::copy_nonoverlapping(u.src.add(whole), rest.as_mut_ptr(), left);
                    let y = f(load(rest.as_ptr()));
                    store(rest.as_mut_ptr(), y);
                    core::ptr::copy_nonoverlapping(rest.as_ptr(), u.dst.add(whole), left);
                }
            }
        }

        /// # Safety
        /// `args` must satisfy the contract of [`UnaryF32`]; the CPU must have this module's instructions.
        $(#[$features])*
        pub unsafe extern "C" fn entry(args: *const UnaryF32) {
            // SAFETY: the caller passes a valid block.
            unsafe {
                let u = &*args;
                match u.function {
                    UNARY_EXP => each(u, |x| exp(x)),
                    UNARY_TANH => each(u, |x| tanh(x)),
                    UNARY_ERF => each(u, |x| erf(x)),
                    UNARY_SIGMOID => each(u, |x| sigmoid(x)),
                    UNARY_SWISH => each(u, |x| mul(x, sigmoid(x))),
                    UNARY_GELU => each(u, |x| gelu(x)),
                    _ => each(u, |x| gelu_tanh(x)),
                }
            }
        }
    };
}

pub mod portable {
    //! One number at a time.

    use super::*;

    pub(crate) fn set(x: f64) -> f32 {
        x as f32
    }
    pub(crate) fn add(a: f32, b: f32) -> f32 {
        a + b
    }
    fn mul(a: f32, b: f32) -> f32 {
        a * b
    }
    fn fma(a: f32, b: f32, c: f32) -> f32 {
        a * b + c
    }
    fn div(a: f32, b: f32) -> f32 {
        a / b
    }
    pub(crate) fn max(bound: f32, x: f32) -> f32 {
        if x < bound { bound } else { x }
    }
    fn min(bound: f32, x: f32) -> f32 {
        if x > bound { bound } else { x }
    }
    fn round(x: f32) -> f32 {
        x.round_ties_even()
    }
    fn times_power(x: f32, k: f32) -> f32 {
        let half = (k * 0.5).floor();
        let power = |k: f32| f32::from_bits(((k as i32 + 127) << 23) as u32);
        x * power(half) * power(k - half)
    }
    fn abs(x: f32) -> f32 {
        x.abs()
    }
    fn with_sign(x: f32, of: f32) -> f32 {
        x.copysign(of)
    }
    fn where_less(a: f32, b: f32, x: f32, y: f32) -> f32 {
        if a < b { x } else { y }
    }
    pub(crate) unsafe fn load(at: *const f32) -> f32 {
        // SAFETY: as promised to this function.
        unsafe { *at }
    }
    pub(crate) unsafe fn store(at: *mut f32, x: f32) {
        // SAFETY: as promised to this function.
        unsafe { *at = x }
    }

    functions!(f32, 1);
}

#[cfg(target_arch = "x86_64")]
pub mod avx2 {
    //! Eight numbers.

    use core::arch::x86_64::*;

    use super::*;

    operations! { "avx2,fma":
        set(x: f64) -> __m256 { _mm256_set1_ps(x as f32) }
        add(a: __m256, b: __m256) -> __m256 { _mm256_add_ps(a, b) }
        mul(a: __m256, b: __m256) -> __m256 { _mm256_mul_ps(a, b) }
        fma(a: __m256, b: __m256, c: __m256) -> __m256 { _mm256_fmadd_ps(a, b, c) }
        div(a: __m256, b: __m256) -> __m256 { _mm256_div_ps(a, b) }
        max(bound: __m256, x: __m256) -> __m256 { _mm256_max_ps(bound, x) }
        min(bound: __m256, x: __m256) -> __m256 { _mm256_min_ps(bound, x) }
        round(x: __m256) -> __m256 {
            _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x)
        }
        power(k: __m256) -> __m256 {
            _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(
                _mm256_cvtps_epi32(k),
                _mm256_set1_epi32(127),
            )))
        }
        times_power(x: __m256, k: __m256) -> __m256 {{
            let half = _mm256_floor_ps(mul(k, set(0.5)));
            mul(mul(x, power(half)), power(_mm256_sub_ps(k, half)))
        }}
        abs(x: __m256) -> __m256 { _mm256_andnot_ps(set(-0.0), x) }
        with_sign(x: __m256, of: __m256) -> __m256 {
            _mm256_or_ps(abs(x), _mm256_and_ps(set(-0.0), of))
        }
        where_less(a: __m256, b: __m256, x: __m256, y: __m256) -> __m256 {
            _mm256_blendv_ps(y, x, _mm256_cmp_ps::<_CMP_LT_OQ>(a, b))
        }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn load(at: *const f32) -> __m256 {
        // In halves: what generated code has just stored in 128 bits reaches a wider load only through the cache.
        // SAFETY: as promised to this function.
        unsafe { _mm256_loadu2_m128(at.add(4), at) }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    pub(crate) unsafe fn store(at: *mut f32, x: __m256) {
        // SAFETY: as promised to this function.
        unsafe { _mm256_storeu_ps(at, x) }
    }

    functions!(
        #[target_feature(enable = "avx2,fma")]
        __m256,
        8
    );
}

#[cfg(target_arch = "x86_64")]
pub mod avx512 {
    //! Sixteen numbers.

    use core::arch::x86_64::*;

    use super::*;

    operations! { "avx512f,avx512dq":
        set(x: f64) -> __m512 { _mm512_set1_ps(x as f32) }
        add(a: __m512, b: __m512) -> __m512 { _mm512_add_ps(a, b) }
        mul(a: __m512, b: __m512) -> __m512 { _mm512_mul_ps(a, b) }
        fma(a: __m512, b: __m512, c: __m512) -> __m512 { _mm512_fmadd_ps(a, b, c) }
        div(a: __m512, b: __m512) -> __m512 { _mm512_div_ps(a, b) }
        max(bound: __m512, x: __m512) -> __m512 { _mm512_max_ps(bound, x) }
        min(bound: __m512, x: __m512) -> __m512 { _mm512_min_ps(bound, x) }
        round(x: __m512) -> __m512 {
            _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x)
        }
        times_power(x: __m512, k: __m512) -> __m512 { _mm512_scalef_ps(x, k) }
        abs(x: __m512) -> __m512 { _mm512_abs_ps(x) }
        with_sign(x: __m512, of: __m512) -> __m512 {
            _mm512_or_ps(abs(x), _mm512_and_ps(set(-0.0), of))
        }
        where_less(a: __m512, b: __m512, x: __m512, y: __m512) -> __m512 {
            _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), y, x)
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512dq")]
    unsafe fn load(at: *const f32) -> __m512 {
        // In quarters: what generated code has just stored in 128 bits reaches a wider load only through the cache.
        // SAFETY: as promised to this function.
        unsafe {
            let x = _mm512_castps128_ps512(_mm_loadu_ps(at));
            let x = _mm512_insertf32x4::<1>(x, _mm_loadu_ps(at.add(4)));
            let x = _mm512_insertf32x4::<2>(x, _mm_loadu_ps(at.add(8)));
            _mm512_insertf32x4::<3>(x, _mm_loadu_ps(at.add(12)))
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512dq")]
    pub(crate) unsafe fn store(at: *mut f32, x: __m512) {
        // SAFETY: as promised to this function.
        unsafe { _mm512_storeu_ps(at, x) }
    }

    functions!(
        #[target_feature(enable = "avx512f,avx512dq")]
        __m512,
        16
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::*;
    use lapidary_abi::kernel::{Import, UNARY_GELU_TANH};

    #[test]
    fn every_function_is_exact_to_a_few_units() {
        let half = |bent: f64, x: f64| x * 0.5 * (1.0 + bent);
        // Functions, and the error that is allowed relative to the operand: sums that cancel.
        type Case<'f> = (u32, f64, &'f dyn Fn(f64) -> f64);
        let exact: [Case; 7] = [
            (UNARY_EXP, 0.0, &f64::exp),
            (UNARY_TANH, 0.0, &f64::tanh),
            (UNARY_ERF, 0.0, &libm::erf),
            (UNARY_SIGMOID, 0.0, &|x| 1.0 / (1.0 + (-x).exp())),
            (UNARY_SWISH, 0.0, &|x| x / (1.0 + (-x).exp())),
            (UNARY_GELU, 1.0, &|x| {
                half(libm::erf(x * std::f64::consts::FRAC_1_SQRT_2), x)
            }),
            (UNARY_GELU_TANH, 1.0, &|x| {
                half(
                    (math::SQRT_2_OVER_PI * (x + 0.044715 * x * x * x)).tanh(),
                    x,
                )
            }),
        ];
        for_each_level(Import::UnaryF32 as usize, |level, address| {
            // SAFETY: the table holds a function of this type at `Import::UnaryF32`.
            let kernel: unsafe extern "C" fn(*const UnaryF32) =
                unsafe { core::mem::transmute(address) };
            let mut x: Vec<f32> = (-24_000..24_000).map(|i| i as f32 / 2_000.0).collect();
            x.extend((-1_050..890).map(|i| i as f32 / 10.0));
            x.extend([0.0, -0.0, 1e-30, -1e-42, f32::INFINITY, f32::NEG_INFINITY]);
            x.extend([f32::NAN, f32::MAX, f32::MIN, 88.7, 1.0, -1.0, 0.625, 0.925]);
            for (function, cancels, f) in exact {
                for n in [0, 1, 7, 8, 15, 16, 17, x.len()] {
                    let mut y = vec![7f32; n + 1];
                    let block = UnaryF32 {
                        src: x[x.len() - n..].as_ptr(),
                        dst: y.as_mut_ptr(),
                        n,
                        function,
                    };
                    // SAFETY: the block describes the buffers above.
                    unsafe { kernel(&block) };
                    assert_eq!(y[n], 7.0, "{level:?}: wrote past the results");
                    for (&x, &y) in x[x.len() - n..].iter().zip(&y) {
                        let want = f(f64::from(x)) as f32;
                        let size = f64::from(want.abs()).max(cancels * f64::from(x.abs()));
                        let unit = size.max(1e-30) * f64::from(f32::EPSILON);
                        // An infinite operand may end as infinity times zero.
                        let edge = y.is_nan() && x.is_infinite();
                        let same = y == want || y.is_nan() && want.is_nan() || edge;
                        assert!(
                            same || (f64::from(y) - f64::from(want)).abs() <= 4.0 * unit,
                            "{level:?} function {function} of {x}: {y}, should be {want}"
                        );
                    }
                }
            }
        });
    }
}
