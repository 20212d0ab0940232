// Integers of any width up to 64 bits, for compilers that do not come with the vendor's header of this name. They wrap.
#pragma once
#if defined(__SYNTHESIS__) || defined(__VITIS_HLS__)
#include_next <ap_int.h>
#else
#include <cstdint>

template <int W, bool S> class lp_integer {
  static_assert(W >= 1 && W <= 64, "a width from 1 to 64");
  int64_t x;

public:
  lp_integer() : x(0) {}
  lp_integer(int64_t v) : x(0) {
    const uint64_t low = (uint64_t)v << (64 - W);
    x = S ? (int64_t)low >> (64 - W) : (int64_t)(low >> (64 - W));
  }
  operator int64_t() const { return x; }
  int to_int() const { return (int)x; }
  bool operator[](int bit) const { return (uint64_t)x >> bit & 1; }
  lp_integer &operator+=(int64_t v) { return *this = lp_integer((int64_t)((uint64_t)x + (uint64_t)v)); }
  lp_integer &operator-=(int64_t v) { return *this = lp_integer((int64_t)((uint64_t)x - (uint64_t)v)); }
};

template <int W> struct ap_int : lp_integer<W, true> {
  ap_int() {}
  ap_int(int64_t v) : lp_integer<W, true>(v) {}
};
template <int W> struct ap_uint : lp_integer<W, false> {
  ap_uint() {}
  ap_uint(int64_t v) : lp_integer<W, false>(v) {}
};
#endif
