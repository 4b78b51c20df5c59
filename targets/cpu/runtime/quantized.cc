// Linear layers and experts whose weights are codes of 8 or 4 bits with a float16 scale for every group of 32.
//
// A panel's codes are nr words of four bytes for each step along k, its scales nr numbers for each group; x is
// rounded to records of the same groups first, each row once, however many experts read it; those of one expert then
// lie one behind the other, at equal distances. The generated functions (kernels/quantized.py) know what is in a word
// and in a record.
//
// More rows than the tallest of these tiles has may go to a taller one (kernels/amx.py), which reads x as rows that
// are folded from records. It is exact enough for rows that say they fit, and panels whose scales are alike.
#include "matmul.h"

namespace moec {
namespace {

constexpr int64_t kGroup = 32, kRecord = 10;  // numbers of a group, int32 of a record
constexpr int64_t kRoundTask = 512;           // groups; fewer are not worth another thread
constexpr int64_t kCopyTask = 8 * kRoundTask;
constexpr int64_t kTogether = 4;              // panels: folded rows of all experts are more than the second cache holds
// Tiles of mr rows that a taller one pays for: with AMX one of 12 to 16 rows was slower than two that wait for memory.
constexpr int64_t kManyTiles = 2;
constexpr int64_t kStep = 64, kFolded = 32;   // columns, and int32 that they are in a folded row
constexpr int64_t kEnd = 16, kFits = 2;       // int32 of its end, and which of those says whether it fits

using Tile = void (*)(const int32_t* x, const int64_t* xat, const void* w, const uint16_t* scales, float* y,
                      const int64_t* yat, const float* extra, int32_t panels);
using Round = void (*)(const float* x, int32_t* records, int32_t groups);
using Fold = void (*)(const int32_t* records, int32_t* folded, int32_t rows);
using Compare = void (*)(const uint16_t* scales, int32_t* alike);
using Tall = void (*)(const int32_t* x, const void* w, const uint16_t* scales, float* y, const int64_t* yat,
                      const float* extra, int32_t rows);

template <int bits>
struct Codes {
  static constexpr int kOperands = 2;
  const Row& row;
  const int32_t *records = nullptr, *folded = nullptr;
  const char* codes = nullptr;
  const uint16_t* scales = nullptr;

  explicit Codes(const Row& row) : row(row) {}

  int64_t panel_codes() const { return row.dims[K] * row.knobs[Nr] * bits / 8; }
  int64_t panel_scales() const { return row.dims[K] / kGroup * row.knobs[Nr]; }
  int64_t panel_bytes() const { return panel_codes() + panel_scales() * int64_t(sizeof *scales); }
  int64_t step() const { return row.dims[K] / kGroup * kRecord; }

  bool weights(Call& call, int at, int64_t panels) {
    codes = call.in(at).as<char>();
    scales = call.in(at + 1).as<uint16_t>();
    return holds(call, at, panels * panel_codes()) && holds(call, at + 1, panels * panel_scales());
  }

  // Behind the tiles come functions that round, fold, compare and compute a taller tile, the last three or none.
  template <class F>
  F function(int64_t place) const { return reinterpret_cast<F>(row.functions[row.knobs[Mr] + place]); }
  int64_t folded_size() const { return (row.dims[K] + kStep - 1) / kStep * kFolded + kEnd; }

  bool rows(Call& call, const Tensor& x) {
    const int64_t groups = x.rows() * (row.dims[K] / kGroup), tasks = (groups + kRoundTask - 1) / kRoundTask;
    auto to = call.scratch<int32_t>(groups * kRecord);
    if (!to) return false;
    const auto round = function<Round>(0);
    call.parallel(tasks, [&](size_t task) {
      const int64_t first = groups * int64_t(task) / tasks, last = groups * (int64_t(task) + 1) / tasks;
      round(x.as<float>() + first * kGroup, to + first * kRecord, int32_t(last - first));
    });
    records = to;
    return true;
  }

  bool gather(Call& call, const int64_t* order, int64_t share, int64_t rows, int64_t* xat) {
    const int64_t tasks = (rows * step() / kRecord + kCopyTask - 1) / kCopyTask;
    auto to = call.scratch<int32_t>(rows * step());
    if (!to) return false;
    call.parallel(tasks, [&](size_t task) {
      for (int64_t r = rows * int64_t(task) / tasks; r < rows * (int64_t(task) + 1) / tasks; ++r)
        memcpy(to + r * step(), records + order[r] / share * step(), step() * sizeof *to);
    });
    for (int64_t r = 0; r < rows; ++r) xat[r] = r * step();
    records = to;
    return true;
  }

  bool many(int64_t rows) const { return rows >= kManyTiles * row.knobs[Mr]; }

