// Products with weights in codes: what they take and give. Behind the codes [.., n, k] of a weight stand its scales,
// so many for n rows of k; x comes in bf16 and is rounded by the kernel itself.
#pragma once

#include <cstring>

#include "sizes.h"

namespace moec {

template <int64_t (*scales)(int64_t n, int64_t k)>
struct Coded {
  enum Dim { K, N, EXPERTS, SHARE, BASE };

  // --- linear: x [.., k], w, scales -> [.., n]; linear_add: and a residual [.., n]; linear_swiglu: [.., n/2] --------

  static void product(Call& call, int64_t width, bool added) {
    const int64_t k = call.row.dims[K], n = call.row.dims[N], m = call.in(0).rows();
    if (!has_width(call, 0, k) || !holds(call, 1, n * k) || !holds(call, 2, scales(n, k))) return;
    if (added && !holds(call, 3, m * width)) return;
    const Tensor& x = call.in(0);
    int64_t shape[kMaxRank];
    memcpy(shape, x.shape, size_t(x.rank) * sizeof *shape);
    shape[x.rank - 1] = width;
    void* y = call.out(0, shape, x.rank);
    if (m) call.count(uint64_t(n * k));
    run(call, {m}, m, {y});
  }

  static void linear(Call& call) { product(call, call.row.dims[N], false); }
  static void linear_add(Call& call) { product(call, call.row.dims[N], true); }
  static void linear_swiglu(Call& call) { product(call, call.row.dims[N] / 2, false); }

  // --- grouped_swiglu: x [.., k], order [m*share], ends [experts], w, scales -> [m*share, n/2] ----------------------

  // Counts the weights that so many rows may need: the host does not see which experts they chose.
  static bool grouped(Call& call, int64_t rows) {
    const int64_t *dims = call.row.dims, experts = dims[EXPERTS], n = dims[N], k = dims[K];
    if (!has_width(call, 0, k) || !holds(call, 1, rows) || !holds(call, 2, experts)) return false;
    if (!holds(call, 3, experts * n * k) || !holds(call, 4, experts * scales(n, k))) return false;
    call.count(uint64_t((experts < rows ? experts : rows) * n * k));
    return true;
  }

  static void grouped_swiglu(Call& call) {
    const int64_t m = call.in(0).rows(), rows = m * call.row.dims[SHARE];
    if (!grouped(call, rows)) return;
    void* y = call.out(0, {rows, call.row.dims[N] / 2});
    run(call, {m}, m, {y});
  }

  // --- grouped_combine: x [m*share, k], order, ends, w, scales, weights [m, share], base [.., n] -> [.., n] ---------

  static void grouped_combine(Call& call) {
    const int64_t *dims = call.row.dims, n = dims[N], rows = call.in(0).rows(), m = rows / dims[SHARE];
    if (m * dims[SHARE] != rows)
      return call.fail("input 0 has %lld rows, which are no %lld for each token", (long long)rows,
                       (long long)dims[SHARE]);
    if (!grouped(call, rows) || !holds(call, 5, rows) || (dims[BASE] && !holds(call, 6, m * n))) return;
    void* y = dims[BASE] ? call.out(0, call.in(6).shape, call.in(6).rank) : call.out(0, {m, n});
    run(call, {m}, m, {y});
  }
};

}  // namespace moec
