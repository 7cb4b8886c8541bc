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

inline uint16_t to_bfloat16(float x) {
  const uint32_t bits = pattern(x);
  const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t nan = (bits >> 16) | 0x40u;
  return uint16_t((bits & 0x7FFFFFFFu) > 0x7F800000u ? nan : rounded);
}

inline uint16_t to_bfloat16(float x, uint32_t chance) {
  const uint32_t bits = pattern(x);
  const bool finite = (bits & 0x7F800000u) != 0x7F800000u;
  const uint32_t rounded = (bits + (chance & 0xFFFFu)) >> 16;
  const uint32_t special = (bits >> 16) | ((bits & 0xFFFFu) ? 0x40u : 0u);
  return uint16_t(finite ? rounded : special);
}

// Eight-bit codes: state/codes.py.

template <bool Signed>
struct Codes {
  static constexpr int32_t kLevels = Signed ? 127 : 255;
  static constexpr int32_t kLowest = (127 << 3) - kLevels;

  static float decode(uint8_t code, float scale) {
    const int32_t level = Signed ? (code & 0x7F) : code;
    const float x = number(uint32_t(level + kLowest) << kDropped) * scale;
    const float magnitude = level ? x : 0.0f;
    return Signed && code > 127 ? -magnitude : magnitude;
  }

  static uint8_t encode(float x, float inverse, uint32_t chance) {
    const float scaled = x * inverse;
    const uint32_t bits = pattern(scaled);
    const uint32_t magnitude = bits & 0x7FFFFFFFu;
    int32_t level = int32_t((magnitude + (chance & 0xFFFFFu)) >> kDropped) - kLowest;
    if (Signed) {
      const float bottom = number(uint32_t(1 + kLowest) << kDropped);
      const float uniform = float(int32_t(chance & 0xFFFFFFu)) * (1.0f / (1 << 24));
      const float share = std::fabs(scaled) / bottom;
      level = share < 1.0f ? int32_t(uniform < share) : level;
    }
    constexpr int32_t floor = Signed ? 0 : 1;
    level = level < floor ? floor : level;
    level = level > kLevels ? kLevels : level;
    level = magnitude ? level : 0;
    return uint8_t(Signed && (bits >> 31) ? level + 128 : level);
  }
};

inline float scale_of(uint8_t scale) { return number(uint32_t(scale) << 23); }
inline float inverse_of(uint8_t scale) { return number(uint32_t(254 - scale) << 23); }

inline uint8_t scale_for(float largest) {
  const uint32_t exponent = (pattern(largest) >> 23) + 1;
  return uint8_t(exponent > 253 ? 253 : exponent);
}

// One average in memory.

template <int Storage, bool Signed, int Stream>
struct Average {
  void* values;
  uint8_t* scales;

  real load(int64_t i, float scale) const {
    if constexpr (Storage == WIDE) return static_cast<const real*>(values)[i];
    else if constexpr (Storage == CODES)
      return Codes<Signed>::decode(static_cast<const uint8_t*>(values)[i], scale);
    else return from_bfloat16(static_cast<const uint16_t*>(values)[i]);
  }

  void store(int64_t i, real x, uint32_t low, const Keys& keys) const {
    if constexpr (Storage == WIDE) static_cast<real*>(values)[i] = x;
    else if constexpr (Storage == NEAREST || Storage == CHANCE) {
      uint16_t rounded = Storage == CHANCE ? to_bfloat16(float(x), keys.bits(low))
                                           : to_bfloat16(float(x));
      // A positive value never becomes zero, see keep_positive in state/rounding.py.
      if (!Signed) rounded = (rounded == 0 && x > 0) ? uint16_t(1) : rounded;
      static_cast<uint16_t*>(values)[i] = rounded;
    }
  }

  // The codes of a block whose values were held back until its largest is known.
  void store_block(int64_t begin, int64_t count, const float* held, int64_t block,
                   uint32_t low, const Keys& keys) const {
    float largest = 0;
    for (int64_t i = 0; i < count; ++i) {
      const float size = std::fabs(held[i]);
      largest = size > largest ? size : largest;
    }
    const uint8_t scale = scale_for(largest);
    const float inverse = inverse_of(scale);
    uint8_t* codes = static_cast<uint8_t*>(values) + begin;
    scales[block] = scale;
#pragma omp simd
    for (int64_t i = 0; i < count; ++i)
      codes[i] = Codes<Signed>::encode(held[i], inverse, keys.bits(low + uint32_t(i)));
  }
};

using First = Average<FIRST, true, 1>;
using Second = Average<SECOND, false, 2>;
using Sensitivity = Average<SENSITIVITY, false, 3>;

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

// One parameter; the layout is mirrored in cpu.py.
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

