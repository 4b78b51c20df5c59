// Which experts each token takes, and all choices in the order of experts. Deterministic: ties go to the lower index.
#include <algorithm>
#include <cmath>

#include "checks.h"

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

// --- top_k_gate: logits [M, experts], bias [experts] -> ids i64 [M, k], weights f32 [M, k] -------------------

enum GateDim { EXPERTS, K, GROUPS, KEEP, SIGMOID, TOP2, NORMALISE, BIAS };
enum GateReal { EPS, SCALE };

struct Gate {
  int64_t experts, k, groups, keep, group;
  bool top2, normalise;
  float eps, scale;

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
    Best best{values, ids, k};
    for (int64_t g = 0; g < groups; ++g)
      for (int64_t e = g * group; kept[g] && e < (g + 1) * group; ++e) best.offer(scores[e], e);
    float total = 0;
    for (int64_t j = 0; j < k; ++j) total += weights[j] = probabilities[ids[j]];
    const float factor = normalise ? scale / (total + eps) : scale;
    for (int64_t j = 0; j < k; ++j) weights[j] *= factor;
  }
};

void top_k_gate(Call& call) {
  if (!has_rank(call, 0, 2)) return;
  const int64_t* dims = call.row.dims;
  const double* reals = call.row.reals;
  const int64_t rows = call.in(0).shape[0], experts = dims[EXPERTS], k = dims[K];
  const Gate gate{experts, k, dims[GROUPS], dims[KEEP], experts / dims[GROUPS], dims[TOP2] != 0, dims[NORMALISE] != 0,
                  float(reals[EPS]), float(reals[SCALE])};
  if (!holds(call, 0, rows * experts) || (dims[BIAS] && !holds(call, 1, experts))) return;
  auto ids = call.out<int64_t>(0, {rows, k});
  auto weights = call.out<float>(1, {rows, k});
  if (!ids || !weights) return;
  const float* bias = dims[BIAS] ? call.in(1).as<float>() : nullptr;
  const int64_t chunk = std::max<int64_t>(1, kTaskElements / experts), tasks = (rows + chunk - 1) / chunk;
  auto probabilities = call.scratch<float>(rows * experts);
  auto scores = call.scratch<float>(tasks * 2 * experts);
  auto places = call.scratch<int64_t>(tasks * experts);
  auto kept = call.scratch<bool>(tasks * experts);
  if (!probabilities || !scores || !places || !kept) return;
  call.parallel(tasks, [&](size_t task) {
    const int64_t first = int64_t(task) * chunk, last = std::min(rows, first + chunk);
    reinterpret_cast<Scores>(call.row.functions[0])(call.in(0).as<float>() + first * experts,
                                                    probabilities + first * experts, int32_t(last - first));
    float* sums = scores + task * 2 * experts;
    for (int64_t row = first; row < last; ++row) {
      const float* p = probabilities + row * experts;
      for (int64_t e = 0; bias && e < experts; ++e) sums[e] = p[e] + bias[e];
      gate.choose(bias ? sums : p, p, sums + experts, places + task * experts, kept + task * experts, ids + row * k,
                  weights + row * k);
    }
  });
}

// --- permute: ids [M, k] -> order i64 [M*k], ends i64 [experts] ----------------------------------------------

enum PermuteDim { PERMUTE_EXPERTS };

// A stable counting sort. Pieces count on their own, so each knows where its slots go.
void permute(Call& call) {
  const Tensor& ids = call.in(0);
  const int64_t slots = ids.size(), experts = call.row.dims[PERMUTE_EXPERTS];
  auto order = call.out<int64_t>(0, {slots});
  auto ends = call.out<int64_t>(1, {experts});
  if (!ends) return;
  std::fill(ends, ends + experts, 0);
  if (!order) return;
  const int64_t chunk = std::max(kTaskElements, 4 * experts), pieces = (slots + chunk - 1) / chunk;
  auto next = call.scratch<int64_t>(pieces * experts);
  if (!next) return;
  const int64_t* expert = ids.as<int64_t>();
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

constexpr Type gate_inputs[] = {F32, F32};
constexpr Type gate_outputs[] = {I64, F32};
constexpr Type ids_and_more[] = {I64, I64};

}  // namespace

namespace kind {
extern const Kind top_k_gate = {"top_k_gate", 1, 2, 2, gate_inputs, gate_outputs, moec::top_k_gate};
extern const Kind permute = {"permute", 1, 1, 2, ids_and_more, ids_and_more, moec::permute};
}  // namespace kind
}  // namespace moec
