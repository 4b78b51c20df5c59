// Whether this CPU runs what the library holds. Built for plain x86-64 so that asking never traps.
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>

#include "kernel.h"

namespace moec {

// Given by the generated table: the instruction set compiled for, and what it takes.
extern const char* const isa_name;
extern const char* const isa_features[];
extern const size_t isa_feature_count;

namespace {

enum Register { EAX, EBX, ECX, EDX };
// Register state the system must save: SSE and AVX; also opmask and both halves of ZMM; also the AMX tiles.
constexpr unsigned kAvx = 0x6, kAvx512 = 0xe6, kAmx = 0x60006;

struct Feature {
  const char* name;  // as in /proc/cpuinfo
  unsigned leaf, subleaf;
  Register where;
  int bit;
  unsigned saved;
};

constexpr Feature kFeatures[] = {
    {"fma", 1, 0, ECX, 12, kAvx},          {"movbe", 1, 0, ECX, 22, 0},
    {"f16c", 1, 0, ECX, 29, kAvx},         {"abm", 0x80000001, 0, ECX, 5, 0},
    {"bmi1", 7, 0, EBX, 3, 0},             {"avx2", 7, 0, EBX, 5, kAvx},
    {"bmi2", 7, 0, EBX, 8, 0},             {"avx512f", 7, 0, EBX, 16, kAvx512},
    {"avx512dq", 7, 0, EBX, 17, kAvx512},  {"avx512cd", 7, 0, EBX, 28, kAvx512},
    {"avx512bw", 7, 0, EBX, 30, kAvx512},  {"avx512vl", 7, 0, EBX, 31, kAvx512},
    {"avx512_vnni", 7, 0, ECX, 11, kAvx512}, {"avx512_bf16", 7, 1, EAX, 5, kAvx512},
    {"amx_tile", 7, 0, EDX, 24, kAmx},     {"amx_bf16", 7, 0, EDX, 22, kAmx},
    {"amx_int8", 7, 0, EDX, 25, kAmx},
};

unsigned saved_by_system() {
  unsigned r[4], high;
  if (!__get_cpuid(1, &r[EAX], &r[EBX], &r[ECX], &r[EDX]) || !(r[ECX] >> 27 & 1)) return 0;
  __asm__("xgetbv" : "=a"(r[EAX]), "=d"(high) : "c"(0));
  return r[EAX];
}

// Linux gives the registers of AMX only to processes that asked.
bool granted() {
  constexpr long kAsk = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, the state's number in XCR0
  return syscall(SYS_arch_prctl, kAsk, kTileData) == 0;
}

bool has(const char* name) {
  for (const Feature& f : kFeatures) {
    if (strcmp(f.name, name)) continue;
    unsigned r[4];
    if (!__get_cpuid_count(f.leaf, f.subleaf, &r[EAX], &r[EBX], &r[ECX], &r[EDX])) return false;
    const bool there = (r[f.where] >> f.bit & 1) && (saved_by_system() & f.saved) == f.saved;
    return there && (f.saved != kAmx || granted());
  }
  return false;
}

}  // namespace

bool refuse(char* text, size_t size) {
  for (size_t i = 0; i < isa_feature_count; ++i) {
    if (has(isa_features[i])) continue;
    snprintf(text, size,
             "moec: this library was built for %s but this CPU lacks %s; compile again with --isa naming one that it "
             "runs, or without --isa on this machine",
             isa_name, isa_features[i]);
    return true;
  }
  return false;
}

}  // namespace moec