// Elements [begin, end) of one tensor. With codes they are one block, number `block`.
void run(const Options& o, const Factors& f, const Tensor& t, int64_t begin, int64_t end,
         int64_t block) {
  stored* const param = static_cast<stored*>(t.param);
  const stored* const grad = static_cast<const stored*>(t.grad);
  const First first{t.first, t.first_scale};
  const Second second{t.second, t.second_scale};
  const Sensitivity sensitivity{t.sensitivity, t.sensitivity_scale};

  const uint64_t index = uint64_t(t.offset + begin);
  const uint32_t high = uint32_t(index >> 32), low = uint32_t(index);
  const uint32_t seed = uint32_t(o.seed), parameter = uint32_t(t.parameter);
  const Keys keys_param(seed, f.step, parameter, 0, high);
  const Keys keys_first(seed, f.step, parameter, 1, high);
  const Keys keys_second(seed, f.step, parameter, 2, high);
  const Keys keys_sensitivity(seed, f.step, parameter, 3, high);

  const float scale1 = FIRST == CODES ? scale_of(t.first_scale[block]) : 0;
  const float scale2 = SECOND == CODES ? scale_of(t.second_scale[block]) : 0;
  const float scale0 = SENSITIVITY == CODES && SAGE ? scale_of(t.sensitivity_scale[block]) : 0;
  float held1[kBlock], held2[kBlock], held0[kBlock];

#pragma omp simd
  for (int64_t i = begin; i < end; ++i) {
    const uint32_t here = low + uint32_t(i - begin);
    real theta = load_param(param, i);
    real g = load_param(grad, i) * f.sign;

    // r = above / below, and the base's direction d = top / bottom: one division for both.
    real above = 1, below = 1, top = g, bottom = 1;
    if (SAGE) {
      const real sense = std::fabs(theta * g);
      real smoothed = sensitivity.load(i, scale0);
      smoothed += f.share0 * (sense - smoothed);
      if (SENSITIVITY == CODES) held0[i - begin] = float(smoothed);
      else sensitivity.store(i, smoothed, here, keys_sensitivity);
      const real corrected = smoothed * f.correct;
      above = std::fabs(sense * f.sharpen - corrected) + f.sage_eps;
      below = corrected + f.sage_eps;
    }

    g += f.l2 * theta;
    top = g;
    if (kHasFirst) {
      real average = first.load(i, scale1);
      if (BASE == SGD_MOMENTUM) average = f.momentum * average + f.share * g;
      else average += f.share1 * (g - average);
      if (FIRST == CODES) held1[i - begin] = float(average);
      else first.store(i, average, here, keys_first);
      top = BASE == SGD_MOMENTUM ? f.ahead * g + f.along * average : average * f.inverse1;
    }
    if (kHasSecond) {
      real size = second.load(i, scale2);
      const real now = std::fabs(g) + f.eps, decayed = f.beta2 * size;
      if (BASE == ADAMW) size = decayed + f.share2 * (g * g);
      else size = decayed > now ? decayed : now;
      if (SECOND == CODES) held2[i - begin] = float(size);
      else second.store(i, size, here, keys_second);
      bottom = BASE == ADAMW ? std::sqrt(size) * f.inverse_root2 + f.eps : size;
    }

    top += f.scaled * theta * bottom;
    theta = theta * f.keep - f.lr * ((above * top) / (below * bottom));
#if PARAM == 2
    param[i] = PARAM_CHANCE ? to_bfloat16(theta, keys_param.bits(here)) : to_bfloat16(theta);
#else
    param[i] = theta;
#endif
  }

  if constexpr (FIRST == CODES)
    first.store_block(begin, end - begin, held1, block, low, keys_first);
  if constexpr (SECOND == CODES)
    second.store_block(begin, end - begin, held2, block, low, keys_second);
  if constexpr (SENSITIVITY == CODES && SAGE)
    sensitivity.store_block(begin, end - begin, held0, block, low, keys_sensitivity);
}

struct Chunk {
  int64_t tensor, begin, end;
};

}  // namespace

// One step on n parameters.
extern "C" void sagelr_step(const Options* options, Tensor* tensors, int64_t n) {
  const Options& o = *options;
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
    if (!kCodes) {
      run(o, f, t, chunk.begin, chunk.end, 0);
      continue;
    }
    const int64_t per_row = (t.width + kBlock - 1) / kBlock;
    for (int64_t row = chunk.begin / t.width; row * t.width < chunk.end; ++row) {
      for (int64_t b = 0; b < per_row; ++b) {
        const int64_t begin = row * t.width + b * kBlock;
        const int64_t row_end = (row + 1) * t.width;
        run(o, f, t, begin, begin + kBlock < row_end ? begin + kBlock : row_end,
            row * per_row + b);
      }
    }
  }
}
