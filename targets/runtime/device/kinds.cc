// What each kind of kernel takes and gives, and the sizes of its calls. Numbers between kernels are bf16, or what
// their row has instead (Row::half).
#include <cstring>

#include "sizes.h"

namespace moec {
namespace {

void clear(Call& call, void* data, int64_t bytes) {
  if (call.failed() || !data) return;
  if (device::Result result =
          device::driver.fill(data, 0, size_t(bytes), static_cast<device::Stream>(call.host().stream())))
    call.fail("a result cannot be cleared: %s", device::words(result));
}

// Output i in the shape of an input but for its last axis.
void* like(Call& call, int i, const Tensor& x, int64_t last) {
  int64_t shape[kMaxRank];
  memcpy(shape, x.shape, size_t(x.rank) * sizeof *shape);
  shape[x.rank - 1] = last;
  return call.out(i, shape, x.rank);
}

// --- embedding: ids [..], table [v, n] -> [.., n] ------------------------------------------------------------

enum EmbeddingDim { V, EMBEDDING_N };

void embedding(Call& call) {
  const Tensor& ids = call.in(0);
  const int64_t n = call.row.dims[EMBEDDING_N];
  if (!holds(call, 1, call.row.dims[V] * n)) return;
  if (ids.rank == kMaxRank) return call.fail("input 0 has rank %d; there is no room for another axis", ids.rank);
  int64_t shape[kMaxRank];
  memcpy(shape, ids.shape, size_t(ids.rank) * sizeof *shape);
  shape[ids.rank] = n;
  void* y = call.out(0, shape, ids.rank + 1);
  run(call, {ids.size()}, ids.size(), {y});
}

// --- angles: mask [B, Z], ids [B, T], frequencies [f] -> cos [B, T, f], sin, span [B, 2] ---------------------

void angles(Call& call) {
  if (!has_rank(call, 0, 2) || !has_rank(call, 1, 2)) return;
  const int64_t f = call.row.dims[0], batch = call.in(1).shape[0], tokens = call.in(1).shape[1];
  const int64_t seen = call.in(0).shape[1], m = batch * tokens;
  if (!holds(call, 0, batch * seen) || !holds(call, 2, f)) return;
  if (tokens > seen)
    return call.fail("the attention mask covers %lld tokens, fewer than the %lld new ones", (long long)seen,
                     (long long)tokens);
  void* cos = call.out(0, {batch, tokens, f});
  void* sin = call.out(1, {batch, tokens, f});
  void* span = call.out(2, {batch, 2});
  if (!m) clear(call, span, batch * 2 * 8);
  run(call, {m, batch, tokens, seen}, m, {cos, sin, span});
}

// --- rms_norm: x [.., width], w [n] -> [.., n] ---------------------------------------------------------------

enum NormDim { NORM_N, NORM_WIDTH };

void rms_norm(Call& call) {
  const int64_t n = call.row.dims[NORM_N];
  if (!has_width(call, 0, call.row.dims[NORM_WIDTH]) || !holds(call, 1, n)) return;
  const int64_t m = call.in(0).rows();
  void* y = like(call, 0, call.in(0), n);
  run(call, {m}, m, {y});
}

// --- linear: x [.., k], w [n, k] -> [.., n]; linear_add: and a residual [.., n]; linear_swiglu: [.., n/2] -----

enum MatmulDim { K, N, EXPERTS, SHARE, BASE };

void product(Call& call, int64_t width, bool added) {
  const int64_t k = call.row.dims[K];
  if (!has_width(call, 0, k) || !holds(call, 1, call.row.dims[N] * k)) return;
  const int64_t m = call.in(0).rows();
  if (added && !holds(call, 2, m * width)) return;
  void* y = like(call, 0, call.in(0), width);
  if (m) call.count(uint64_t(call.row.dims[N] * k * 2));
  run(call, {m}, m, {y});
}

void linear(Call& call) { product(call, call.row.dims[N], false); }
void linear_add(Call& call) { product(call, call.row.dims[N], true); }
void linear_swiglu(Call& call) { product(call, call.row.dims[N] / 2, false); }

// --- what tokens choose: order [m*slots], ends [experts], weights [m, slots] ---------------------------------

enum RouteDim { ROUTE_K, ROUTE_N, CHOSEN, ROUTE_GATE };
enum GateDim { GROUPS, KEEP, SIGMOID, TOP2, NORMALISE, BIAS, SHARED };

void route(Call& call) {
  const int64_t *dims = call.row.dims, *gate = dims + ROUTE_GATE, k = dims[ROUTE_K], n = dims[ROUTE_N];
  const int64_t slots = dims[CHOSEN] + gate[SHARED], experts = n + gate[SHARED];
  if (!has_width(call, 0, k) || !holds(call, 1, n * k) || (gate[BIAS] && !holds(call, 2, n))) return;
  const int64_t m = call.in(0).rows();
  void* order = call.out(0, {m * slots});
  void* ends = call.out(1, {experts});
  void* weights = call.out(2, {m, slots});
  if (!m) clear(call, ends, experts * 8);
  if (m) call.count(uint64_t(n * k * 2));
  run(call, {m}, m, {order, ends, weights});
}

enum TopKDim { TOP_EXPERTS, TOP_K, TOP_GATE };

void top_k_gate(Call& call) {
  const int64_t *dims = call.row.dims, *gate = dims + TOP_GATE, experts = dims[TOP_EXPERTS];
  const int64_t slots = dims[TOP_K] + gate[SHARED];
  if (!has_width(call, 0, experts) || (gate[BIAS] && !holds(call, 1, experts))) return;
  const int64_t m = call.in(0).rows();
  void* ids = call.out(0, {m, slots});
  void* weights = call.out(1, {m, slots});
  run(call, {m}, m, {ids, weights});
}

enum PermuteDim { PERMUTE_EXPERTS, PERMUTE_K };

void permute(Call& call) {
  const int64_t experts = call.row.dims[PERMUTE_EXPERTS], k = call.row.dims[PERMUTE_K];
  if (!has_rank(call, 0, 2) || !has_width(call, 0, k)) return;
  const int64_t m = call.in(0).rows();
  void* order = call.out(0, {m * k});
  void* ends = call.out(1, {experts});
  if (!m) clear(call, ends, experts * 8);
  run(call, {m}, m, {order, ends});
}

// --- grouped_swiglu: x [.., k], order [m*share], ends [experts], w [experts, n, k] -> [m*share, n/2] ----------

// The weights that so many rows may need: the host does not see which experts they chose.
void count_experts(Call& call, int64_t rows) {
  const int64_t experts = call.row.dims[EXPERTS] < rows ? call.row.dims[EXPERTS] : rows;
  call.count(uint64_t(experts * call.row.dims[N] * call.row.dims[K] * 2));
}

bool grouped(Call& call, int64_t rows) {
  const int64_t *dims = call.row.dims, experts = dims[EXPERTS];
  return has_width(call, 0, dims[K]) && holds(call, 1, rows) && holds(call, 2, experts) &&
         holds(call, 3, experts * dims[N] * dims[K]);
}

void grouped_swiglu(Call& call) {
  const int64_t m = call.in(0).rows(), rows = m * call.row.dims[SHARE];
  if (!grouped(call, rows)) return;
  void* y = call.out(0, {rows, call.row.dims[N] / 2});
  count_experts(call, rows);
  run(call, {m}, m, {y});
}

// --- grouped_combine: x [m*share, k], order, ends, w, weights [m, share], base [.., n] -> [.., n] -------------

void grouped_combine(Call& call) {
  const int64_t *dims = call.row.dims, n = dims[N], rows = call.in(0).rows(), m = rows / dims[SHARE];
  if (m * dims[SHARE] != rows)
    return call.fail("input 0 has %lld rows, which are no %lld for each token", (long long)rows,
                     (long long)dims[SHARE]);
  if (!grouped(call, rows) || !holds(call, 4, rows) || (dims[BASE] && !holds(call, 5, m * n))) return;
  void* y = dims[BASE] ? call.out(0, call.in(5).shape, call.in(5).rank) : call.out(0, {m, n});
  count_experts(call, rows);
  run(call, {m}, m, {y});
}

// --- choose_token: logits [.., v], temperature [m], top_k [m], top_p [m], uniform [m] -> token [m], its log [m] ---

void choose_token(Call& call) {
  if (!has_width(call, 0, call.row.dims[0])) return;
  const int64_t m = call.in(0).rows();
  for (int i = 1; i < 5; ++i)
    if (!holds(call, i, m)) return;
  void* token = call.out(0, {m});
  void* likely = call.out(1, {m});
  run(call, {m}, m, {token, likely});
}

// --- last_norm: x [B, T, width], w [n] -> [B, 1, n], of the last token of each sequence --------------------------

void last_norm(Call& call) {
  const int64_t n = call.row.dims[NORM_N];
  if (!has_rank(call, 0, 3) || !has_width(call, 0, call.row.dims[NORM_WIDTH]) || !holds(call, 1, n)) return;
  const int64_t m = call.in(0).shape[0], tokens = call.in(0).shape[1];
  if (!tokens) return call.fail("input 0 has no tokens, so no last one");
  void* y = call.out(0, {m, 1, n});
  run(call, {m, m, tokens}, m, {y});
}

constexpr Type halves[] = {BF16, BF16, BF16};
constexpr Type floats[] = {F32};
constexpr Type integers[] = {I64, I64};
constexpr Type embedding_inputs[] = {I64, BF16};
constexpr Type angles_inputs[] = {I64, I64, F32};
constexpr Type angles_outputs[] = {F32, F32, I64};
constexpr Type norm_inputs[] = {BF16, F32};
constexpr Type route_inputs[] = {BF16, BF16, F32};
constexpr Type route_outputs[] = {I64, I64, F32};
constexpr Type gate_inputs[] = {F32, F32};
constexpr Type gate_outputs[] = {I64, F32};
constexpr Type choose_inputs[] = {F32, F32, I64, F32, F32};
constexpr Type choose_outputs[] = {I64, F32};
constexpr Type grouped_inputs[] = {BF16, I64, I64, BF16, F32, BF16};

}  // namespace

namespace kind {
extern const Kind embedding = {"embedding", 2, 2, 1, embedding_inputs, halves, moec::embedding};
extern const Kind angles = {"angles", 3, 3, 3, angles_inputs, angles_outputs, moec::angles};
extern const Kind rms_norm = {"rms_norm", 2, 2, 1, norm_inputs, halves, moec::rms_norm};
extern const Kind last_norm = {"last_norm", 2, 2, 1, norm_inputs, halves, moec::last_norm};
extern const Kind choose_token = {"choose_token", 5, 5, 2, choose_inputs, choose_outputs, moec::choose_token};
extern const Kind linear = {"linear", 2, 2, 1, halves, halves, moec::linear};
extern const Kind linear_add = {"linear_add", 3, 3, 1, halves, halves, moec::linear_add};
extern const Kind linear_swiglu = {"linear_swiglu", 2, 2, 1, halves, halves, moec::linear_swiglu};
extern const Kind linear_wide = {"linear_wide", 2, 2, 1, halves, floats, moec::linear};
extern const Kind linear_add_wide = {"linear_add_wide", 3, 3, 1, halves, floats, moec::linear_add};
extern const Kind linear_swiglu_wide = {"linear_swiglu_wide", 2, 2, 1, halves, floats, moec::linear_swiglu};
extern const Kind route = {"route", 2, 3, 3, route_inputs, route_outputs, moec::route};
extern const Kind top_k_gate = {"top_k_gate", 1, 2, 2, gate_inputs, gate_outputs, moec::top_k_gate};
extern const Kind permute = {"permute", 1, 1, 2, integers, integers, moec::permute};
extern const Kind grouped_swiglu = {"grouped_swiglu", 4, 4, 1, grouped_inputs, halves, moec::grouped_swiglu};
extern const Kind grouped_combine = {"grouped_combine", 5, 6, 1, grouped_inputs, halves, moec::grouped_combine};
}  // namespace kind
}  // namespace moec
