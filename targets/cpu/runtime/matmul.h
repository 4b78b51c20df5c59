// Everything that multiplies rows of x by a packed weight, however its numbers are stored: linear layers and groups
// of experts.
//
// A weight is panels of nr of its rows, padded past the last. The generated function of height h computes h rows of
// x against consecutive panels. This file decides who computes what: a segment is some rows that share a weight, a
// task some panels of some segments, cut so that tasks cost the same and a weight is read once, in order, by one
// thread.
//
// What a Store knows about x and the weights:
//   kOperands                            inputs that the weights take
//   Store(const Row&)
//   bool weights(Call&, int at, int64_t panels)   takes those from input `at` on; false after fail
//   bool rows(Call&, const Tensor& x)    takes the rows of x; false after fail
//   bool gather(Call&, const int64_t* order, int64_t share, int64_t rows, int64_t* xat)
//     says where row order[r] / share is for each r; false after fail
//   int64_t step() const                 from one row of x to the next, in the units of xat
//   int64_t panel_bytes() const
//   bool ready(Call&, int64_t rows, int64_t longest)   prepares for taller tiles than mr, if there are such and a
//     segment is long enough; false after fail
//   int64_t together() const    panels of a task that is given all rows: they find x in the second cache
//   bool fits(int64_t rows, const int64_t* xat) const, bool alike(int64_t panel) const
//     whether those rows of x, and that panel, may be computed so: one panel at a time by up to kMaxRows rows
//   void ask(int64_t panel) const        prefetches the beginning of a panel
//   void tile(int64_t rows, const int64_t* xat, int64_t panel, float* y, const int64_t* yat, const float* extra,
//             int64_t panels) const
//     y[yat[i] + p*width + j] = finish(sum over k of x[xat[i] + k] * w[panel + p, k, j]) for rows i, panels p
#pragma once

#include <cstring>

#include "checks.h"

namespace moec {

enum MatmulDim { K, N, Experts, Share, Base };  // linear kinds end at N, grouped_swiglu at Share
enum MatmulKnob { Nr, Mr, Group, Grain };       // panel width, tallest function, rows of a segment, cost of a task
enum class Finish { Store, Add, Swiglu, Accumulate };

constexpr int kMaxRows = 48, kMaxWidth = 128;  // of a tile
// Reading a weight costs as much as this many rows of arithmetic, about.
constexpr int64_t kStream = 8;
constexpr int64_t kMaxTasks = 512;

struct Segment {
  int64_t weight, first, rows;
  int64_t start;  // cost of a panel of all segments before
};

template <class Store>
struct Matmul {
  const Row& row;
  Finish finish;
  int64_t k, nr, mr, width, columns, panels;
  Store store;
  const float* extra = nullptr;
  float* y = nullptr;
  int64_t *xat = nullptr, *yat = nullptr;  // of every row
  Segment* segments = nullptr;
  int64_t count = 0;

  Matmul(const Row& row, Finish finish)
      : row(row), finish(finish), k(row.dims[K]), nr(row.knobs[Nr]), mr(row.knobs[Mr]),
        width(finish == Finish::Swiglu ? nr / 2 : nr),
        columns(finish == Finish::Swiglu ? row.dims[N] / 2 : row.dims[N]), panels((columns + width - 1) / width),
        store(row) {}

  int64_t cost() const { return count ? segments[count - 1].start + segments[count - 1].rows + kStream : 0; }
  uint64_t bytes() const { return count * panels * store.panel_bytes(); }

  void block(const Segment& s, int64_t first, int64_t rows, int64_t panel, int64_t many) const {
    const int64_t at = s.weight * panels + panel;
    int64_t whole = columns / width - panel;
    if (whole > many) whole = many;
    const float* more = finish == Finish::Accumulate ? extra + first : extra + panel * width;
    if (whole > 0) store.tile(rows, xat + first, at, y + panel * width, yat + first, more, whole);
    if (whole < many) edge(at + whole, first, rows);
  }

