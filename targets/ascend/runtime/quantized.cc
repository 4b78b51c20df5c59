// Products of int8 with int8: codes are i8, and each row has an f16 scale.
#include "coded.h"

namespace moec {
namespace {

int64_t rows(int64_t n, int64_t) { return n; }

using Each = Coded<rows>;

constexpr Type linears[] = {BF16, I8, F16, BF16};
constexpr Type groups[] = {BF16, I64, I64, I8, F16, F32, BF16};
constexpr Type halves[] = {BF16};
constexpr Type floats[] = {F32};

}  // namespace

namespace kind {
extern const Kind linear_int8row = {"linear_int8row", 3, 3, 1, linears, halves, Each::linear};
extern const Kind linear_add_int8row = {"linear_add_int8row", 4, 4, 1, linears, halves, Each::linear_add};
extern const Kind linear_swiglu_int8row = {"linear_swiglu_int8row", 3, 3, 1, linears, halves, Each::linear_swiglu};
extern const Kind linear_int8row_wide = {"linear_int8row_wide", 3, 3, 1, linears, floats, Each::linear};
extern const Kind linear_add_int8row_wide = {"linear_add_int8row_wide", 4, 4, 1, linears, floats, Each::linear_add};
extern const Kind linear_swiglu_int8row_wide = {
    "linear_swiglu_int8row_wide", 3, 3, 1, linears, floats, Each::linear_swiglu};
extern const Kind grouped_swiglu_int8row = {
    "grouped_swiglu_int8row", 5, 5, 1, groups, halves, Each::grouped_swiglu};
extern const Kind grouped_combine_int8row = {
    "grouped_combine_int8row", 6, 7, 1, groups, halves, Each::grouped_combine};
}  // namespace kind
}  // namespace moec
