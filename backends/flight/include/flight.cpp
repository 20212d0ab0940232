// An engine that executes streams of instructions. Sizes, fields and constants are in flight.h, made from the compiler's tables.
//
// Instructions are executed in program order, which satisfies all tokens of `wait` and `release`.
#include "flight.h"
#include <cstring>
#ifdef __SYNTHESIS__
#include <ap_int.h>
typedef ap_int<128> wide;
#else
typedef __int128 wide;
#endif

static uint8_t buffers_b[DEPTH_B * LINE_B], buffers_meta[DEPTH_META * LINE_META], buffers_fsb[DEPTH_FSB * LINE_FSB];
static uint8_t buffers_scale[DEPTH_SCALE * LINE_SCALE], buffers_a[DEPTH_A * LINE_A];
static uint8_t buffers_global[DEPTH_GLOBAL * LINE_GLOBAL];

static uint8_t *buffer(uint32_t which, uint64_t *bytes, uint64_t *line) {
#define FLIGHT_BUFFER(number, name, NAME) \
  case number: *bytes = sizeof buffers_##name; *line = LINE_##NAME; return buffers_##name;
  switch (which) {
    FLIGHT_BUFFER(0, b, B)
    FLIGHT_BUFFER(1, meta, META)
    FLIGHT_BUFFER(2, fsb, FSB)
    FLIGHT_BUFFER(3, scale, SCALE)
    FLIGHT_BUFFER(4, a, A)
    FLIGHT_BUFFER(5, global, GLOBAL)
  }
  return nullptr;
}

static int32_t word(const uint8_t *at) { int32_t x; std::memcpy(&x, at, 4); return x; }
static void put(uint8_t *at, int32_t x) { std::memcpy(at, &x, 4); }
static int32_t saturate(wide x) {
  return x > INT32_MAX ? INT32_MAX : x < INT32_MIN ? INT32_MIN : (int32_t)x;
}
static wide shift(wide x, int by) { return (x + ((wide)1 << (by - 1))) >> by; }

static uint64_t root(uint64_t x) {
  uint64_t r = 0;
  for (int bit = 31; bit >= 0; bit--) {
    uint64_t next = r | (uint64_t)1 << bit;
    if (next * next <= x) r = next;
  }
  return r;
}

static int64_t exp_neg(int64_t d) {
  const int64_t most = 40 * 65536;
  int64_t t = ((d < most ? d : most) * LOG2_E) >> 16, whole = t >> 16, rest = (t & 0xffff) << 14;
  int64_t p = EXP[0];
  for (int i = 1; i < 4; i++) p = ((p * rest) >> 30) + EXP[i];
  return whole >= 31 ? 0 : (p >> 14) >> whole;
}

static uint32_t bits_at(const uint8_t *bytes, uint64_t at, int bits) {
  uint32_t value = 0;
  for (int bit = 0; bit < bits; bit++) {
#pragma HLS UNROLL
    value |= (uint32_t)(bytes[(at + bit) / 8] >> ((at + bit) % 8) & 1) << bit;
  }
  return value;
}

static int load(const uint8_t *memory, const uint32_t *w, int token, int position) {
  uint64_t bytes, line, length = (uint64_t)LD_length(w) * 16;
  uint8_t *target = buffer(LD_buffer(w), &bytes, &line);
  if (!target || LD_index(w) > 2) return FLIGHT_FIELD;
  uint64_t to = LD_bank(w) * line, index = LD_index(w) == 1 ? position : LD_index(w) == 2 ? token : 0;
  for (uint64_t i2 = 0; i2 <= LD_count2(w); i2++)
    for (uint64_t i1 = 0; i1 <= LD_count1(w); i1++)
      for (uint64_t i0 = 0; i0 <= LD_count0(w); i0++, to += length) {
        uint64_t from = 16 * (LD_address(w) + (i0 + index) * LD_stride0(w) + i1 * LD_stride1(w) + i2 * LD_stride2(w));
        if (to + length > bytes || (!LD_fill(w) && from + length > MEMORY_BYTES)) return FLIGHT_RANGE;
        for (uint64_t i = 0; i < length; i++) {
#pragma HLS PIPELINE II=1
          target[to + i] = LD_fill(w) ? 0 : memory[from + i];
        }
      }
  return 0;
}

