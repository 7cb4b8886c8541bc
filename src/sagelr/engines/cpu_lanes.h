// Arithmetic on as many elements at a time as a register holds, in the compiler's vector types: every
// operator works on each element. Included by cpu_state.h, whose `real` it needs.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int kRegister = 64;
#elif defined(__AVX__)
constexpr int kRegister = 32;
#else
constexpr int kRegister = 16;
#endif

constexpr int kLanes = kRegister / sizeof(real);

typedef real Reals __attribute__((vector_size(kLanes * sizeof(real))));
typedef float Floats __attribute__((vector_size(kLanes * 4)));
typedef uint32_t Words __attribute__((vector_size(kLanes * 4)));
typedef uint16_t Halves __attribute__((vector_size(kLanes * 2)));

template <class To, class From>
inline To same_bits(From x) {
  static_assert(sizeof(To) == sizeof(From));
  To y;
  std::memcpy(&y, &x, sizeof(To));
  return y;
}

template <class Values>
inline Values read(const void* from) {
  Values x;
  std::memcpy(&x, from, sizeof(x));
  return x;
}

template <class Values>
inline void write(void* into, Values x) {
  std::memcpy(into, &x, sizeof(x));
}

#if PARAM == 1
typedef uint64_t Patterns __attribute__((vector_size(kLanes * 8)));
#else
typedef Words Patterns;
#endif

inline Reals magnitude(Reals x) {
  constexpr int sign = 8 * sizeof(real) - 1;
  return same_bits<Reals>(same_bits<Patterns>(x) & ~(Patterns{} + 1 << sign));
}
inline Reals most(Reals x, Reals y) { return x > y ? x : y; }
inline Words most(Words x, Words y) { return x > y ? x : y; }
inline Words least(Words x, Words y) { return x < y ? x : y; }

#if defined(__AVX512F__)
#if PARAM == 1
inline Reals root(Reals x) { return (Reals)_mm512_sqrt_pd((__m512d)x); }
#else
inline Reals root(Reals x) { return (Reals)_mm512_sqrt_ps((__m512)x); }
#endif
#elif defined(__AVX__)
#if PARAM == 1
inline Reals root(Reals x) { return (Reals)_mm256_sqrt_pd((__m256d)x); }
#else
inline Reals root(Reals x) { return (Reals)_mm256_sqrt_ps((__m256)x); }
#endif
#else
inline Reals root(Reals x) {
  for (int i = 0; i < kLanes; ++i) x[i] = std::sqrt(x[i]);
  return x;
}
#endif

// The upper halves of words, as they lie in memory.
#if defined(__AVX512BW__) && PARAM != 1
inline Words read_upper(const void* from) {
  return (Words)_mm512_cvtepu16_epi32(read<__m256i>(from)) << 16;
}

inline void write_upper(void* into, Words x) {
  const __m512i odd = (__m512i)(Words{
      0x00030001, 0x00070005, 0x000B0009, 0x000F000D, 0x00130011, 0x00170015, 0x001B0019, 0x001F001D});
  write(into, _mm512_castsi512_si256(_mm512_permutexvar_epi16(odd, (__m512i)x)));
}
#elif defined(__AVX2__) && !defined(__AVX512F__) && PARAM != 1
inline Words read_upper(const void* from) {
  return (Words)_mm256_cvtepu16_epi32(read<__m128i>(from)) << 16;
}

inline void write_upper(void* into, Words x) {
  const __m256i halves = (__m256i)(x >> 16), packed = _mm256_packus_epi32(halves, halves);
  write(into, _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08)));
}
#else
inline Words read_upper(const void* from) {
  return __builtin_convertvector(read<Halves>(from), Words) << 16;
}

inline void write_upper(void* into, Words x) {
  write(into, __builtin_convertvector(x >> 16, Halves));
}
#endif

}  // namespace
