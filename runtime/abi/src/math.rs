//! Numbers of the polynomials that approximate elementary functions of `f32`: generated code and micro-kernels compute the
//! same. Interpolated at Chebyshev nodes of the reduced function; errors are at most 3 units in the last place.

/// `ln 2` in two parts, so that `x - k ln 2` is exact in its leading part.
pub const LN2: (f64, f64) = (0.693115234375, 3.1946184945309415e-05);

/// What `exp` clamps its operand to: below it is zero, above infinite.
pub const EXP_RANGE: (f64, f64) = (-106.0, 90.0);

/// `e^r = 1 + r + r^2 p(r)` for `|r| <= ln 2 / 2`, lowest power first.
pub const EXP: [f64; 6] = [
    5.0000000136e-01,
    1.6666666682e-01,
    4.1666464011e-02,
    8.3333108239e-03,
    1.3933751388e-03,
    1.9891103421e-04,
];

/// Where `tanh` is a polynomial: `x + x^3 p(x^2)` below; further out it is `1 - 2 / (e^2x + 1)`.
pub const TANH_NEAR: f64 = 0.625;

/// The polynomial of `tanh`.
pub const TANH: [f64; 6] = [
    -3.3333333172e-01,
    1.3333303531e-01,
    -5.3959253379e-02,
    2.1768868215e-02,
    -8.3437803705e-03,
    2.2925576991e-03,
];

/// What `tanh` clamps `2 |x|` to: it is 1 from 18.04 on.
pub const TANH_FAR: f64 = 40.0;

/// Where `erf` is a polynomial: `x + x p(x^2)` below; further out it is `1 - e^(x q(x))`.
pub const ERF_NEAR: f64 = 0.925;

/// The polynomial of `erf` near zero.
pub const ERF: [f64; 7] = [
    1.2837916662e-01,
    -3.7612633514e-01,
    1.1283691465e-01,
    -2.6859148475e-02,
    5.2003611835e-03,
    -8.1346258576e-04,
    8.3343684339e-05,
];

/// What `erf` clamps `|x|` to: it is 1 from 3.92 on.
pub const ERF_FAR: f64 = 4.0;

/// The exponent's polynomial further out.
pub const ERF_TAIL: [f64; 9] = [
    -1.1287342411e+00,
    -6.3483862820e-01,
    -1.0666902192e-01,
    2.4020303041e-02,
    -3.6686972307e-03,
    2.7624483116e-04,
    1.2793682133e-05,
    -4.4999551738e-06,
    2.7748531289e-07,
];

/// `sqrt(2 / pi)`: the factor of the `tanh` form of GELU.
pub const SQRT_2_OVER_PI: f64 = 0.797_884_560_802_865_4;
