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

  bool ready(Call&, int64_t) const { return true; }
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
using Half = Dense<2>;

}  // namespace moec
