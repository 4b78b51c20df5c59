// Products of e4m3 with e4m3: codes are bytes, and each 128 rows of 128 columns, at the edges fewer, have an f32 scale.
#include "coded.h"

namespace moec {
namespace {

int64_t tiles(int64_t n, int64_t k) { return (n + 127) / 128 * ((k + 127) / 128); }

using Each = Coded<tiles>;

constexpr Type linears[] = {BF16, U8, F32, BF16};
constexpr Type groups[] = {BF16, I64, I64, U8, F32, F32, BF16};
constexpr Type halves[] = {BF16};
constexpr Type floats[] = {F32};

}  // namespace

namespace kind {
extern const Kind linear_fp8 = {"linear_fp8", 3, 3, 1, linears, halves, Each::linear};
extern const Kind linear_add_fp8 = {"linear_add_fp8", 4, 4, 1, linears, halves, Each::linear_add};
extern const Kind linear_swiglu_fp8 = {"linear_swiglu_fp8", 3, 3, 1, linears, halves, Each::linear_swiglu};
extern const Kind linear_fp8_wide = {"linear_fp8_wide", 3, 3, 1, linears, floats, Each::linear};
extern const Kind linear_add_fp8_wide = {"linear_add_fp8_wide", 4, 4, 1, linears, floats, Each::linear_add};
extern const Kind linear_swiglu_fp8_wide = {"linear_swiglu_fp8_wide", 3, 3, 1, linears, floats, Each::linear_swiglu};
extern const Kind grouped_swiglu_fp8 = {"grouped_swiglu_fp8", 5, 5, 1, groups, halves, Each::grouped_swiglu};
extern const Kind grouped_combine_fp8 = {"grouped_combine_fp8", 6, 7, 1, groups, halves, Each::grouped_combine};
}  // namespace kind
}  // namespace moec
