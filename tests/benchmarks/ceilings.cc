// What one thread of this machine can do at most: read memory, multiply float32, multiply int8.
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <utility>

namespace {

#if defined(__AVX512F__)
using Floats = __m512;
using Bytes = __m512i;
Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
Floats all(float x) { return _mm512_set1_ps(x); }
Bytes load(const void* p) { return _mm512_load_si512(p); }
Bytes mix(Bytes a, Bytes b) { return _mm512_xor_si512(a, b); }
Bytes all(int8_t x) { return _mm512_set1_epi8(x); }
#else
using Floats = __m256;
using Bytes = __m256i;
Floats fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
Floats all(float x) { return _mm256_set1_ps(x); }
Bytes load(const void* p) { return _mm256_load_si256(static_cast<const Bytes*>(p)); }
Bytes mix(Bytes a, Bytes b) { return _mm256_xor_si256(a, b); }
Bytes all(int8_t x) { return _mm256_set1_epi8(x); }
#endif

// sums += four products u8 x s8 in each of its int32.
#if defined(__AVX512VNNI__)
Bytes dot(Bytes sums, Bytes a, Bytes b) { return _mm512_dpbusd_epi32(sums, a, b); }
#elif defined(__AVX512BW__)
Bytes dot(Bytes sums, Bytes a, Bytes b) {
  return _mm512_add_epi32(sums, _mm512_madd_epi16(_mm512_maddubs_epi16(a, b), _mm512_set1_epi16(1)));
}
#else
Bytes dot(Bytes sums, Bytes a, Bytes b) {
  return _mm256_add_epi32(sums, _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), _mm256_set1_epi16(1)));
}
#endif

constexpr size_t kChains = 12;  // independent sums: enough to hide a latency of 5 cycles twice a cycle
constexpr size_t kLine = 64;

// The compiler may neither move a value's computation past this, nor guess what it is afterwards.
template <class T>
void opaque(T& value) { asm volatile("" : "+x"(value)); }

// Steps of independent sums, `rounds` times; written out by the fold, since a loop would keep them in memory.
template <class T, class F, size_t... i>
void chains(T first, size_t rounds, F step, std::index_sequence<i...>) {
  T sums[] = {((void)i, first)...};
  while (rounds--) ((sums[i] = step(sums[i]), opaque(sums[i])), ...);
}

template <size_t kStreams>
void read_streams(const char* data, size_t bytes, size_t ahead) {
  Bytes sums[kStreams] = {};
  const size_t stream = bytes / kStreams;
  for (size_t i = 0; i < stream; i += 2 * kLine)
    for (size_t s = 0; s < kStreams; ++s) {
      const char* from = data + s * stream + i;
      if (ahead) _mm_prefetch(from + ahead, _MM_HINT_T0), _mm_prefetch(from + ahead + kLine, _MM_HINT_T0);
      for (size_t part = 0; part < 2 * kLine; part += sizeof(Bytes)) sums[s] = mix(sums[s], load(from + part));
    }
  for (Bytes& sum : sums) opaque(sum);
}

}  // namespace

extern "C" {

// Reads `bytes`, a multiple of 8 KiB, from a 64-byte aligned `data`, in four streams or in eight, which the hardware
// follows each for itself; of each, lines are asked for so many bytes early, unless that is 0.
void read_all(const char* data, size_t bytes, size_t streams, size_t ahead) {
  streams == 8 ? read_streams<8>(data, bytes, ahead) : read_streams<4>(data, bytes, ahead);
}

// Float32 operations done: two for each product and sum.
size_t multiply_floats(size_t rounds) {
  Floats a = all(0.999f), b = all(0.001f);
  opaque(a), opaque(b);
  chains(all(1.0f), rounds, [&](Floats sum) { return fma(sum, a, b); }, std::make_index_sequence<kChains>());
  return rounds * kChains * sizeof(Floats) / sizeof(float) * 2;
}

// Whether bytes are multiplied in matrices too, and this thread may.
int has_matrices() {
#if defined(__AMX_INT8__)
  return syscall(SYS_arch_prctl, 0x1023, 18) == 0;  // Linux gives AMX's registers to those who ask
#else
  return 0;
#endif
}

// The same as multiply_bytes, by matrices of 16 x 64 and 64 x 16 where there are such: four independent sums.
size_t multiply_matrices(size_t rounds) {
#if defined(__AMX_INT8__)
  alignas(64) uint8_t config[64] = {1};  // the palette; bytes of a row from byte 16 on, rows from byte 48
  for (int tile = 0; tile < 8; ++tile) config[16 + 2 * tile] = 64, config[48 + tile] = 16;
  asm volatile("ldtilecfg %0" ::"m"(config));
  asm volatile("tilezero %tmm4\n\ttilezero %tmm5");
  for (size_t i = 0; i < rounds; ++i)
    asm volatile("tdpbusd %tmm5, %tmm4, %tmm0\n\ttdpbusd %tmm5, %tmm4, %tmm1\n\t"
                 "tdpbusd %tmm5, %tmm4, %tmm2\n\ttdpbusd %tmm5, %tmm4, %tmm3");
  asm volatile("tilerelease");
  return rounds * 4 * 16 * 16 * 64 * 2;
#else
  return rounds * 0;
#endif
}

// Int8 operations done: two for each product and sum.
size_t multiply_bytes(size_t rounds) {
  Bytes a = all(int8_t{3}), b = all(int8_t{-5});
  auto step = [&](Bytes sum) { return opaque(a), dot(sum, a, b); };  // opaque, or a * b would be computed once
  chains(Bytes{}, rounds, step, std::make_index_sequence<kChains>());
  return rounds * kChains * sizeof(Bytes) * 2;
}
}
