// Everything that multiplies rows of x by a packed weight: linear layers and groups of experts.
//
// A weight is [panels, k, nr]: panel p holds nr of its rows, interleaved by k, zero past the last. The generated
// function of height h computes h rows of x against consecutive panels. This file decides who computes what: a
// segment is some rows that share a weight, a task some panels of some segments, cut so that tasks cost the same and
// a weight is read once, in order, by one thread.
#include <cstring>

#include "checks.h"

namespace moec {
namespace {

enum Dim { K, N, Experts, Share, Base };     // linear kinds end at N, grouped_swiglu at Share
enum Knob { Nr, Mr, Group, Grain };          // panel width, tallest function, rows of a segment, cost of a task
enum class Finish { Store, Add, Swiglu, Accumulate };

// functions[h - 1]: y[yat[i] + p*width + j] = finish(sum over k of x[xat[i] + k] * w[p, k, j]) for h rows i.
using Tile = void (*)(const float* x, const int64_t* xat, const float* w, float* y, const int64_t* yat,
                      const float* extra, int32_t panels);

constexpr int kMaxRows = 16, kMaxWidth = 128;  // of a tile
// Reading a weight costs as much as this many rows of arithmetic, about.
constexpr int64_t kStream = 8;
constexpr int64_t kMaxTasks = 512;

struct Segment {
  int64_t weight, first, rows;
  int64_t start;  // cost of a panel of all segments before
};

struct Matmul {
  const Row& row;
  Finish finish;
  int64_t k, nr, mr, width, columns, panels;
  const float *x, *w, *extra;
  float* y;
  int64_t *xat, *yat;  // of every row
  Segment* segments = nullptr;
  int64_t count = 0;

  Matmul(const Row& row, Finish finish)
      : row(row), finish(finish), k(row.dims[K]), nr(row.knobs[Nr]), mr(row.knobs[Mr]),
        width(finish == Finish::Swiglu ? nr / 2 : nr),
        columns(finish == Finish::Swiglu ? row.dims[N] / 2 : row.dims[N]), panels((columns + width - 1) / width) {}

  int64_t weight_size() const { return panels * k * nr; }
  int64_t cost() const { return count ? segments[count - 1].start + segments[count - 1].rows + kStream : 0; }

  void block(const Segment& s, int64_t first, int64_t rows, int64_t panel, int64_t many) const {
    const float* weight = w + s.weight * weight_size() + panel * k * nr;
    auto tile = reinterpret_cast<Tile>(row.functions[rows - 1]);
    int64_t whole = columns / width - panel;
    if (whole > many) whole = many;
    const float* more = finish == Finish::Accumulate ? extra + first : extra + panel * width;
    if (whole > 0) tile(x, xat + first, weight, y + panel * width, yat + first, more, int32_t(whole));
    if (whole < many) edge(tile, weight + whole * k * nr, first, rows);
  }

  // The last panel where it is wider than what is left of y: computed aside.
  void edge(Tile tile, const float* weight, int64_t first, int64_t rows) const {
    alignas(64) float sums[kMaxRows * kMaxWidth], before[kMaxRows * kMaxWidth];
    int64_t at[kMaxRows] = {};
    const int64_t column = (panels - 1) * width;
    const size_t bytes = (columns - column) * sizeof(float);
    const float* more = finish == Finish::Accumulate ? extra + first : before;
    for (int64_t i = 0; i < rows; ++i) {
      at[i] = i * width;
      if (finish == Finish::Add) memcpy(before + at[i], extra + yat[first + i] + column, bytes);
      if (finish == Finish::Accumulate) memset(sums + at[i], 0, width * sizeof(float));
    }
    tile(x, xat + first, weight, sums, at, more, 1);
    for (int64_t i = 0; i < rows; ++i) {
      float* to = y + yat[first + i] + column;
      if (finish != Finish::Accumulate) memcpy(to, sums + at[i], bytes);
      else for (int64_t j = 0; j < columns - column; ++j) to[j] += sums[at[i] + j];
    }
  }

