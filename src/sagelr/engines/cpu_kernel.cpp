// One step of SAGE in one pass over memory. The definition is eager.py; this follows it.
//
// Compiled for one kind of update at a time (see cpu.py), by these macros:
//   BASE         0 AdamW, 1 Adamax, 2 SGD with momentum, 3 SGD without
//   SAGE         1 with the multiplier, 0 the base alone
//   PARAM        0 float, 1 double, 2 bfloat16 (arithmetic in float, but for double)
//   PARAM_CHANCE 1 rounds a bfloat16 parameter by chance
//   FIRST, SECOND, SENSITIVITY   how an average is stored:
//                0 as arithmetic, 1 bfloat16 to nearest, 2 bfloat16 by chance, 3 eight-bit codes

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include <omp.h>

namespace {

enum { WIDE = 0, NEAREST = 1, CHANCE = 2, CODES = 3 };
enum { ADAMW = 0, ADAMAX = 1, SGD_MOMENTUM = 2, SGD_PLAIN = 3 };

#if PARAM == 1
using real = double;
#else
using real = float;
#endif

constexpr bool kCodes = FIRST == CODES || SECOND == CODES || SENSITIVITY == CODES;
constexpr bool kHasFirst = BASE != SGD_PLAIN;
constexpr bool kHasSecond = BASE == ADAMW || BASE == ADAMAX;
constexpr int64_t kBlock = 32;        // elements that share a scale
constexpr int64_t kTile = 512;        // elements whose codes are decoded at a time
constexpr int64_t kChunk = 1 << 14;   // elements a thread takes at a time
constexpr int kDropped = 20;          // bits of an fp32 mantissa that a code drops

// Random bits: the hash and the keys of state/rounding.py.

inline uint32_t mix(uint32_t x, uint32_t middle) {
  x ^= x >> 16;
  x *= 0x7FEB352Du;
  x ^= x >> 15;
  x += middle;
  x *= 0x846CA68Bu;
  x ^= x >> 16;
  return x;
}

struct Keys {
  uint32_t first, second;
  Keys(uint32_t seed, uint32_t step, uint32_t parameter, uint32_t stream, uint32_t high) {
    uint32_t key = mix(mix(seed + 0x9E3779B9u, 0) ^ step, 0);
    key = mix(key ^ (parameter * 8 + stream), 0);
    first = mix(key ^ high, 0);
    second = mix(first ^ 0x9E3779B9u, 0);
  }
  uint32_t bits(uint32_t low) const { return mix(low ^ first, second); }
};

// Bits of floats.

inline uint32_t pattern(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

inline float number(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

inline float from_bfloat16(uint16_t x) { return number(uint32_t(x) << 16); }

// Infinities and NaN come through as they are: adding to the lower half carries into the upper one
// only where the lower half is not zero.
inline uint16_t to_bfloat16(float x) {
  const uint32_t bits = pattern(x);
  return uint16_t((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

inline uint16_t to_bfloat16(float x, uint32_t chance) {
  return uint16_t((pattern(x) + (chance >> 16)) >> 16);
}

// Eight-bit codes: state/codes.py.

template <bool Signed>
struct Codes {
  static constexpr int32_t kLevels = Signed ? 127 : 255;
  static constexpr int32_t kLowest = (127 << 3) - kLevels;
  // What a signed value is moved by, so that the grid is even around zero.
  static float shift() { return Signed ? number(uint32_t(kLowest) << kDropped) : 0.0f; }

  static float decode(uint8_t code, float scale) {
    const uint32_t level = Signed ? (code & 0x7Fu) : code;
    const float x = (number((level + kLowest) << kDropped) - shift()) * scale;
    if (!Signed) return level ? x : 0.0f;
    return number(pattern(x) | (uint32_t(code & 0x80u) << 24));
  }

  static uint8_t encode(float x, float inverse, uint32_t noise) {
    const float scaled = x * inverse;
    const float size = std::fabs(scaled) + shift();
    int32_t level = int32_t((pattern(size) + noise) >> kDropped) - kLowest;
    level = level > kLevels ? kLevels : level;
    if (!Signed) {  // only zero is zero
      level = level < 1 ? 1 : level;
      return uint8_t(scaled > 0 ? level : 0);
    }
    return uint8_t(uint32_t(level) | ((pattern(scaled) >> 24) & 0x80u));
  }
};

// The part of an element's random bits that rounds one of its three averages.
template <int At, int Width>
inline uint32_t noise(uint32_t bits) {
  return (((bits >> At) & ((1u << Width) - 1)) << (kDropped - Width)) | (1u << (kDropped - 1 - Width));
}

inline float scale_of(uint8_t scale) { return number(uint32_t(scale) << 23); }
inline float inverse_of(uint8_t scale) { return number(uint32_t(254 - scale) << 23); }

inline uint8_t scale_for(uint32_t largest) {
  const uint32_t exponent = (largest >> 23) + 1;
  return uint8_t(exponent > 253 ? 253 : exponent);
}

// One average in memory.

// With codes, a tile of it is decoded before the step and encoded after; `held` is the tile.
template <int Storage, bool Signed, bool Positive, int At, int Width>
struct Average {
  void* values;
  uint8_t* scales;
  float* held;

  real load(int64_t i, int64_t in_tile) const {
    if constexpr (Storage == WIDE) return static_cast<const real*>(values)[i];
    else if constexpr (Storage == CODES) return held[in_tile];
    else return from_bfloat16(static_cast<const uint16_t*>(values)[i]);
  }

  void store(int64_t i, int64_t in_tile, real x, uint32_t bits) const {
    if constexpr (Storage == WIDE) static_cast<real*>(values)[i] = x;
    else if constexpr (Storage == CODES) held[in_tile] = float(x);
    else {
      uint16_t rounded = Storage == CHANCE ? to_bfloat16(float(x), bits) : to_bfloat16(float(x));
      if (Positive) {  // nothing above zero becomes zero
        const uint16_t least = uint16_t(pattern(float(x)) != 0);
        rounded = rounded > least ? rounded : least;
      }
      static_cast<uint16_t*>(values)[i] = rounded;
    }
  }

  void decode(int64_t begin, int64_t count, int64_t block) const {
    if constexpr (Storage == CODES) {
      for (int64_t at = 0; at < count; at += kBlock, ++block) {
        const uint8_t* codes = static_cast<const uint8_t*>(values) + begin + at;
        // A full block has a length that the compiler knows.
        if (count - at >= kBlock) decode_block(codes, held + at, scales[block], kBlock);
        else decode_block(codes, held + at, scales[block], count - at);
      }
    }
  }

  void encode(int64_t begin, int64_t count, int64_t block, const uint32_t* bits) const {
    if constexpr (Storage == CODES) {
      for (int64_t at = 0; at < count; at += kBlock, ++block) {
        uint8_t* codes = static_cast<uint8_t*>(values) + begin + at;
        if (count - at >= kBlock)
          scales[block] = encode_block(codes, held + at, bits + at, kBlock);
        else
          scales[block] = encode_block(codes, held + at, bits + at, count - at);
      }
    }
  }

 private:
  static inline __attribute__((always_inline)) void decode_block(
      const uint8_t* codes, float* into, uint8_t scale, int64_t count) {
    const float factor = scale_of(scale);
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) into[i] = Codes<Signed>::decode(codes[i], factor);
  }

  static inline __attribute__((always_inline)) uint8_t encode_block(
      uint8_t* codes, const float* from, const uint32_t* bits, int64_t count) {
    uint32_t largest = 0;  // floats above zero are in the order of their bits
#pragma omp simd reduction(max : largest)
    for (int64_t i = 0; i < count; ++i) {
      const uint32_t size = pattern(from[i]) & 0x7FFFFFFFu;
      largest = size > largest ? size : largest;
    }
    const uint8_t scale = scale_for(largest);
    const float inverse = inverse_of(scale);
#pragma omp simd
    for (int64_t i = 0; i < count; ++i)
      codes[i] = Codes<Signed>::encode(from[i], inverse, noise<At, Width>(bits[i]));
    return scale;
  }
};

using First = Average<FIRST, true, false, 0, 10>;
using Sensitivity = Average<SENSITIVITY, false, true, 10, 10>;
using Second = Average<SECOND, false, false, 20, 12>;

#if PARAM == 2
using stored = uint16_t;
inline real load_param(const stored* p, int64_t i) { return from_bfloat16(p[i]); }
#else
using stored = real;
inline real load_param(const stored* p, int64_t i) { return p[i]; }
#endif

}  // namespace

// All options of a step; the layout is mirrored in cpu.py.
struct Options {
  double lr, weight_decay, beta1, beta2, eps, momentum, dampening, beta0, sage_eps;
  int64_t decay;  // 0 decoupled, 1 scaled, 2 l2
  int64_t bias_correction, sage_bias_correction, maximize, nesterov, seed, threads;
};

// One parameter; the columns of the table that cpu.py makes, in their order.
struct Tensor {
  void *param, *grad;
  void *first, *second, *sensitivity;
  uint8_t *first_scale, *second_scale, *sensitivity_scale;
  float *step, *sensitivity_step;
  int64_t count, width;       // elements; elements in a row of dimension 0
  int64_t parameter, offset;  // for the random bits
};

namespace {

// What the inner loop needs of the options, for one tensor at its step.
struct Factors {
  real sign, l2, scaled, keep, lr;
  real beta1, beta2, share1, share2, eps, inverse1, inverse_root2;
  real momentum, share, ahead, along;
  real share0, sharpen, correct, sage_eps;
  uint32_t step;
};

Factors factors(const Options& o, Tensor& t) {
  Factors f{};
  const double step = *t.step += 1;
  f.step = uint32_t(step);
  f.sign = o.maximize ? -1 : 1;
  f.l2 = o.decay == 2 ? o.weight_decay : 0;
  f.scaled = o.decay == 1 ? o.weight_decay : 0;
  f.keep = o.decay == 0 ? 1 - o.lr * o.weight_decay : 1;
  f.lr = o.lr;
  f.beta1 = o.beta1;
  f.beta2 = o.beta2;
  f.share1 = 1 - o.beta1;
  f.share2 = 1 - o.beta2;
  f.eps = o.eps;
  f.inverse1 = o.bias_correction ? 1 / (1 - std::pow(o.beta1, step)) : 1;
  f.inverse_root2 = o.bias_correction ? 1 / std::sqrt(1 - std::pow(o.beta2, step)) : 1;
  f.momentum = o.momentum;
  f.share = step > 1 ? 1 - o.dampening : 1;
  f.along = o.nesterov ? o.momentum : 1;
  f.ahead = o.nesterov ? 1 : 0;
  if (SAGE) {
    const double count = *t.sensitivity_step += 1;
    f.share0 = 1 - o.beta0;
    // The multiplier's two sides are scaled up alike by a power of two, so that its denominator
    // times the base's stays far from the smallest float and one division serves for both.
    f.sharpen = std::exp2(std::fmin(60.0, std::fmax(0.0, -std::floor(std::log2(o.sage_eps)))));
    const double correction = o.sage_bias_correction ? 1 - std::pow(o.beta0, count) : 1;
    f.correct = f.sharpen / correction;
    f.sage_eps = o.sage_eps * double(f.sharpen);
  }
  return f;
}

// Keys of the random bits of one tensor's four streams, for one value of the upper index half.
struct Streams {
  Keys param, first, second, sensitivity, codes;
  Streams(const Options& o, const Factors& f, const Tensor& t, uint32_t high)
      : param(o.seed, f.step, t.parameter, 0, high),
        first(o.seed, f.step, t.parameter, 1, high),
        second(o.seed, f.step, t.parameter, 2, high),
        sensitivity(o.seed, f.step, t.parameter, 3, high),
        codes(o.seed, f.step, t.parameter, 4, high) {}
};

// Elements [begin, begin + count) of one tensor. With codes they are a tile, which begins at `block`.
inline void run(const Factors& factors, const Tensor& t, const Streams& streams, int64_t begin,
                int64_t count, int64_t block) {
  // Copies, which no store of the loop can change, so that they stay in registers.
  const Factors f = factors;
  const Streams keys = streams;
  stored* const param = static_cast<stored*>(t.param);
  const stored* const grad = static_cast<const stored*>(t.grad);
  constexpr int64_t room = kCodes ? kTile : 1;
  alignas(64) float held_first[room], held_second[room], held_sensitivity[room];
  alignas(64) uint32_t bits[room];
  const First first{t.first, t.first_scale, held_first};
  const Second second{t.second, t.second_scale, held_second};
  const Sensitivity sensitivity{t.sensitivity, t.sensitivity_scale, held_sensitivity};
  const uint32_t low = uint32_t(uint64_t(t.offset + begin));

  first.decode(begin, count, block);
  second.decode(begin, count, block);
  if (SAGE) sensitivity.decode(begin, count, block);

#pragma omp simd
  for (int64_t j = 0; j < count; ++j) {
    const int64_t i = begin + j;
    const uint32_t here = low + uint32_t(j);
    real theta = load_param(param, i);
    real g = load_param(grad, i) * f.sign;

    // r = above / below, and the base's direction d = top / bottom: one division for both.
    real above = 1, below = 1, top = g, bottom = 1;
    if (SAGE) {
      const real sense = std::fabs(theta * g);
      real smoothed = sensitivity.load(i, j);
      smoothed += f.share0 * (sense - smoothed);
      sensitivity.store(i, j, smoothed, keys.sensitivity.bits(here));
      const real corrected = smoothed * f.correct;
      above = std::fabs(sense * f.sharpen - corrected) + f.sage_eps;
      below = corrected + f.sage_eps;
    }

    g += f.l2 * theta;
    top = g;
    if (kHasFirst) {
      real average = first.load(i, j);
      if (BASE == SGD_MOMENTUM) average = f.momentum * average + f.share * g;
      else average += f.share1 * (g - average);
      first.store(i, j, average, keys.first.bits(here));
      top = BASE == SGD_MOMENTUM ? f.ahead * g + f.along * average : average * f.inverse1;
    }
    if (kHasSecond) {
      real size = second.load(i, j);
      const real now = std::fabs(g) + f.eps, decayed = f.beta2 * size;
      if (BASE == ADAMW) size = decayed + f.share2 * (g * g);
      else size = decayed > now ? decayed : now;
      second.store(i, j, size, keys.second.bits(here));
      bottom = BASE == ADAMW ? std::sqrt(size) * f.inverse_root2 + f.eps : size;
    }

    top += f.scaled * theta * bottom;
    theta = theta * f.keep - f.lr * ((above * top) / (below * bottom));
#if PARAM == 2
    param[i] = PARAM_CHANCE ? to_bfloat16(theta, keys.param.bits(here)) : to_bfloat16(theta);
#else
    param[i] = theta;
#endif
  }

  if (kCodes) {
#pragma omp simd
    for (int64_t j = 0; j < count; ++j) bits[j] = keys.codes.bits(low + uint32_t(j));
    first.encode(begin, count, block, bits);
    second.encode(begin, count, block, bits);
    if (SAGE) sensitivity.encode(begin, count, block, bits);
  }
}

struct Chunk {
  int64_t tensor, begin, end;
};

}  // namespace

// One step on n parameters. The table holds the columns of Tensor one after another, n of each.
extern "C" void sagelr_step(const Options* options, const int64_t* table, int64_t n) {
  const Options& o = *options;
  constexpr int64_t columns = sizeof(Tensor) / sizeof(int64_t);
  std::vector<Tensor> tensors(n);
  for (int64_t t = 0; t < n; ++t) {
    int64_t row[columns];
    for (int64_t c = 0; c < columns; ++c) row[c] = table[c * n + t];
    std::memcpy(&tensors[t], row, sizeof(Tensor));
  }
  std::vector<Factors> all(n);
  std::vector<Chunk> chunks;
  for (int64_t t = 0; t < n; ++t) {
    all[t] = factors(o, tensors[t]);
    const int64_t count = tensors[t].count;
    // A chunk begins a row where there are codes, and none crosses 2^32 elements of the whole
    // parameter, where the keys of the random bits change.
    const int64_t width = kCodes ? tensors[t].width : count;
    const int64_t rows = width ? count / width : 0;
    const int64_t rows_at_once = kCodes ? (kChunk + width - 1) / (width ? width : 1) : 1;
    for (int64_t row = 0; row < rows; row += rows_at_once) {
      const int64_t stop = (row + rows_at_once < rows ? row + rows_at_once : rows) * width;
      int64_t begin = row * width;
      while (begin < stop) {
        int64_t end = kCodes ? stop : (begin + kChunk < stop ? begin + kChunk : stop);
        if (!kCodes) {
          const int64_t boundary =
              (((tensors[t].offset + begin) >> 32) + 1 << 32) - tensors[t].offset;
          end = end < boundary ? end : boundary;
        }
        chunks.push_back({t, begin, end});
        begin = end;
      }
    }
  }
  const int64_t total = int64_t(chunks.size());
#pragma omp parallel for schedule(dynamic, 4) num_threads(int(o.threads)) if (total > 1)
  for (int64_t c = 0; c < total; ++c) {
    const Chunk& chunk = chunks[c];
    const Tensor& t = tensors[chunk.tensor];
    const Factors& f = all[chunk.tensor];
    uint32_t high = uint32_t(uint64_t(t.offset + chunk.begin) >> 32);
    Streams keys(o, f, t, high);
    if (!kCodes) {
      run(f, t, keys, chunk.begin, chunk.end - chunk.begin, 0);
      continue;
    }
    const int64_t per_row = (t.width + kBlock - 1) / kBlock;
    for (int64_t row = chunk.begin / t.width; row * t.width < chunk.end; ++row) {
      for (int64_t at = 0; at < t.width; at += kTile) {
        const int64_t begin = row * t.width + at;
        const uint32_t above = uint32_t(uint64_t(t.offset + begin) >> 32);
        if (above != high) keys = Streams(o, f, t, high = above);
        run(f, t, keys, begin, at + kTile < t.width ? kTile : t.width - at,
            row * per_row + at / kBlock);
      }
    }
  }
}