static int store(uint8_t *memory, const uint32_t *w, int position) {
  uint64_t bytes, line, length = (uint64_t)ST_length(w) * 16;
  const uint8_t *source = buffer(ST_buffer(w), &bytes, &line);
  if (!source) return FLIGHT_FIELD;
  uint64_t from = ST_bank(w) * line;
  uint64_t to = 16 * (ST_address(w) + (uint64_t)ST_indexed(w) * position * ST_stride(w));
  if (from + length > bytes || to + length > MEMORY_BYTES) return FLIGHT_RANGE;
  for (uint64_t i = 0; i < length; i++) {
#pragma HLS PIPELINE II=1
    memory[to + i] = source[from + i];
  }
  return 0;
}

// MM and MV have the same fields.
static int product(const uint32_t *w, int row) {
  const uint64_t k = MV_k(w), bits = MV_bits(w);
  const uint64_t a = (uint64_t)MV_a(w) * LINE_A + row * (k + 1) * 16, b = (uint64_t)MV_b(w) * LINE_B;
  const uint64_t meta = (uint64_t)MV_meta(w) * LINE_META, fsb = (uint64_t)MV_fsb(w) * LINE_FSB;
  const uint64_t scale = (uint64_t)MV_scale(w) * LINE_SCALE, out = ((uint64_t)MV_out(w) + row) * LINE_GLOBAL;
  if (bits != 3 && bits != 4 && bits != 8) return FLIGHT_FIELD;
  if (a + (k + 1) * 16 > sizeof buffers_a || fsb + k > sizeof buffers_fsb || scale + 64 > sizeof buffers_scale ||
      out + 64 > sizeof buffers_global)
    return FLIGHT_RANGE;
  int64_t sums[16];
#pragma HLS ARRAY_PARTITION variable=sums type=complete
  for (int o = 0; o < 16; o++) sums[o] = 0;
  uint64_t data_at = b * 8, meta_at = meta * 8;
  for (uint64_t block = 0; block < k; block++) {
    const uint64_t kept = buffers_fsb[fsb + block];
    if (kept != 2 && kept != 4 && kept != 8 && kept != 16) return FLIGHT_FIELD;
    if (data_at + 16 * kept * bits > 8 * sizeof buffers_b || (kept < 16 && meta_at + 64 * kept > 8 * sizeof buffers_meta))
      return FLIGHT_RANGE;
    for (int o = 0; o < 16; o++) {
#pragma HLS PIPELINE II=1
      for (uint64_t slot = 0; slot < kept; slot++) {
        int32_t code = (int32_t)bits_at(buffers_b, data_at, bits);
        if (code >> (bits - 1)) code -= 1 << bits;
        data_at += bits;
        uint64_t input = slot;
        if (kept < 16) {
          input = bits_at(buffers_meta, meta_at, 4);
          meta_at += 4;
        }
        sums[o] += (int64_t)code * (int8_t)buffers_a[a + 16 + block * 16 + input];
      }
    }
  }
  const int32_t largest = word(buffers_a + a);
  for (int o = 0; o < 16; o++) {
    int32_t y = saturate(shift((wide)sums[o] * largest * word(buffers_scale + scale + 4 * o), 32));
    put(buffers_global + out + 4 * o, MV_relu(w) && y < 0 ? 0 : y);
  }
  return 0;
}

