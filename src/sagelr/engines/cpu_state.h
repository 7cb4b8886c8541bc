// How averages lie in memory: random bits, bfloat16, eight-bit codes. The definitions are rounding.py
// and codes.py in state/; this follows them. Included by cpu_kernel.cpp, whose macros it needs.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

enum { WIDE = 0, NEAREST = 1, CHANCE = 2, CODES = 3 };

#if PARAM == 1
using real = double;
#else
using real = float;
#endif

}  // namespace

#include "cpu_lanes.h"

namespace {

constexpr int64_t kBlock = 32;   // elements that share a scale
constexpr int64_t kTile = 1024;  // elements whose codes are decoded at a time
constexpr int kDropped = 20;     // bits of an fp32 mantissa that a code drops

// Random bits: the hash and the keys of rounding.py.

template <class Word>
inline Word mix_upper(Word x, uint32_t middle) {
  x ^= x >> 16;
  x *= 0x7FEB352Du;
  x ^= x >> 15;
  x += middle;
  x *= 0x846CA68Bu;
  return x;
}

template <class Word>
inline Word mix(Word x, uint32_t middle) {
  x = mix_upper(x, middle);
  return x ^ (x >> 16);
}

struct Keys {
  uint32_t first, second;
  Keys(uint32_t seed, uint32_t step, uint32_t parameter, uint32_t stream, uint32_t high) {
    uint32_t key = mix(mix(seed + 0x9E3779B9u, 0) ^ step, 0);
    key = mix(key ^ (parameter * 8 + stream), 0);
    first = mix(key ^ high, 0);
    second = mix(first ^ 0x9E3779B9u, 0);
  }
  Words bits(Words low) const { return mix(low ^ first, second); }
  // Their upper halves, with anything below.
  Words upper(Words low) const { return mix_upper(low ^ first, second); }
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

inline Reals read_bfloat16(const void* from) {
  return __builtin_convertvector(same_bits<Floats>(read_upper(from)), Reals);
}

// Infinities and NaN come through as they are: adding to the lower half carries into the upper one
// only where the lower half is not zero. The result is in the upper half of each word.
inline Words rounded(Words bits) { return bits + (0x7FFFu + ((bits >> 16) & 1u)); }
inline Words rounded(Words bits, Words chance) { return bits + (chance >> 16); }

inline Words pattern(Reals x) { return same_bits<Words>(__builtin_convertvector(x, Floats)); }

// Eight-bit codes: codes.py.

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
    const float size = Signed ? std::fabs(scaled) + shift() : scaled;
    int32_t level = int32_t((pattern(size) + noise) >> kDropped) - kLowest;
    level = level > kLevels ? kLevels : level;
    if (Signed) return uint8_t(uint32_t(level) | ((pattern(scaled) >> 24) & 0x80u));
    level = level < 1 ? 1 : level;
    return uint8_t(x > 0 ? level : 0);  // only zero is zero
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

// One average in memory. Its codes are decoded a tile at a time before the step, and encoded after;
// `held` is the tile.
template <int Storage, bool Signed, bool Positive, int At, int Width>
struct Average {
  static constexpr int64_t kSize =
      Storage == WIDE ? sizeof(real) : Storage == CODES ? sizeof(float) : sizeof(uint16_t);

  void* values;
  uint8_t* scales;
  float* held;

  // Where the loop finds element i, or that of the tile.
  char* at(int64_t i) const {
    if constexpr (Storage == CODES) return reinterpret_cast<char*>(held);
    else return static_cast<char*>(values) + i * kSize;
  }

  static Reals load(const char* from) {
    if constexpr (Storage == WIDE || Storage == CODES) return read<Reals>(from);
    else return read_bfloat16(from);
  }

