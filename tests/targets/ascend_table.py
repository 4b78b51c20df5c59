"""A table of kernels as targets/ascend/table.py writes it, and those kernels in C++ in MLIR's place.

Numbers in bf16 are 16-bit integers here. Rows: embed, add (more than 4 rows by way of scratch memory, on cube
cores with a workspace and locks), write, wide.
"""

from __future__ import annotations

from .stand_in_objects import Function

KERNELS = r"""
#include <cstdint>
#include <cstring>
#define MEMORY(type, name) void*, type* name, int64_t, int64_t, int64_t
#define HIDDEN void*, void*, int64_t, int64_t, int64_t, void*, void*, int64_t, int64_t, int64_t
#define GRID int32_t blocks, int32_t, int32_t, int32_t block, int32_t, int32_t
using U16 = uint16_t;
extern "C" {

// y[m, n] = rows of table[.., n] by ids; a block takes every so-manieth row.
void gather(HIDDEN, MEMORY(int64_t, ids), MEMORY(U16, table), MEMORY(U16, y), int32_t m, int32_t n, GRID) {
  for (int32_t i = block; i < m; i += blocks) memcpy(y + i * n, table + ids[i] * n, size_t(n) * 2);
}

// y = a + b of so many 16-bit integers
void sum(HIDDEN, MEMORY(U16, a), MEMORY(U16, b), MEMORY(U16, y), int32_t many, GRID) {
  for (int32_t i = block; i < many; i += blocks) y[i] = U16(a[i] + b[i]);
}

// y = x times a real, so many 16-bit integers
void scale(HIDDEN, MEMORY(U16, x), MEMORY(U16, y), float by, int32_t many, GRID) {
  for (int32_t i = block; i < many; i += blocks) y[i] = U16(float(x[i]) * by);
}

// y in f32 = x, so many 16-bit integers
void widen(HIDDEN, MEMORY(U16, x), MEMORY(float, y), int32_t many, GRID) {
  for (int32_t i = block; i < many; i += blocks) y[i] = x[i];
}

// rows [b, T, d], span [b, 2], cache [b, L, d]: a block for each row of the grid b, T.
void append(HIDDEN, MEMORY(U16, rows), MEMORY(int64_t, span), MEMORY(U16, cache), int32_t tokens,
            int32_t room, int32_t d, int32_t, int32_t, int32_t, int32_t b, int32_t t, int32_t) {
  const int64_t end = span[b * 2 + 1];
  memcpy(cache + (b * room + end - tokens + t) * d, rows + (b * tokens + t) * d, size_t(d) * 2);
}

}
"""

FUNCTIONS = (
    Function("gather", "pppii"),
    Function("sum", "pppi", mixed=True, workspace=96, locks=3),
    Function("scale", "ppfi"),
    Function("widen", "ppi"),
    Function("append", "pppiii"),
)