  // Panels first..last-1 of a segment. Few rows: one pass over all panels; many: a panel stays in cache for all rows.
  void compute(const Segment& s, int64_t first, int64_t last) const {
    const int64_t blocks = (s.rows + mr - 1) / mr, step = blocks == 1 ? last - first : 1;
    for (int64_t panel = first; panel < last; panel += step)
      for (int64_t b = 0; b < blocks; ++b) {
        const int64_t from = s.rows * b / blocks, to = s.rows * (b + 1) / blocks;
        block(s, s.first + from, to - from, panel, step);
      }
  }

  // Panels of all segments, laid end to end by cost, from low to high.
  void compute_share(int64_t low, int64_t high) const {
    for (int64_t i = 0; i < count; ++i) {
      const Segment& s = segments[i];
      const int64_t each = s.rows + kStream, start = s.start * panels;
      auto panel = [&](int64_t cost) {
        const int64_t p = cost <= start ? 0 : (cost - start + each - 1) / each;
        return p < panels ? p : panels;
      };
      const int64_t first = panel(low), last = panel(high);
      if (first < last) compute(s, first, last);
    }
  }

  void add_segments(int64_t weight, int64_t first, int64_t rows) {
    const int64_t pieces = (rows + row.knobs[Group] - 1) / row.knobs[Group];
    for (int64_t piece = 0; piece < pieces; ++piece) {
      const int64_t from = rows * piece / pieces, to = rows * (piece + 1) / pieces;
      segments[count] = {weight, first + from, to - from, cost()};
      ++count;
    }
  }

  bool allocate(Call& call, int64_t rows, int64_t weights) {
    xat = call.scratch<int64_t>(2 * rows);
    segments = call.scratch<Segment>(weights + rows / row.knobs[Group] + 1);
    if (!xat || !segments) return false;
    yat = xat + rows;
    return true;
  }

  size_t tasks(int64_t most) const {
    const int64_t wanted = cost() * panels * k * nr / (row.knobs[Grain] * 1024);
    most = most < kMaxTasks ? most : kMaxTasks;
    return size_t(wanted < 1 ? 1 : wanted < most ? wanted : most);
  }

