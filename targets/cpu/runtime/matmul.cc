// Linear layers and experts whose weights are stored as floats.
#include "dense.h"

namespace moec {
namespace {

using Floats = Strips<4>;
using Halves = Strips<2>;

constexpr Type kFloats[] = {F32, F32, F32}, kHalves[] = {F32, BF16, F32};
constexpr Type kGrouped[] = {F32, I64, I64, F32, F32, F32}, kGroupedHalves[] = {F32, I64, I64, BF16, F32, F32};

}  // namespace

namespace kind {

extern const Kind linear, linear_add, linear_swiglu, grouped_swiglu, grouped_combine;
const Kind linear{"linear", 2, 2, 1, kFloats, kFloats, moec::linear<Floats, Finish::Store>};
const Kind linear_add{"linear_add", 3, 3, 1, kFloats, kFloats, moec::linear<Floats, Finish::Add>};
const Kind linear_swiglu{"linear_swiglu", 2, 2, 1, kFloats, kFloats, moec::linear<Floats, Finish::Swiglu>};
const Kind grouped_swiglu{"grouped_swiglu", 4, 4, 1, kGrouped, kFloats, moec::grouped_swiglu<Floats>};
const Kind grouped_combine{"grouped_combine", 5, 6, 1, kGrouped, kFloats, moec::grouped_combine<Floats>};

extern const Kind linear_bf16, linear_add_bf16, linear_swiglu_bf16, grouped_swiglu_bf16, grouped_combine_bf16;
const Kind linear_bf16{"linear_bf16", 2, 2, 1, kHalves, kFloats, moec::linear<Halves, Finish::Store>};
const Kind linear_add_bf16{"linear_add_bf16", 3, 3, 1, kHalves, kFloats, moec::linear<Halves, Finish::Add>};
const Kind linear_swiglu_bf16{"linear_swiglu_bf16", 2, 2, 1, kHalves, kFloats, moec::linear<Halves, Finish::Swiglu>};
const Kind grouped_swiglu_bf16{"grouped_swiglu_bf16", 4, 4, 1, kGroupedHalves, kFloats, moec::grouped_swiglu<Halves>};
const Kind grouped_combine_bf16{"grouped_combine_bf16", 5, 6, 1, kGroupedHalves, kFloats,
                                moec::grouped_combine<Halves>};

}  // namespace kind
}  // namespace moec
