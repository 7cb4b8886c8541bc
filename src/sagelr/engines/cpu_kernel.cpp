// One step of SAGE in one pass over memory. The definition is eager.py; this follows it.
//
// Compiled for one kind of update at a time (see cpu.py), by these macros:
//   BASE         0 AdamW, 1 Adamax, 2 SGD with momentum, 3 SGD without
//   SAGE         1 with the multiplier, 0 the base alone
//   PARAM        0 float, 1 double, 2 bfloat16 (arithmetic in float, but for double)
//   PARAM_CHANCE 1 rounds a bfloat16 parameter by chance
//   FIRST, SECOND, SENSITIVITY   how an average is stored:
//                0 as arithmetic, 1 bfloat16 to nearest, 2 bfloat16 by chance, 3 eight-bit codes

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include <omp.h>

#include "cpu_state.h"

namespace {

enum { ADAMW = 0, ADAMAX = 1, SGD_MOMENTUM = 2, SGD_PLAIN = 3 };

constexpr bool kCodes = FIRST == CODES || SECOND == CODES || SENSITIVITY == CODES;
constexpr bool kHasFirst = BASE != SGD_PLAIN;
constexpr bool kHasSecond = BASE == ADAMW || BASE == ADAMAX;
constexpr int64_t kChunk = 1 << 14;  // elements a thread takes at a time

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
    // One division serves for r and d. Its divisor, at least ε times what d is divided by, must not
    // come near the smallest float: where ε and eps are that small, I, Ī and ε are all scaled up.
    const double least = o.sage_eps * (kHasSecond ? std::fmax(o.eps, 1e-22) : 1);
    f.sharpen = std::exp2(std::fmin(60, std::fmax(0, std::ceil(-100 - std::log2(least)))));
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
  // Not 4 KiB apart: a load that follows a store waits for it where the lower 12 bits of their
  // addresses agree.
  constexpr int64_t room = kCodes ? kTile + kTile / 4 : 1;
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
    // Every load before the first store, for the same reason: large tensors begin on pages.
    real theta = load_param(param, i);
    real g = load_param(grad, i) * f.sign;
    real smoothed = SAGE ? sensitivity.load(i, j) : 0;
    real average = kHasFirst ? first.load(i, j) : 0;
    real size = kHasSecond ? second.load(i, j) : 0;

    // r = above / below, and the base's direction d = top / bottom.
    real above = 1, below = 1, top, bottom = 1;
    if (SAGE) {
      const real sense = std::fabs(theta * g);
      smoothed += f.share0 * (sense - smoothed);
      const real corrected = smoothed * f.correct;
      above = std::fabs(sense * f.sharpen - corrected) + f.sage_eps;
      below = corrected + f.sage_eps;
    }

    g += f.l2 * theta;
    top = g;
    if (kHasFirst) {
      if (BASE == SGD_MOMENTUM) average = f.momentum * average + f.share * g;
      else average += f.share1 * (g - average);
      top = BASE == SGD_MOMENTUM ? f.ahead * g + f.along * average : average * f.inverse1;
    }
    if (kHasSecond) {
      const real now = std::fabs(g) + f.eps, decayed = f.beta2 * size;
      if (BASE == ADAMW) size = decayed + f.share2 * (g * g);
      else size = decayed > now ? decayed : now;
      bottom = BASE == ADAMW ? std::sqrt(size) * f.inverse_root2 + f.eps : size;
    }

    top += f.scaled * theta * bottom;
    const real step = SAGE ? top * (above / (below * bottom)) : top / bottom;
    theta = theta * f.keep - f.lr * step;

    if (SAGE) sensitivity.store(i, j, smoothed, keys.sensitivity.bits(here));
    if (kHasFirst) first.store(i, j, average, keys.first.bits(here));
    if (kHasSecond) second.store(i, j, size, keys.second.bits(here));
    if (kCodes) bits[j] = keys.codes.bits(here);
#if PARAM == 2
    param[i] = PARAM_CHANCE ? to_bfloat16(theta, keys.param.bits(here)) : to_bfloat16(theta);
#else
    param[i] = theta;
#endif
  }

  first.encode(begin, count, block, bits);
  second.encode(begin, count, block, bits);
  if (SAGE) sensitivity.encode(begin, count, block, bits);
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
    int64_t& width = tensors[t].width;
    // Where rows are whole blocks, or there are none, a tensor is one long row.
    const bool flat = !kCodes || width % kBlock == 0;
    if (flat) width = count;
    const int64_t most = flat ? kChunk : (kChunk + width - 1) / width * width;
    for (int64_t begin = 0; begin < count;) {
      int64_t end = std::min(begin + most, count);
      if (flat) {  // no chunk crosses 2^32 elements of the whole parameter, where keys change
        const int64_t next = (((tensors[t].offset + begin) >> 32) + 1) << 32;
        end = std::min(end, next - tensors[t].offset);
      }
      chunks.push_back({t, begin, end});
      begin = end;
    }
  }
  const int64_t total = int64_t(chunks.size());
#pragma omp parallel for schedule(dynamic, 4) num_threads(int(o.threads)) if (total > 1)
  for (int64_t c = 0; c < total; ++c) {
    const Chunk& chunk = chunks[c];
    const Tensor& t = tensors[chunk.tensor];
    const Factors& f = all[chunk.tensor];
    const Streams keys(o, f, t, uint32_t(uint64_t(t.offset + chunk.begin) >> 32));
    if (!kCodes) {
      run(f, t, keys, chunk.begin, chunk.end - chunk.begin, 0);
      continue;
    }
    const int64_t per_row = (t.width + kBlock - 1) / kBlock;
    for (int64_t begin = chunk.begin; begin < chunk.end;) {  // a tile ends where its row does
      const int64_t row = begin / t.width, column = begin % t.width;
      const int64_t count = std::min({kTile, t.width - column, chunk.end - begin});
      run(f, t, keys, begin, count, row * per_row + column / kBlock);
      begin += count;
    }
  }
}