  bool ready(Call& call, int64_t rows, int64_t longest) {
    if (!many(longest) || !function<Fold>(1)) return true;
    auto to = call.scratch<int32_t>(rows * folded_size());
    if (!to) return false;
    const int64_t tasks = (rows * step() / kRecord + kRoundTask - 1) / kRoundTask;
    call.parallel(tasks, [&](size_t task) {
      const int64_t first = rows * int64_t(task) / tasks, last = rows * (int64_t(task) + 1) / tasks;
      function<Fold>(1)(records + first * step(), to + first * folded_size(), int32_t(last - first));
    });
    folded = to;
    return true;
  }

  int64_t together() const { return folded ? kTogether : 1; }

  bool fits(int64_t rows, const int64_t* xat) const {
    if (!folded || !many(rows)) return false;
    const int32_t* end = folded + xat[0] / step() * folded_size() - kEnd + kFits;
    for (int64_t i = 1; i <= rows; ++i)
      if (!end[i * folded_size()]) return false;
    return true;
  }

  bool alike(int64_t panel) const {
    int32_t all = 0;
    function<Compare>(2)(scales + panel * panel_scales(), &all);
    return all;
  }

  // Four pages of codes, in turns as tiles do (codes.py), and their scales; into the second cache.
  void ask(int64_t panel) const {
    constexpr int64_t kPage = 4096, kBytes = 4 * kPage, kLine = 64;
    const char* from = codes + panel * panel_codes();
    const char* scale = reinterpret_cast<const char*>(scales + panel * panel_scales());
    for (int64_t line = 0; line < kPage; line += kLine)
      for (int64_t page = 0; page < kBytes; page += kPage) __builtin_prefetch(from + page + line, 0, 2);
    for (int64_t line = 0; line < kBytes / bits / 2; line += kLine) __builtin_prefetch(scale + line, 0, 2);
  }

  void tile(int64_t rows, const int64_t* xat, int64_t panel, float* y, const int64_t* yat, const float* extra,
            int64_t panels) const {
    const char* w = codes + panel * panel_codes();
    const uint16_t* s = scales + panel * panel_scales();
    if (rows > row.knobs[Mr])
      return function<Tall>(3)(folded + xat[0] / step() * folded_size(), w, s, y, yat, extra, int32_t(rows));
    reinterpret_cast<Tile>(row.functions[rows - 1])(records, xat, w, s, y, yat, extra, int32_t(panels));
  }
};

constexpr Type kFloats[] = {F32};
constexpr Type kLinear[] = {F32, U8, F16, F32};
constexpr Type kGrouped[] = {F32, I64, I64, U8, F16, F32, F32};

}  // namespace

namespace kind {

extern const Kind linear_int8, linear_add_int8, linear_swiglu_int8, grouped_swiglu_int8, grouped_combine_int8;
const Kind linear_int8{"linear_int8", 3, 3, 1, kLinear, kFloats, moec::linear<Codes<8>, Finish::Store>};
const Kind linear_add_int8{"linear_add_int8", 4, 4, 1, kLinear, kFloats, moec::linear<Codes<8>, Finish::Add>};
const Kind linear_swiglu_int8{"linear_swiglu_int8", 3, 3, 1, kLinear, kFloats,
                              moec::linear<Codes<8>, Finish::Swiglu>};
const Kind grouped_swiglu_int8{"grouped_swiglu_int8", 5, 5, 1, kGrouped, kFloats, moec::grouped_swiglu<Codes<8>>};
const Kind grouped_combine_int8{"grouped_combine_int8", 6, 7, 1, kGrouped, kFloats, moec::grouped_combine<Codes<8>>};

extern const Kind linear_int4, linear_add_int4, linear_swiglu_int4, grouped_swiglu_int4, grouped_combine_int4;
const Kind linear_int4{"linear_int4", 3, 3, 1, kLinear, kFloats, moec::linear<Codes<4>, Finish::Store>};
const Kind linear_add_int4{"linear_add_int4", 4, 4, 1, kLinear, kFloats, moec::linear<Codes<4>, Finish::Add>};
const Kind linear_swiglu_int4{"linear_swiglu_int4", 3, 3, 1, kLinear, kFloats,
                              moec::linear<Codes<4>, Finish::Swiglu>};
const Kind grouped_swiglu_int4{"grouped_swiglu_int4", 5, 5, 1, kGrouped, kFloats, moec::grouped_swiglu<Codes<4>>};
const Kind grouped_combine_int4{"grouped_combine_int4", 6, 7, 1, kGrouped, kFloats, moec::grouped_combine<Codes<4>>};

}  // namespace kind
}  // namespace moec
