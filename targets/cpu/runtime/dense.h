// Weights stored as floats: [panels, k, nr], a panel's rows interleaved by k. x is read as it is.
#pragma once

#include "matmul.h"

namespace moec {

template <int bytes>
struct Dense {
  // functions[h - 1]: as Store::tile in matmul.h, for h rows.
  using Tile = void (*)(const float* x, const int64_t* xat, const void* w, float* y, const int64_t* yat,
                        const float* extra, int32_t panels);

  static constexpr int kOperands = 1;
  const Row& row;
  const float* x = nullptr;
  const char* w = nullptr;

  explicit Dense(const Row& row) : row(row) {}

  int64_t panel_size() const { return row.dims[K] * row.knobs[Nr]; }
  int64_t panel_bytes() const { return panel_size() * bytes; }
  int64_t step() const { return row.dims[K]; }

  bool weights(Call& call, int at, int64_t panels) {
    w = call.in(at).as<char>();
    return holds(call, at, panels * panel_size());
  }

  bool rows(Call&, const Tensor& given) {
    x = given.as<float>();
    return true;
  }

  bool gather(Call&, const int64_t* order, int64_t share, int64_t rows, int64_t* xat) const {
    for (int64_t r = 0; r < rows; ++r) xat[r] = order[r] / share * step();
    return true;
  }

  bool ready(Call&, int64_t, int64_t) const { return true; }
  int64_t together() const { return 1; }
  bool fits(int64_t, const int64_t*) const { return false; }
  bool alike(int64_t) const { return false; }

  void ask(int64_t) const {}

  void tile(int64_t rows, const int64_t* xat, int64_t panel, float* y, const int64_t* yat, const float* extra,
            int64_t panels) const {
    reinterpret_cast<Tile>(row.functions[rows - 1])(x, xat, w + panel * panel_bytes(), y, yat, extra, int32_t(panels));
  }
};

using Full = Dense<4>;

// The same with functions for many rows, if functions[mr] is there: a panel is read by strips, which stay in the first
// cache for all rows while the next one is on its way into the second. On a Zen 3 2048x1408 took 0.78, 0.91 and 0.97
// of the time of tiles one after another at 8, 64 and 512 rows.
template <int bytes>
struct Strips : Dense<bytes> {
  // functions[mr + h - 1]: as matmul.strip in Python
  using Strip = void (*)(const float* x, const int64_t* xat, const void* w, float* y, const int64_t* yat,
                         const float* extra, float* sums, int32_t top, int32_t steps, int32_t ask, int32_t pace,
                         int32_t first, int32_t last);
  static constexpr int64_t kBytes = 24 << 10;       // of a strip at most, about
  static constexpr int64_t kPace = 2 * 64 / bytes;  // from one ask to the next where a function asks for all of a strip
  using Dense<bytes>::Dense, Dense<bytes>::row, Dense<bytes>::x, Dense<bytes>::w, Dense<bytes>::panel_bytes;

  bool fits(int64_t, const int64_t*) const { return row.functions[row.knobs[Mr]]; }
  bool alike(int64_t) const { return true; }

  void tile(int64_t rows, const int64_t* xat, int64_t panel, float* y, const int64_t* yat, const float* extra,
            int64_t panels) const {
    const int64_t k = row.dims[K], nr = row.knobs[Nr], mr = row.knobs[Mr];
    if (rows <= mr) return Dense<bytes>::tile(rows, xat, panel, y, yat, extra, panels);
    const int64_t strips = (panel_bytes() + kBytes - 1) / kBytes, groups = (rows + mr - 1) / mr;
    const int64_t pace = (kPace + groups - 1) / groups;
    alignas(64) float sums[kMaxRows * kMaxWidth];
    for (int64_t strip = 0; strip < strips; ++strip) {
      const bool last = strip + 1 == strips;
      const int64_t from = k * strip / strips / 4 * 4, to = last ? k : k * (strip + 1) / strips / 4 * 4;
      const int64_t size = (to - from) * nr;  // what follows is the next strip, or the next panel's first
      for (int64_t group = 0; group < groups; ++group) {
        const int64_t top = rows * group / groups, height = rows * (group + 1) / groups - top;
        const int64_t ask = size + size * group / groups;
        reinterpret_cast<Strip>(row.functions[mr + height - 1])(
            x + from, xat + top, w + panel * panel_bytes() + from * nr * bytes, y, yat + top, extra,
            sums + top * nr, int32_t(top), int32_t(to - from), int32_t(ask), int32_t(pace), strip == 0, last);
      }
    }
  }
};

}  // namespace moec
