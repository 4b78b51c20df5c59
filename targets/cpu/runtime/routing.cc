// Which experts each token takes, and all choices in the order of experts. Deterministic: ties go to the lower index.
#include <algorithm>
#include <cmath>

#include "dense.h"

namespace moec {
namespace {

using Scores = void (*)(const float* logits, float* scores, int32_t rows);

constexpr int64_t kTaskElements = 1 << 13;  // less is not worth another thread

// The most[] largest so far, largest first, the earlier first among equals.
struct Best {
  float* values;
  int64_t* places;
  int64_t size, filled = 0;

  void offer(float value, int64_t place) {
    int64_t at = filled;
    if (filled < size) ++filled;
    else if (value > values[size - 1]) at = size - 1;
    else return;
    for (; at > 0 && value > values[at - 1]; --at) values[at] = values[at - 1], places[at] = places[at - 1];
    values[at] = value, places[at] = place;
  }
};

// --- top_k_gate: logits [.., experts], bias [experts] -> ids i64 [M, slots], weights f32 [M, slots] ----------

// As top_k_gate has them; route has the router's columns in front of its own.
enum GateDim { EXPERTS, CHOSEN, GROUPS, KEEP, SIGMOID, TOP2, NORMALISE, BIAS, SHARED };
enum GateReal { EPS, SCALE };

// A token's slots are the experts it chose, then those that all share, which have weight 1.
struct Gate {
  int64_t experts, chosen, groups, keep, group, shared, slots;
  bool top2, normalise, biased;
  float eps, scale;

  Gate(const int64_t* dims, const double* reals)
      : experts(dims[EXPERTS]), chosen(dims[CHOSEN]), groups(dims[GROUPS]), keep(dims[KEEP]), group(experts / groups),
        shared(dims[SHARED]), slots(chosen + shared), top2(dims[TOP2] != 0), normalise(dims[NORMALISE] != 0),
        biased(dims[BIAS] != 0), eps(float(reals[EPS])), scale(float(reals[SCALE])) {}

  // The sum of the two highest scores of a group, or the highest.
  float strength(const float* scores) const {
    float first = scores[0], second = -INFINITY;
    for (int64_t e = 1; e < group; ++e) {
      second = std::max(second, std::min(first, scores[e]));
      first = std::max(first, scores[e]);
    }
    return top2 && group > 1 ? first + second : first;
  }

  // scores select, probabilities weigh; values, places and kept are room for `experts` each.
  void choose(const float* scores, const float* probabilities, float* values, int64_t* places, bool* kept,
              int64_t* ids, float* weights) const {
    Best strongest{values, places, keep};
    for (int64_t g = 0; groups > 1 && g < groups; ++g) strongest.offer(strength(scores + g * group), g);
    std::fill(kept, kept + groups, groups == 1);
    for (int64_t g = 0; g < strongest.filled; ++g) kept[places[g]] = true;
    Best best{values, ids, chosen};
    for (int64_t g = 0; g < groups; ++g)
      for (int64_t e = g * group; kept[g] && e < (g + 1) * group; ++e) best.offer(scores[e], e);
    float total = 0;
    for (int64_t j = 0; j < chosen; ++j) total += weights[j] = probabilities[ids[j]];
    const float factor = normalise ? scale / (total + eps) : scale;
    for (int64_t j = 0; j < chosen; ++j) weights[j] *= factor;
    for (int64_t j = 0; j < shared; ++j) ids[chosen + j] = experts + j, weights[chosen + j] = 1;
  }

