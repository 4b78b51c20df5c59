// Products of int8 with int8: what they take and give. A weight is codes i8 [.., n, k] and behind them scales f16
// [.., n, 1]; x comes in bf16 and is rounded by the kernel itself.
#include <cstring>

#include "sizes.h"

namespace moec {
namespace {

// --- linear: x [.., k], w, scales -> [.., n]; linear_add: and a residual [.., n]; linear_swiglu: [.., n/2] ----------

enum Dim { K, N, EXPERTS, SHARE, BASE };

void product(Call& call, int64_t width, bool added) {
  const int64_t k = call.row.dims[K], n = call.row.dims[N], m = call.in(0).rows();
  if (!has_width(call, 0, k) || !holds(call, 1, n * k) || !holds(call, 2, n)) return;
  if (added && !holds(call, 3, m * width)) return;
  const Tensor& x = call.in(0);
  int64_t shape[kMaxRank];
  memcpy(shape, x.shape, size_t(x.rank) * sizeof *shape);
  shape[x.rank - 1] = width;
  void* y = call.out(0, shape, x.rank);
  if (m) call.count(uint64_t(n * k));
  run(call, {m}, m, {y});
}

void linear(Call& call) { product(call, call.row.dims[N], false); }
void linear_add(Call& call) { product(call, call.row.dims[N], true); }
void linear_swiglu(Call& call) { product(call, call.row.dims[N] / 2, false); }

// --- grouped_swiglu: x [.., k], order [m*share], ends [experts], w, scales -> [m*share, n/2] ------------------------

// Counts the weights that so many rows may need: the host does not see which experts they chose.
bool grouped(Call& call, int64_t rows) {
  const int64_t *dims = call.row.dims, experts = dims[EXPERTS], n = dims[N], k = dims[K];
  if (!has_width(call, 0, k) || !holds(call, 1, rows) || !holds(call, 2, experts)) return false;
  if (!holds(call, 3, experts * n * k) || !holds(call, 4, experts * n)) return false;
  call.count(uint64_t((experts < rows ? experts : rows) * n * k));
  return true;
}

void grouped_swiglu(Call& call) {
  const int64_t m = call.in(0).rows(), rows = m * call.row.dims[SHARE];
  if (!grouped(call, rows)) return;
  void* y = call.out(0, {rows, call.row.dims[N] / 2});
  run(call, {m}, m, {y});
}

// --- grouped_combine: x [m*share, k], order, ends, w, scales, weights [m, share], base [.., n] -> [.., n] -----------

void grouped_combine(Call& call) {
  const int64_t *dims = call.row.dims, n = dims[N], rows = call.in(0).rows(), m = rows / dims[SHARE];
  if (m * dims[SHARE] != rows)
    return call.fail("input 0 has %lld rows, which are no %lld for each token", (long long)rows,
                     (long long)dims[SHARE]);
  if (!grouped(call, rows) || !holds(call, 5, rows) || (dims[BASE] && !holds(call, 6, m * n))) return;
  void* y = dims[BASE] ? call.out(0, call.in(6).shape, call.in(6).rank) : call.out(0, {m, n});
  run(call, {m}, m, {y});
}

constexpr Type linears[] = {BF16, I8, F16, BF16};
constexpr Type groups[] = {BF16, I64, I64, I8, F16, F32, BF16};
constexpr Type halves[] = {BF16};
constexpr Type floats[] = {F32};

}  // namespace

namespace kind {
extern const Kind linear_int8row = {"linear_int8row", 3, 3, 1, linears, halves, moec::linear};
extern const Kind linear_add_int8row = {"linear_add_int8row", 4, 4, 1, linears, halves, moec::linear_add};
extern const Kind linear_swiglu_int8row = {"linear_swiglu_int8row", 3, 3, 1, linears, halves, moec::linear_swiglu};
extern const Kind linear_int8row_wide = {"linear_int8row_wide", 3, 3, 1, linears, floats, moec::linear};
extern const Kind linear_add_int8row_wide = {"linear_add_int8row_wide", 4, 4, 1, linears, floats, moec::linear_add};
extern const Kind linear_swiglu_int8row_wide = {
    "linear_swiglu_int8row_wide", 3, 3, 1, linears, floats, moec::linear_swiglu};
extern const Kind grouped_swiglu_int8row = {"grouped_swiglu_int8row", 5, 5, 1, groups, halves, moec::grouped_swiglu};
extern const Kind grouped_combine_int8row = {
    "grouped_combine_int8row", 6, 7, 1, groups, halves, moec::grouped_combine};
}  // namespace kind
}  // namespace moec
