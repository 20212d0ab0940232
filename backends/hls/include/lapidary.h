// Arithmetic of lapidary's kernels where that of C++ differs: integers wrap, division never traps, conversions saturate.
#pragma once
#include <cmath>
#include <cstdint>
#include <limits>
#include "ap_int.h"

// Arrays between kernels; too large for a stack in simulation.
#if defined(__SYNTHESIS__) || defined(__VITIS_HLS__)
#define LP_ARRAY
#else
#define LP_ARRAY static
#endif

// A pipelined loop begins an iteration. Whoever wants to count them defines this first.
#ifndef LP_CYCLE
#define LP_CYCLE() ((void)0)
#endif

namespace lp {

// The low bits of a number as a type; 64 bits hold every type's.
template <class T> inline T wrap(uint64_t x) {
#pragma HLS INLINE
  return (T)(int64_t)x;
}
template <> inline bool wrap<bool>(uint64_t x) { return x & 1; }

template <class T> inline uint64_t widen(T x) { return (uint64_t)(int64_t)x; }

template <class T> inline T add(T a, T b) { return wrap<T>(widen(a) + widen(b)); }
template <class T> inline T sub(T a, T b) { return wrap<T>(widen(a) - widen(b)); }
template <class T> inline T mul(T a, T b) { return wrap<T>(widen(a) * widen(b)); }

template <class T> inline bool is_unsigned() { return (T)(-1) > (T)0; }

// Division by -1 is negation, which wraps where the quotient would not fit.
template <class T> inline T div(T a, T b) {
  if (b == 0) return 0;
  if (!is_unsigned<T>() && b == (T)(-1)) return sub<T>(0, a);
  return a / b;
}
template <class T> inline T rem(T a, T b) {
  if (b == 0 || (!is_unsigned<T>() && b == (T)(-1))) return 0;
  return a % b;
}
template <class T> inline T floor_div(T a, T b) {
  T q = div<T>(a, b), r = rem<T>(a, b);
  return r != 0 && (r < 0) != (b < 0) ? (T)(q - 1) : q;
}
template <class T> inline T mod(T a, T b) {
  T r = rem<T>(a, b);
  return r != 0 && (r < 0) != (b < 0) ? (T)(r + b) : r;
}

template <class T, int BITS> inline T shl(T a, T b) { return b >= BITS ? (T)0 : wrap<T>(widen(a) << (int)(b < 0 ? (T)0 : b)); }
template <class T, int BITS> inline T shr(T a, T b) {
  if (b >= BITS) return a < 0 ? (T)(-1) : (T)0;
  return (T)(a >> (int)(b < 0 ? (T)0 : b));
}

template <class T> inline T pow(T base, T exponent) {
  if (exponent < 0) return base == 1 ? (T)1 : base == (T)(-1) ? (exponent % 2 == 0 ? (T)1 : (T)(-1)) : (T)0;
  T out = 1;
  while (exponent > 0) {
    if (exponent & 1) out = mul<T>(out, base);
    base = mul<T>(base, base);
    exponent = exponent >> 1;
  }
  return out;
}

// Not a number if either is.
template <class T> inline T min(T a, T b) { return a != a ? a : b != b ? b : b < a ? b : a; }
template <class T> inline T max(T a, T b) { return a != a ? a : b != b ? b : b > a ? b : a; }
template <class T> inline T abs(T a) { return a < 0 ? sub<T>(0, a) : a; }
template <class T> inline T sign(T a) { return a > 0 ? (T)1 : a < 0 ? (T)(-1) : a; }

inline float infinityf() { return std::numeric_limits<float>::infinity(); }
inline double infinity() { return std::numeric_limits<double>::infinity(); }
inline float nanf() { return std::numeric_limits<float>::quiet_NaN(); }
inline double nan() { return std::numeric_limits<double>::quiet_NaN(); }
template <class F> inline bool is_inf(F x) { return x == infinity() || x == -infinity(); }

// The integer of so many bits next to a number in the direction of zero; not a number is 0.
template <int BITS, bool SIGNED, class F> inline uint64_t saturate(F x) {
  const int MAGNITUDE = SIGNED ? BITS - 1 : BITS;
  // A power of two, as the largest number itself may not be a float.
  const F limit = (F)(UINT64_C(1) << (MAGNITUDE - 1)) * 2;
  const uint64_t largest = (UINT64_C(1) << (MAGNITUDE - 1)) - 1 + (UINT64_C(1) << (MAGNITUDE - 1));
  if (x != x) return 0;
  if (x >= limit) return largest;
  if (!SIGNED) return x <= 0 ? 0 : (uint64_t)x;
  return x < -limit ? ~largest : (uint64_t)(int64_t)x;
}

// The same bits as another type.
template <class T, class F> inline T bits(F x) {
  static_assert(sizeof(T) == sizeof(F), "types of one width");
  union { F from; T to; } both;
  both.from = x;
  return both.to;
}

// The n-th code of so many bits in a byte, low bits first.
template <int BITS> inline int code(uint8_t byte, int n) { return byte >> (n * BITS) & ((1 << BITS) - 1); }
template <int BITS> inline int signed_code(uint8_t byte, int n) {
  const int c = code<BITS>(byte, n);
  return c >> (BITS - 1) ? c - (1 << BITS) : c;
}

// Two products of codes with one multiplier of 27 by 18 bits: the factors lie 18 bits apart in its wide operand. The low
// product is what its 18 bits say with their sign; without it, the rest is the high one.
inline void multiply_two(uint8_t a, int8_t low, int8_t high, int32_t &low_sum, int32_t &high_sum) {
#pragma HLS INLINE
  const ap_int<27> pair = (int64_t)high * (1 << 18) + low;
  const ap_int<45> product = (int64_t)pair * a;
  const ap_int<18> first = (int64_t)product;
  const ap_int<27> second = ((int64_t)product - (int64_t)first) >> 18;
  low_sum = add<int32_t>(low_sum, (int32_t)(int64_t)first);
  high_sum = add<int32_t>(high_sum, (int32_t)(int64_t)second);
}

// How many tiles of a length a size has.
inline int64_t tiles(int64_t n, int64_t length) { return n <= 0 ? 0 : (n - 1) / length + 1; }

}  // namespace lp
