// One step of SAGE in one pass over memory. The definition is eager.py; this follows it.
//
// Compiled for one kind of update at a time (see cpu.py), by these macros:
//   BASE         0 AdamW, 1 Adamax, 2 SGD with momentum, 3 SGD without
//   SAGE         1 with the multiplier, 0 the base alone
//   PARAM        0 float, 1 double, 2 bfloat16 (arithmetic in float, but for double)
//   PARAM_CHANCE 1 rounds a bfloat16 parameter by chance
//   DECAY        0 decoupled, 1 scaled by the multiplier, 2 added to the gradient
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
enum { DECOUPLED = 0, SCALED = 1, L2 = 2 };

constexpr bool kCodes = FIRST == CODES || SECOND == CODES || SENSITIVITY == CODES;
constexpr bool kHasFirst = BASE != SGD_PLAIN;
constexpr bool kHasSecond = BASE == ADAMW || BASE == ADAMAX;
constexpr int64_t kChunk = 1 << 14;  // elements a thread takes at a time

using First = Average<FIRST, true, false, 0, 10>;
using Sensitivity = Average<SENSITIVITY, false, true, 10, 10>;
using Second = Average<SECOND, false, false, 20, 12>;

#if PARAM == 2
using stored = uint16_t;
inline Reals load_param(const char* p) { return read_bfloat16(p); }
#else
using stored = real;
inline Reals load_param(const char* p) { return read<Reals>(p); }
#endif

}  // namespace