  void run(Call& call) {
    call.count(count * weight_size() * sizeof(float));
    const int64_t total = cost() * panels, shares = int64_t(tasks(count * panels));
    call.parallel(shares, [&](size_t task) {
      const int64_t t = int64_t(task);
      compute_share(total / shares * t + total % shares * t / shares,
                    total / shares * (t + 1) + total % shares * (t + 1) / shares);
    });
  }
};

bool check_last(Call& call, int input, int64_t expected) {
  const Tensor& t = call.in(input);
  if (t.rank && t.dim(-1) == expected) return true;
  call.fail("input %d has %lld columns; %lld were compiled in", input, t.rank ? (long long)t.dim(-1) : 0LL,
            (long long)expected);
  return false;
}

template <Finish finish>
void linear(Call& call) {
  Matmul m(call.row, finish);
  const Tensor& x = call.in(0);
  if (!check_last(call, 0, m.k) || !holds(call, 1, m.weight_size())) return;
  const int64_t rows = x.rows();
  if (finish == Finish::Add && !holds(call, 2, rows * m.columns)) return;
  int64_t shape[kMaxRank];
  memcpy(shape, x.shape, x.rank * sizeof(int64_t));
  shape[x.rank - 1] = m.columns;
  m.y = static_cast<float*>(call.out(0, shape, x.rank));
  if (!m.y || !m.allocate(call, rows, 1)) return;
  m.x = x.as<float>();
  m.w = call.in(1).as<float>();
  m.extra = finish == Finish::Add ? call.in(2).as<float>() : m.x;
  for (int64_t r = 0; r < rows; ++r) m.xat[r] = r * m.k, m.yat[r] = r * m.columns;
  m.add_segments(0, 0, rows);
  m.run(call);
}

// Rows of every expert, as segments. `order` says which slot (token * share + choice) each row is.
bool route(Call& call, Matmul& m, int64_t slots) {
  const int64_t experts = call.row.dims[Experts];
  const Tensor &order = call.in(1), &ends = call.in(2);
  const int64_t rows = order.size();
  if (!holds(call, 2, experts) || !holds(call, 3, experts * m.weight_size())) return false;
  if (!m.allocate(call, rows, experts)) return false;
  for (int64_t r = 0; r < rows; ++r)
    if (order.as<int64_t>()[r] < 0 || order.as<int64_t>()[r] >= slots)
      return call.fail("order[%lld] is %lld; there are %lld slots", (long long)r,
                       (long long)order.as<int64_t>()[r], (long long)slots), false;
  int64_t first = 0;
  for (int64_t e = 0; e < experts; ++e) {
    const int64_t end = ends.as<int64_t>()[e];
    if (end < first || end > rows || (e == experts - 1 && end != rows))
      return call.fail("ends[%lld] is %lld after %lld; ends must rise to the %lld rows there are", (long long)e,
                       (long long)end, (long long)first, (long long)rows), false;
    m.add_segments(e, first, end - first);
    first = end;
  }
  return true;
}

void grouped_swiglu(Call& call) {
  Matmul m(call.row, Finish::Swiglu);
  const int64_t share = call.row.dims[Share], rows = call.in(1).size();
  if (!check_last(call, 0, m.k)) return;
  m.y = call.out<float>(0, {rows, m.columns});
  if (!m.y || !route(call, m, call.in(0).rows() * share)) return;
  m.x = m.extra = call.in(0).as<float>();
  m.w = call.in(3).as<float>();
  const int64_t* order = call.in(1).as<int64_t>();
  for (int64_t r = 0; r < rows; ++r) m.xat[r] = order[r] / share * m.k, m.yat[r] = r * m.columns;
  m.run(call);
}

// Split by columns of the output, so that no two threads add to the same one and sums keep their order.
void grouped_combine(Call& call) {
  Matmul m(call.row, Finish::Accumulate);
  const int64_t share = call.row.dims[Share], rows = call.in(1).size(), n = m.columns;
  const Tensor& weights = call.in(4);
  if (!check_last(call, 0, m.k) || !holds(call, 0, rows * m.k) || !check_last(call, 4, share)) return;
  const int64_t tokens = weights.rows();
  const float* base = call.row.dims[Base] ? call.in(5).as<float>() : nullptr;
  if (call.row.dims[Base] && !holds(call, 5, tokens * n)) return;
  m.y = call.out<float>(0, {tokens, n});
  float* scale = m.y ? call.scratch<float>(rows) : nullptr;
  if (!scale || !route(call, m, tokens * share)) return;
  m.x = call.in(0).as<float>();
  m.w = call.in(3).as<float>();
  m.extra = scale;
  const int64_t* order = call.in(1).as<int64_t>();
  for (int64_t r = 0; r < rows; ++r) {
    m.xat[r] = r * m.k;
    m.yat[r] = order[r] / share * n;
    scale[r] = weights.as<float>()[order[r]];
  }
  call.count(m.count * m.weight_size() * sizeof(float));
  const int64_t shares = int64_t(m.tasks(m.panels));
  call.parallel(shares, [&](size_t task) {
    const int64_t first = m.panels * int64_t(task) / shares, last = m.panels * (int64_t(task) + 1) / shares;
    const int64_t from = first * m.width, to = last * m.width < n ? last * m.width : n;
    for (int64_t t = 0; t < tokens; ++t) {
      if (base) memcpy(m.y + t * n + from, base + t * n + from, (to - from) * sizeof(float));
      else memset(m.y + t * n + from, 0, (to - from) * sizeof(float));
    }
    for (int64_t i = 0; i < m.count; ++i) m.compute(m.segments[i], first, last);
  });
}

constexpr Type kFloats[] = {F32, F32, F32};
constexpr Type kGrouped[] = {F32, I64, I64, F32, F32, F32};

}  // namespace

namespace kind {

extern const Kind linear, linear_add, linear_swiglu, grouped_swiglu, grouped_combine;
const Kind linear{"linear", 2, 2, 1, kFloats, kFloats, moec::linear<Finish::Store>};
const Kind linear_add{"linear_add", 3, 3, 1, kFloats, kFloats, moec::linear<Finish::Add>};
const Kind linear_swiglu{"linear_swiglu", 2, 2, 1, kFloats, kFloats, moec::linear<Finish::Swiglu>};
const Kind grouped_swiglu{"grouped_swiglu", 4, 4, 1, kGrouped, kFloats, moec::grouped_swiglu};
const Kind grouped_combine{"grouped_combine", 5, 6, 1, kGrouped, kFloats, moec::grouped_combine};

}  // namespace kind
}  // namespace moec