  static void store(char* into, Reals x, Words bits) {
    if constexpr (Storage == WIDE || Storage == CODES) write(into, x);
    else {
      const Words exact = pattern(x);
      Words near = Storage == CHANCE ? rounded(exact, bits) : rounded(exact);
      // Nothing above zero becomes zero: what has no upper half of its own has a lower one.
      if (Positive) near = most(near, least(exact << 16, Words{} + 0x10000u));
      write_upper(into, near);
    }
  }

  void decode(int64_t begin, int64_t count, int64_t block) const {
    if constexpr (Storage == CODES) {
      const uint8_t* codes = static_cast<const uint8_t*>(values) + begin;
      for (int64_t at = 0; at < count; at += kBlock, ++block) {
        // A full block has a length that the compiler knows; so has a full tile below.
        if (count - at >= kBlock) decode_block(codes + at, at, scale_of(scales[block]), kBlock);
        else decode_block(codes + at, at, scale_of(scales[block]), count - at);
      }
    }
  }

  // The scales of all blocks first: the way from a block's values to its scale is long, and the
  // processor would wait at its end for every block in turn.
  void encode(int64_t begin, int64_t count, int64_t block, const uint32_t* bits) const {
    if constexpr (Storage == CODES) {
      uint8_t scale[kTile / kBlock];
      float inverse[kTile / kBlock];
      const int64_t blocks = (count + kBlock - 1) / kBlock;
      for (int64_t i = count; i < blocks * kBlock; ++i) held[i] = 0;
      if (count == kTile) find_scales(kTile / kBlock, scale, inverse);
      else find_scales(blocks, scale, inverse);
      std::memcpy(scales + block, scale, blocks);
      uint8_t* codes = static_cast<uint8_t*>(values) + begin;
      for (int64_t b = 0, at = 0; b < blocks; ++b, at += kBlock) {
        if (count - at >= kBlock) encode_block(codes + at, at, bits, inverse[b], kBlock);
        else encode_block(codes + at, at, bits, inverse[b], count - at);
      }
    }
  }

 private:
  static uint32_t larger(uint32_t x, uint32_t y) { return x > y ? x : y; }
  static uint32_t size(float x) { return Signed ? pattern(x) & 0x7FFFFFFFu : pattern(x); }

  [[gnu::always_inline]] inline void find_scales(int64_t blocks, uint8_t* scale,
                                                 float* inverse) const {
    // Floats above zero are in the order of their bits. Eight maxima of each block, then halved.
    alignas(64) uint32_t largest[kTile / 4];
    for (int64_t b = 0; b < blocks; ++b) {
#pragma omp simd
      for (int64_t k = 0; k < 8; ++k) {
        const float* from = held + b * kBlock + k;
        largest[b * 8 + k] = larger(larger(size(from[0]), size(from[8])),
                                    larger(size(from[16]), size(from[24])));
      }
    }
    halve(largest, blocks * 4);
    halve(largest, blocks * 2);
    halve(largest, blocks);
#pragma omp simd
    for (int64_t b = 0; b < blocks; ++b) {
      scale[b] = scale_for(largest[b]);
      inverse[b] = inverse_of(scale[b]);
    }
  }

  [[gnu::always_inline]] static inline void halve(uint32_t* x, int64_t left) {
#pragma omp simd
    for (int64_t i = 0; i < left; ++i) x[i] = larger(x[2 * i], x[2 * i + 1]);
  }

  [[gnu::always_inline]] inline void decode_block(const uint8_t* codes, int64_t at, float scale,
                                                  int64_t count) const {
    float* const into = held + at;
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) into[i] = Codes<Signed>::decode(codes[i], scale);
  }

  [[gnu::always_inline]] inline void encode_block(uint8_t* codes, int64_t at,
                                                  const uint32_t* bits, float inverse,
                                                  int64_t count) const {
    const float* const from = held + at;
#pragma omp simd
    for (int64_t i = 0; i < count; ++i)
      codes[i] = Codes<Signed>::encode(from[i], inverse, noise<At, Width>(bits[at + i]));
  }
};

}  // namespace