  // The last panel where it is wider than what is left of y: computed aside.
  void edge(int64_t panel, int64_t first, int64_t rows) const {
    alignas(64) float sums[kMaxRows * kMaxWidth], before[kMaxRows * kMaxWidth];
    int64_t at[kMaxRows] = {};
    const int64_t column = (panels - 1) * width;
    const size_t size = (columns - column) * sizeof(float);
    const float* more = finish == Finish::Accumulate ? extra + first : before;
    for (int64_t i = 0; i < rows; ++i) {
      at[i] = i * width;
      if (finish == Finish::Add) memcpy(before + at[i], extra + yat[first + i] + column, size);
      if (finish == Finish::Accumulate) memset(sums + at[i], 0, width * sizeof(float));
    }
    store.tile(rows, xat + first, panel, sums, at, more, 1);
    for (int64_t i = 0; i < rows; ++i) {
      float* to = y + yat[first + i] + column;
      if (finish != Finish::Accumulate) memcpy(to, sums + at[i], size);
      else for (int64_t j = 0; j < columns - column; ++j) to[j] += sums[at[i] + j];
    }
  }

  // Panels first..last-1 of a segment. Few rows: one pass over all panels; many: a panel stays in cache for all rows.
  void compute(const Segment& s, int64_t first, int64_t last) const {
    const bool fits = s.rows > mr && store.fits(s.rows, xat + s.first);
    const int64_t step = s.rows <= mr ? last - first : 1;
    for (int64_t panel = first; panel < last; panel += step) {
      const int64_t height = fits && store.alike(s.weight * panels + panel) ? kMaxRows : mr;
      const int64_t blocks = (s.rows + height - 1) / height;
      for (int64_t b = 0; b < blocks; ++b) {
        const int64_t from = s.rows * b / blocks, to = s.rows * (b + 1) / blocks;
        block(s, s.first + from, to - from, panel, step);
      }
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

  // Every row of x by the one weight there is, into the same row of y.
  void all_rows(int64_t rows) {
    for (int64_t r = 0; r < rows; ++r) xat[r] = r * store.step(), yat[r] = r * columns;
    add_segments(0, 0, rows);
  }

  bool allocate(Call& call, int64_t rows, int64_t weights) {
    xat = call.scratch<int64_t>(2 * rows);
    segments = call.scratch<Segment>(weights + rows / row.knobs[Group] + 1);
    if (!xat || !segments) return false;
    yat = xat + rows;
    return true;
  }

  bool ready(Call& call, int64_t rows) {
    int64_t longest = 0;
    for (int64_t i = 0; i < count; ++i) longest = longest > segments[i].rows ? longest : segments[i].rows;
    return store.ready(call, rows, longest);
  }

  // Beyond four, a number that two and four threads divide: of nine tasks the last kept one thread waiting.
  size_t tasks(int64_t most) const {
    int64_t wanted = cost() * panels * k * nr / (row.knobs[Grain] * 1024);
    if (wanted > 4) wanted = wanted / 4 * 4;
    most = most < kMaxTasks ? most : kMaxTasks;
    return size_t(wanted < 1 ? 1 : wanted < most ? wanted : most);
  }

  void run(Call& call) {
    call.count(bytes());
    const int64_t total = cost() * panels, shares = int64_t(tasks(count * panels));
    call.parallel(shares, [&](size_t task) {
      const int64_t t = int64_t(task);
      compute_share(total / shares * t + total % shares * t / shares,
                    total / shares * (t + 1) + total % shares * (t + 1) / shares);
    });
  }
};

inline bool check_last(Call& call, int input, int64_t expected) {
  const Tensor& t = call.in(input);
  if (t.rank && t.dim(-1) == expected) return true;
  call.fail("input %d has %lld columns; %lld were compiled in", input, t.rank ? (long long)t.dim(-1) : 0LL,
            (long long)expected);
  return false;
}

template <class Store, Finish finish>
void linear(Call& call) {
  constexpr int residual = 1 + Store::kOperands;
  Matmul<Store> m(call.row, finish);
  const Tensor& x = call.in(0);
  if (!check_last(call, 0, m.k) || !m.store.weights(call, 1, m.panels)) return;
  const int64_t rows = x.rows();
  if (finish == Finish::Add && !holds(call, residual, rows * m.columns)) return;
  int64_t shape[kMaxRank];
  memcpy(shape, x.shape, x.rank * sizeof(int64_t));
  shape[x.rank - 1] = m.columns;
  m.y = static_cast<float*>(call.out(0, shape, x.rank));
  if (!m.y || !m.allocate(call, rows, 1) || !m.store.rows(call, x)) return;
  m.extra = finish == Finish::Add ? call.in(residual).as<float>() : m.y;
  m.all_rows(rows);
  if (m.ready(call, rows)) m.run(call);
}

// Rows of every expert, as segments. `order` says which slot (token * share + choice) each row is.
template <class Store>
bool route(Call& call, Matmul<Store>& m, int64_t slots) {
  const int64_t experts = call.row.dims[Experts];
  const Tensor &order = call.in(1), &ends = call.in(2);
  const int64_t rows = order.size();
  if (!holds(call, 2, experts) || !m.store.weights(call, 3, experts * m.panels)) return false;
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

template <class Store>
void grouped_swiglu(Call& call) {
  Matmul<Store> m(call.row, Finish::Swiglu);
  const int64_t share = call.row.dims[Share], rows = call.in(1).size();
  if (!check_last(call, 0, m.k)) return;
  m.y = call.out<float>(0, {rows, m.columns});
  if (!m.y || !route(call, m, call.in(0).rows() * share) || !m.store.rows(call, call.in(0))) return;
  if (!m.store.gather(call, call.in(1).as<int64_t>(), share, rows, m.xat)) return;
  m.extra = m.y;
  for (int64_t r = 0; r < rows; ++r) m.yat[r] = r * m.columns;
  if (m.ready(call, rows)) m.run(call);
}

// Split by columns of the output, so that no two threads add to the same one and sums keep their order.
template <class Store>
void grouped_combine(Call& call) {
  constexpr int mix = 3 + Store::kOperands, old = mix + 1;
  Matmul<Store> m(call.row, Finish::Accumulate);
  const int64_t share = call.row.dims[Share], rows = call.in(1).size(), n = m.columns;
  const Tensor& weights = call.in(mix);
  if (!check_last(call, 0, m.k) || !holds(call, 0, rows * m.k) || !check_last(call, mix, share)) return;
  const int64_t tokens = weights.rows();
  const bool added = call.row.dims[Base] != 0;  // to what has the result's shape
  const float* base = added ? call.in(old).as<float>() : nullptr;
  if (added && (!holds(call, old, tokens * n) || !check_last(call, old, n))) return;
  m.y = added ? static_cast<float*>(call.out(0, call.in(old).shape, call.in(old).rank))
              : call.out<float>(0, {tokens, n});
  float* scale = m.y ? call.scratch<float>(rows) : nullptr;
  if (!scale || !route(call, m, tokens * share) || !m.store.rows(call, call.in(0)) || !m.ready(call, rows)) return;
  m.extra = scale;
  const int64_t* order = call.in(1).as<int64_t>();
  for (int64_t r = 0; r < rows; ++r) {
    m.xat[r] = r * m.store.step();
    m.yat[r] = order[r] / share * n;
    scale[r] = weights.as<float>()[order[r]];
  }
  call.count(m.bytes());
  const int64_t shares = int64_t(m.tasks((m.panels + m.store.together() - 1) / m.store.together()));
  call.parallel(shares, [&](size_t task) {
    const int64_t first = m.panels * int64_t(task) / shares, last = m.panels * (int64_t(task) + 1) / shares;
    const int64_t from = first * m.width, to = last * m.width < n ? last * m.width : n;
    for (int64_t t = 0; t < tokens; ++t) {
      if (base) memcpy(m.y + t * n + from, base + t * n + from, (to - from) * sizeof(float));
      else memset(m.y + t * n + from, 0, (to - from) * sizeof(float));
    }
    // What is read next is asked for before an expert's last panel: at 16 tokens that is 50 experts for each panel.
    for (int64_t i = 0; i < m.count; ++i) {
      const bool more = i + 1 < m.count;
      m.compute(m.segments[i], first, last - 1);
      if (more || last < m.panels) m.store.ask(m.segments[more ? i + 1 : 0].weight * m.panels + (more ? first : last));
      m.compute(m.segments[i], last - 1, last);
    }
  });
}

}  // namespace moec