TABLE = r"""
#include "launch.h"
namespace moec {
extern const char* const soc_name;
const char* const soc_name = "Ascend910B3";
namespace kind { extern const Kind embedding, linear_add, append, linear_wide; }
using M = void*;
using N = int64_t;
#define MEMREF M, M, N, N, N
#define NONE nullptr, nullptr, 0, 0, 1
#define OF(i) a[i].memory, a[i].memory, 0, 0, 1
#define GRID int32_t, int32_t, int32_t, int32_t, int32_t, int32_t
#define AT at[0], at[1], at[2], at[3], at[4], at[5]
extern "C" {
void gather(MEMREF, MEMREF, MEMREF, MEMREF, MEMREF, int32_t, int32_t, GRID);
void sum(MEMREF, MEMREF, MEMREF, MEMREF, MEMREF, int32_t, GRID);
void scale(MEMREF, MEMREF, MEMREF, MEMREF, float, int32_t, GRID);
void widen(MEMREF, MEMREF, MEMREF, MEMREF, int32_t, GRID);
void append(MEMREF, MEMREF, MEMREF, MEMREF, MEMREF, int32_t, int32_t, int32_t, GRID);
}
using A = const Argument;
static void block_gather(A* a, const int32_t* at) {
  gather(NONE, NONE, OF(0), OF(1), OF(2), a[3].integer, a[4].integer, AT);
}
static void block_sum(A* a, const int32_t* at) { sum(NONE, NONE, OF(0), OF(1), OF(2), a[3].integer, AT); }
static void block_scale(A* a, const int32_t* at) {
  scale(NONE, NONE, OF(0), OF(1), a[2].real, a[3].integer, AT);
}
static void block_widen(A* a, const int32_t* at) { widen(NONE, NONE, OF(0), OF(1), a[2].integer, AT); }
static void block_append(A* a, const int32_t* at) {
  append(NONE, NONE, OF(0), OF(1), OF(2), a[3].integer, a[4].integer, a[5].integer, AT);
}
static Function function_gather{"gather", false, 0, 0, false, block_gather};
static Function function_sum{"sum", true, 96, 3, false, block_sum};
static Function function_scale{"scale", false, 0, 0, true, block_scale};
static Function function_widen{"widen", false, 0, 0, false, block_widen};
static Function function_append{"append", false, 0, 0, false, block_append};
static const int64_t none[] = {0};
static const double nothing_real[] = {0}, one[] = {1.0};
static int64_t nothing(const Run&, int) { return 0; }

static void embed0(Run& run) {
  const int64_t m = run.size(kM);
  const Argument arguments[] = {run.x(0), run.x(1), run.y(0), int32_t(m), int32_t(8)};
  run.launch(function_gather, {40, 1, 1}, arguments);
}
static Step* const embed_steps[] = {embed0};
static const Program embed{embed_steps, 1, nothing, 0};
static void* const embed_functions[] = {(void*)&embed};
static const int64_t embed_dims[] = {4, 8};
static const Variant embed_variants[] = {{INT64_MAX, none, embed_functions}};

static void add0(Run& run) {
  const int64_t m = run.size(kM);
  const Argument arguments[] = {run.x(0), run.x(2), run.y(0), int32_t(m * 8)};
  run.launch(function_sum, {m, 1, 1}, arguments);
}
static void add1_0(Run& run) {
  const int64_t m = run.size(kM);
  const Argument arguments[] = {run.x(0), run.s(0), float(run.real(0)), int32_t(m * 8)};
  run.launch(function_scale, {2, 1, 1}, arguments);
}
static void add1_1(Run& run) {
  const int64_t m = run.size(kM);
  const Argument arguments[] = {run.s(0), run.x(2), run.y(0), int32_t(m * 8)};
  run.launch(function_sum, {20, 1, 1}, arguments);
}
static int64_t add1_scratch(const Run& run, int i) { return i == 0 ? run.size(kM) * 16 : 0; }
static Step* const add0_steps[] = {add0};
static Step* const add1_steps[] = {add1_0, add1_1};
static const Program add0_program{add0_steps, 1, nothing, 0}, add1_program{add1_steps, 2, add1_scratch, 1};
static void* const add0_functions[] = {(void*)&add0_program};
static void* const add1_functions[] = {(void*)&add1_program};
static const int64_t add_dims[] = {8, 8, 0}, wide_dims[] = {8, 8, 1};
static const Variant add_variants[] = {{4, none, add0_functions}, {INT64_MAX, none, add1_functions}};

static void write0(Run& run) {
  const int64_t batch = run.size(kBatch), tokens = run.size(kTokens), room = run.size(kRoom);
  const Argument arguments[] = {run.x(1), run.x(3), run.y(0), int32_t(tokens), int32_t(room), int32_t(8)};
  run.launch(function_append, {batch, tokens, 1}, arguments);
}
static Step* const write_steps[] = {write0};
static const Program write{write_steps, 1, nothing, 0};
static void* const write_functions[] = {(void*)&write};
static const int64_t write_dims[] = {1, 8};
static const Variant write_variants[] = {{INT64_MAX, none, write_functions}};

static void wide0(Run& run) {
  const int64_t m = run.size(kM);
  const Argument arguments[] = {run.x(0), run.y(0), int32_t(m * 8)};
  run.launch(function_widen, {m, 1, 1}, arguments);
}
static Step* const wide_steps[] = {wide0};
static const Program wide{wide_steps, 1, nothing, 0};
static void* const wide_functions[] = {(void*)&wide};
static const Variant wide_variants[] = {{INT64_MAX, none, wide_functions}};

const Row rows[] = {
    {"embed", &kind::embedding, embed_dims, nothing_real, 1, embed_variants},
    {"add", &kind::linear_add, add_dims, one, 1, add_variants},
    {"write", &kind::append, write_dims, nothing_real, 1, write_variants},
    {"wide", &kind::linear_wide, wide_dims, nothing_real, 1, wide_variants},
};
const size_t row_count = 4;
}  // namespace moec
"""