static int special(const uint32_t *w, int position) {
  const uint64_t k = MISC_k(w), n = k * 16, all = sizeof buffers_global;
  const uint64_t row = KV_HEADS * HEAD_DIM + 16;
  const uint64_t a = (uint64_t)MISC_a(w) * 64, b = (uint64_t)MISC_b(w) * 64, out = (uint64_t)MISC_out(w) * 64;
  uint8_t *g = buffers_global;
  switch (MISC_op(w)) {
    case OP_add:
    case OP_silu_mul:
      if (a + 4 * n > all || b + 4 * n > all || out + 4 * n > all) return FLIGHT_RANGE;
      for (uint64_t i = 0; i < n; i++) {
#pragma HLS PIPELINE II=1
        int64_t x = word(g + a + 4 * i), y = word(g + b + 4 * i);
        if (MISC_op(w) == OP_add) {
          put(g + out + 4 * i, saturate(x + y));
        } else {
          int64_t e = exp_neg(x < 0 ? -x : x);
          put(g + out + 4 * i, saturate(shift((wide)(x * (x < 0 ? e : 65536) / (65536 + e)) * y, 16)));
        }
      }
      return 0;
    case OP_rms_norm: {
      if (a + 4 * n > all || b + 4 * n > all || out + 4 * n > all || n < HIDDEN) return FLIGHT_RANGE;
      wide sum = 0;
      for (uint64_t i = 0; i < HIDDEN; i++) sum += (wide)word(g + a + 4 * i) * word(g + a + 4 * i);
      int64_t rms = (int64_t)root((uint64_t)(sum / HIDDEN) + EPSILON);
      if (rms < 1) rms = 1;
      for (uint64_t i = 0; i < n; i++)
        put(g + out + 4 * i, saturate((int64_t)word(g + a + 4 * i) * word(g + b + 4 * i) / rms));
      return 0;
    }
    case OP_rope:
      if (a + 4 * n > all || b + (HEAD_DIM + 15) / 16 * 64 > all || out + 4 * n > all) return FLIGHT_RANGE;
      for (uint64_t head = 0; head + HEAD_DIM <= n; head += HEAD_DIM)
        for (uint64_t i = 0; i < HEAD_DIM / 2; i++) {
          const uint64_t first = 4 * (head + i), second = 4 * (head + i + HEAD_DIM / 2);
          wide x = word(g + a + first), y = word(g + a + second);
          wide c = word(g + b + 4 * i), s = word(g + b + 4 * (i + HEAD_DIM / 2));
          put(g + out + first, saturate(shift(x * c - y * s, 30)));
          put(g + out + second, saturate(shift(x * s + y * c, 30)));
        }
      return 0;
    case OP_quant: {
      uint8_t *to = buffers_a + (uint64_t)MISC_out(w) * 16;
      if (a + 4 * n > all || (uint64_t)MISC_out(w) * 16 + n + 16 > sizeof buffers_a) return FLIGHT_RANGE;
      int64_t largest = 1;
      for (uint64_t i = 0; i < n; i++) {
        int64_t x = word(g + a + 4 * i);
        x = x < 0 ? -x : x;
        largest = x > largest ? x : largest;
      }
      if (largest > INT32_MAX) largest = INT32_MAX;
      std::memset(to, 0, 16);
      put(to, (int32_t)largest);
      for (uint64_t i = 0; i < n; i++) {
        int64_t x = word(g + a + 4 * i), code = (x * 254 + (x < 0 ? -largest : largest)) / (2 * largest);
        to[16 + i] = (uint8_t)(code < -127 ? -127 : code > 127 ? 127 : code);
      }
      return 0;
    }
    case OP_score:
    case OP_mix: {
      const uint8_t *rows = buffers_b + (uint64_t)MISC_b(w) * 16;
      if ((uint64_t)MISC_b(w) * 16 + n * row > sizeof buffers_b) return FLIGHT_RANGE;
      if (MISC_op(w) == OP_mix) {
        if (a + HEADS * n * 4 > all || out + HEADS * HEAD_DIM * 4 > all) return FLIGHT_RANGE;
        for (uint64_t head = 0; head < HEADS; head++)
          for (uint64_t i = 0; i < HEAD_DIM; i++) {
            wide sum = 0;
            for (uint64_t t = 0; t < n; t++) {
#pragma HLS PIPELINE II=1
              int8_t code = (int8_t)rows[t * row + 16 + head / (HEADS / KV_HEADS) * HEAD_DIM + i];
              sum += (wide)word(g + a + 4 * (head * n + t)) * code * word(rows + t * row);
            }
            put(g + out + 4 * (head * HEAD_DIM + i), saturate(sum / (127 << 16)));
          }
        return 0;
      }
      const uint8_t *q = buffers_a + (uint64_t)MISC_a(w) * 16;
      if ((uint64_t)MISC_a(w) * 16 + 16 + HEADS * HEAD_DIM > sizeof buffers_a || out + HEADS * n * 4 > all)
        return FLIGHT_RANGE;
      const int64_t length = (int64_t)root((uint64_t)HEAD_DIM << 32);
      for (uint64_t head = 0; head < HEADS; head++)
        for (uint64_t t = 0; t < n; t++) {
          int64_t sum = 0;
          for (uint64_t i = 0; i < HEAD_DIM; i++) {
#pragma HLS UNROLL
            sum += (int8_t)q[16 + head * HEAD_DIM + i] *
                   (int8_t)rows[t * row + 16 + head / (HEADS / KV_HEADS) * HEAD_DIM + i];
          }
          wide number = (wide)sum * word(q) * word(rows + t * row) / (127 * 127);
          put(g + out + 4 * (head * n + t), saturate(number / length));
        }
      return 0;
    }
    case OP_softmax:
      if (a + HEADS * n * 4 > all || out + HEADS * n * 4 > all || (uint64_t)position >= n) return FLIGHT_RANGE;
      for (uint64_t head = 0; head < HEADS; head++) {
        int64_t top = INT32_MIN, sum = 0;
        for (int t = 0; t <= position; t++) top = word(g + a + 4 * (head * n + t)) > top ? word(g + a + 4 * (head * n + t)) : top;
        for (int t = 0; t <= position; t++) sum += exp_neg(top - word(g + a + 4 * (head * n + t)));
        if (sum < 1) sum = 1;
        for (uint64_t t = 0; t < n; t++) {
          const uint64_t at = 4 * (head * n + t);
          put(g + out + at, t > (uint64_t)position ? 0 : (int32_t)(exp_neg(top - word(g + a + at)) * 65536 / sum));
        }
      }
      return 0;
  }
  return FLIGHT_FIELD;
}

int flight(uint8_t *memory, const uint32_t *stream, int words, int token, int position) {
#pragma HLS INTERFACE mode=m_axi port=memory bundle=hbm offset=slave
#pragma HLS INTERFACE mode=m_axi port=stream bundle=ddr offset=slave
#pragma HLS INTERFACE mode=s_axilite port=return
  int at = 0;
  while (at < words) {
    const int class_of = class_by_opcode(stream[at] >> 28);
    if (class_of < 0 || at + CLASS_WORDS[class_of] > words) return FLIGHT_STREAM;
    uint32_t w[7] = {0};
    for (int i = 0; i < CLASS_WORDS[class_of]; i++) w[i] = stream[at + i];
    int failed = 0;
    switch (class_of) {
      case CLASS_LD: failed = load(memory, w, token, position); break;
      case CLASS_ST: failed = store(memory, w, position); break;
      case CLASS_MM: for (int row = 0; row < 16 && !failed; row++) failed = product(w, row); break;
      case CLASS_MV: failed = product(w, 0); break;
      case CLASS_MISC: failed = special(w, position); break;
      case CLASS_SYS: break;
    }
    if (failed) return failed;
    at += CLASS_WORDS[class_of];
  }
  return 0;
}