// All options of a step; the layout is mirrored in cpu.py.
struct Options {
  double lr, weight_decay, beta1, beta2, eps, momentum, dampening, beta0, sage_eps;
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
  real sign, decay, keep, lr;
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
  f.decay = o.weight_decay;
  f.keep = DECAY == DECOUPLED ? 1 - o.lr * o.weight_decay : 1;
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

// Keys of the random bits of one tensor's five streams, for one value of the upper index half.
struct Streams {
  Keys param, first, second, sensitivity, codes;
  Streams(const Options& o, const Factors& f, const Tensor& t, uint32_t high)
      : param(o.seed, f.step, t.parameter, 0, high),
        first(o.seed, f.step, t.parameter, 1, high),
        second(o.seed, f.step, t.parameter, 2, high),
        sensitivity(o.seed, f.step, t.parameter, 3, high),
        codes(o.seed, f.step, t.parameter, 4, high) {}
};

// Where the next elements of one tensor are, and how far it is from one to the next.
struct Place {
  char *param, *first, *second, *sensitivity, *bits;
  const char* grad;
};

// As many elements as there are lanes.
inline void take(const Factors& f, const Streams& keys, const Place& at, Words index) {
  // Every load before the first store: a load that follows a store waits for it where the lower 12
  // bits of their addresses agree, and large tensors begin on pages.
  Reals theta = load_param(at.param);
  Reals g = load_param(at.grad) * f.sign;
  Reals smoothed{}, average{}, size{};
  if (SAGE) smoothed = Sensitivity::load(at.sensitivity);
  if (kHasFirst) average = First::load(at.first);
  if (kHasSecond) size = Second::load(at.second);

  // r = above / below, and the base's direction d = top / bottom.
  Reals above{}, below{}, top, bottom = Reals{} + 1;
  if (SAGE) {
    const Reals sense = magnitude(theta * g);
    smoothed += f.share0 * (sense - smoothed);
    const Reals corrected = smoothed * f.correct;
    above = magnitude(sense * f.sharpen - corrected) + f.sage_eps;
    below = corrected + f.sage_eps;
  }

  if (DECAY == L2) g += f.decay * theta;
  top = g;
  if (kHasFirst) {
    if (BASE == SGD_MOMENTUM) average = f.momentum * average + f.share * g;
    else average += f.share1 * (g - average);
    top = BASE == SGD_MOMENTUM ? f.ahead * g + f.along * average : average * f.inverse1;
  }
  if (kHasSecond) {
    if (BASE == ADAMW) size = f.beta2 * size + f.share2 * (g * g);
    else size = most(f.beta2 * size, magnitude(g) + f.eps);
    bottom = BASE == ADAMW ? root(size) * f.inverse_root2 + f.eps : size;
  }

  if (DECAY == SCALED) top += f.decay * theta * bottom;
  Reals step = top;
  if (SAGE) step = top * (above / (kHasSecond ? below * bottom : below));
  else if (kHasSecond) step = top / bottom;
  theta = theta * f.keep - f.lr * step;

  if (SAGE) Sensitivity::store(at.sensitivity, smoothed, keys.sensitivity.upper(index));
  if (kHasFirst) First::store(at.first, average, keys.first.upper(index));
  if (kHasSecond) Second::store(at.second, size, keys.second.upper(index));
  if (kCodes) write(at.bits, keys.codes.bits(index));
#if PARAM == 2
  const Words exact = pattern(theta);
  write_upper(at.param, PARAM_CHANCE ? rounded(exact, keys.param.upper(index)) : rounded(exact));
#else
  write(at.param, theta);
#endif
}

// Fewer elements than there are lanes, in copies that are as long as a register.
inline void rest(const Factors& f, const Streams& keys, const Place& at, Words index, int64_t left) {
  char param[kLanes * sizeof(stored)]{}, grad[kLanes * sizeof(stored)]{}, bits[kLanes * 4];
  char first[kLanes * First::kSize]{}, second[kLanes * Second::kSize]{};
  char sensitivity[kLanes * Sensitivity::kSize]{};
  std::memcpy(param, at.param, left * sizeof(stored));
  std::memcpy(grad, at.grad, left * sizeof(stored));
  if (kHasFirst) std::memcpy(first, at.first, left * First::kSize);
  if (kHasSecond) std::memcpy(second, at.second, left * Second::kSize);
  if (SAGE) std::memcpy(sensitivity, at.sensitivity, left * Sensitivity::kSize);
  take(f, keys, {param, first, second, sensitivity, bits, grad}, index);
  std::memcpy(at.param, param, left * sizeof(stored));
  if (kHasFirst) std::memcpy(at.first, first, left * First::kSize);
  if (kHasSecond) std::memcpy(at.second, second, left * Second::kSize);
  if (SAGE) std::memcpy(at.sensitivity, sensitivity, left * Sensitivity::kSize);
  if (kCodes) std::memcpy(at.bits, bits, left * 4);
}

// Elements [begin, begin + count) of one tensor. With codes they are a tile, which begins at `block`.
inline void run(const Factors& factors, const Tensor& t, const Streams& streams, int64_t begin,
                int64_t count, int64_t block) {
  // Copies, which no store of the loop can change, so that they stay in registers.
  const Factors f = factors;
  const Streams keys = streams;
  // Not 4 KiB apart, for the same reason as in `take`.
  constexpr int64_t room = kCodes ? kTile + kTile / 4 : 1;
  alignas(64) float held_first[room], held_second[room], held_sensitivity[room];
  alignas(64) uint32_t bits[room];
  const First first{t.first, t.first_scale, held_first};
  const Second second{t.second, t.second_scale, held_second};
  const Sensitivity sensitivity{t.sensitivity, t.sensitivity_scale, held_sensitivity};

  first.decode(begin, count, block);
  second.decode(begin, count, block);
  if (SAGE) sensitivity.decode(begin, count, block);

  Words index;
  for (int k = 0; k < kLanes; ++k) index[k] = uint32_t(uint64_t(t.offset + begin)) + k;
  Place at{static_cast<char*>(t.param) + begin * int64_t(sizeof(stored)),
           first.at(begin),
           second.at(begin),
           sensitivity.at(begin),
           reinterpret_cast<char*>(bits),
           static_cast<const char*>(t.grad) + begin * int64_t(sizeof(stored))};
  int64_t left = count;
  for (; left >= kLanes; left -= kLanes) {
    take(f, keys, at, index);
    at.param += kLanes * sizeof(stored);
    at.grad += kLanes * sizeof(stored);
    at.first += kLanes * First::kSize;
    at.second += kLanes * Second::kSize;
    at.sensitivity += kLanes * Sensitivity::kSize;
    at.bits += kLanes * sizeof(uint32_t);
    index += uint32_t(kLanes);
  }
  if (left) rest(f, keys, at, index, left);

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