  // Every token's slots from its logits. False after call.fail.
  bool choose_all(Call& call, Scores score, const float* logits, const float* bias, int64_t tokens, int64_t* ids,
                  float* weights) const {
    const int64_t chunk = std::max<int64_t>(1, kTaskElements / experts), tasks = (tokens + chunk - 1) / chunk;
    auto probabilities = call.scratch<float>((tokens + 2 * tasks) * experts);  // and what tasks add up and compare
    auto places = call.scratch<int64_t>(tasks * experts);
    auto kept = call.scratch<bool>(tasks * experts);
    if (!probabilities || !places || !kept) return false;
    call.parallel(tasks, [&](size_t task) {
      const int64_t first = int64_t(task) * chunk, last = std::min(tokens, first + chunk);
      score(logits + first * experts, probabilities + first * experts, int32_t(last - first));
      float* sums = probabilities + (tokens + 2 * int64_t(task)) * experts;
      for (int64_t token = first; token < last; ++token) {
        const float* p = probabilities + token * experts;
        for (int64_t e = 0; bias && e < experts; ++e) sums[e] = p[e] + bias[e];
        choose(bias ? sums : p, p, sums + experts, places + task * experts, kept + task * experts,
               ids + token * slots, weights + token * slots);
      }
    });
    return true;
  }
};

void top_k_gate(Call& call) {
  const Gate gate(call.row.dims, call.row.reals);
  if (!check_last(call, 0, gate.experts) || (gate.biased && !holds(call, 1, gate.experts))) return;
  const int64_t tokens = call.in(0).rows();
  auto ids = call.out<int64_t>(0, {tokens, gate.slots});
  auto weights = call.out<float>(1, {tokens, gate.slots});
  if (!ids || !weights) return;
  gate.choose_all(call, reinterpret_cast<Scores>(call.row.functions[0]), call.in(0).as<float>(),
                  gate.biased ? call.in(1).as<float>() : nullptr, tokens, ids, weights);
}

// --- permute: ids [M, k] -> order i64 [M*k], ends i64 [experts] ----------------------------------------------

enum PermuteDim { PERMUTE_EXPERTS };

// A stable counting sort of slots by their experts. Pieces count on their own, so each knows where its slots go.
void sort(Call& call, const int64_t* expert, int64_t slots, int64_t experts, int64_t* order, int64_t* ends) {
  const int64_t chunk = std::max(kTaskElements, 4 * experts), pieces = (slots + chunk - 1) / chunk;
  auto next = call.scratch<int64_t>(pieces * experts);
  if (!next) return;
  bool strange = false;
  call.parallel(pieces, [&](size_t piece) {
    int64_t* count = next + piece * experts;
    std::fill(count, count + experts, 0);
    for (int64_t slot = piece * chunk; slot < std::min(slots, int64_t(piece + 1) * chunk); ++slot)
      if (uint64_t(expert[slot]) < uint64_t(experts)) ++count[expert[slot]];
      else __atomic_store_n(&strange, true, __ATOMIC_RELAXED);
  });
  if (strange) return call.fail("an expert's number is outside 0..%lld", (long long)experts - 1);
  int64_t start = 0;
  for (int64_t e = 0; e < experts; ++e) {
    for (int64_t piece = 0; piece < pieces; ++piece) {
      const int64_t count = next[piece * experts + e];
      next[piece * experts + e] = start;
      start += count;
    }
    ends[e] = start;
  }
  call.parallel(pieces, [&](size_t piece) {
    int64_t* to = next + piece * experts;
    for (int64_t slot = piece * chunk; slot < std::min(slots, int64_t(piece + 1) * chunk); ++slot)
      order[to[expert[slot]]++] = slot;
  });
}

void permute(Call& call) {
  const Tensor& ids = call.in(0);
  const int64_t slots = ids.size(), experts = call.row.dims[PERMUTE_EXPERTS];
  auto order = call.out<int64_t>(0, {slots});
  auto ends = call.out<int64_t>(1, {experts});
  if (!ends) return;
  std::fill(ends, ends + experts, 0);
  if (order) sort(call, ids.as<int64_t>(), slots, experts, order, ends);
}

// --- route: x [.., H], router [experts, H] packed, bias [experts]
//            -> order i64 [M*slots], ends i64 [experts + shared], weights f32 [M, slots] ----------------------

enum RouteInput { X, ROUTER, ROUTER_BIAS };

// The router's tiles are the first functions, one for each height; behind them come the gate's scores.
void route_tokens(Call& call) {
  Matmul<Full> m(call.row, Finish::Store);
  const Gate gate(call.row.dims + N, call.row.reals);
  const Tensor& x = call.in(X);
  if (!check_last(call, X, m.k) || !m.store.weights(call, ROUTER, m.panels)) return;
  if (gate.biased && !holds(call, ROUTER_BIAS, gate.experts)) return;
  const int64_t tokens = x.rows(), slots = tokens * gate.slots, experts = gate.experts + gate.shared;
  auto order = call.out<int64_t>(0, {slots});
  auto ends = call.out<int64_t>(1, {experts});
  auto weights = call.out<float>(2, {tokens, gate.slots});
  if (!ends) return;
  std::fill(ends, ends + experts, 0);
  if (!order || !weights) return;
  auto ids = call.scratch<int64_t>(slots);
  m.y = call.scratch<float>(tokens * gate.experts);
  if (!ids || !m.y || !m.allocate(call, tokens, 1) || !m.store.rows(call, x)) return;
  m.extra = m.y;
  m.all_rows(tokens);
  m.run(call);
  const float* bias = gate.biased ? call.in(ROUTER_BIAS).as<float>() : nullptr;
  const auto score = reinterpret_cast<Scores>(call.row.functions[m.mr]);
  if (gate.choose_all(call, score, m.y, bias, tokens, ids, weights)) sort(call, ids, slots, experts, order, ends);
}

constexpr Type gate_inputs[] = {F32, F32};
constexpr Type gate_outputs[] = {I64, F32};
constexpr Type ids_and_more[] = {I64, I64};
constexpr Type route_inputs[] = {F32, F32, F32};
constexpr Type route_outputs[] = {I64, I64, F32};

}  // namespace

namespace kind {
extern const Kind top_k_gate = {"top_k_gate", 1, 2, 2, gate_inputs, gate_outputs, moec::top_k_gate};
extern const Kind permute = {"permute", 1, 1, 2, ids_and_more, ids_and_more, moec::permute};
extern const Kind route = {"route", 2, 3, 3, route_inputs, route_outputs, moec::route_tokens};
}  // namespace kind
}  // namespace moec
