// What goes row by row: RMSNorm, rotary embedding, and writing rows into a cache.
#include <algorithm>
#include <cstring>

#include "checks.h"

namespace moec {
namespace {

using Rms = void (*)(const float* x, const float* w, float* y, float eps, int32_t rows, int32_t xstep, int32_t ystep);
using Rotate = void (*)(const float* x, const float* cos, const float* sin, float* y);
using Encode = void (*)(const float* x, int8_t* codes, float* scales);

enum Pairs { INTERLEAVED, HALVES, NONE };

constexpr int64_t kTaskElements = 1 << 14;  // less is not worth another thread
constexpr int64_t kCopyElements = 1 << 16;

// f(first, last) over pieces of `count` rows, a piece being at least `elements` of them in total.
template <class F>
void by_rows(Call& call, int64_t count, int64_t width, int64_t elements, F&& f) {
  const int64_t rows = std::max<int64_t>(1, elements / std::max<int64_t>(1, width));
  call.parallel((count + rows - 1) / rows, [&](size_t task) {
    const int64_t first = int64_t(task) * rows;
    f(first, std::min(count, first + rows));
  });
}

// --- rms_norm: x [.., width], w [n] -> [.., n], the norm of columns start .. start+n-1 -----------------------

enum NormDim { N, WIDTH, START };

void rms_norm(Call& call) {
  const Tensor& x = call.in(0);
  const int64_t n = call.row.dims[N], width = call.row.dims[WIDTH];
  if (!x.rank || !holds(call, 0, x.rows() * width) || !holds(call, 1, n)) return;
  int64_t shape[kMaxRank];
  std::copy(x.shape, x.shape + x.rank, shape);
  shape[x.rank - 1] = n;
  auto y = static_cast<float*>(call.out(0, shape, x.rank));
  if (!y) return;
  const float* from = x.as<float>() + call.row.dims[START];
  const auto rms = reinterpret_cast<Rms>(call.row.functions[0]);
  by_rows(call, x.rows(), n, kTaskElements, [&](int64_t first, int64_t last) {
    rms(from + first * width, call.in(1).as<float>(), y + first * n, float(call.row.reals[0]), int32_t(last - first),
        int32_t(width), int32_t(n));
  });
}

// --- rotary: x [B, N, T, r], cos and sin [B, T, r/2] or broadcast to x [B | 1, N | 1, T | 1, r/2] ------------

enum RotaryDim { SIZE };

void rotary(Call& call) {
  const Tensor &x = call.in(0), &cos = call.in(1), &sin = call.in(2);
  const int64_t r = call.row.dims[SIZE];
  if (!has_rank(call, 0, 4) || !holds(call, 0, x.rows() * r)) return;
  if (cos.rank != 3 && !has_rank(call, 1, 4)) return;
  auto y = static_cast<float*>(call.out(0, x.shape, x.rank));
  if (!y) return;
  // How far the angles move with each of x's leading axes.
  int64_t step[3], size = r / 2;
  for (int axis = 2; axis >= 0; --axis) {
    const bool absent = cos.rank == 3 && axis == 1;
    const int64_t extent = absent ? 1 : cos.shape[cos.rank == 3 && axis ? axis - 1 : axis];
    if (extent != 1 && extent != x.shape[axis])
      return call.fail("cos is %lld long where x is %lld", (long long)extent, (long long)x.shape[axis]);
    step[axis] = extent == 1 ? 0 : size;
    size *= extent;
  }
  if (!holds(call, 1, size) || !holds(call, 2, size)) return;
  const auto rotate = reinterpret_cast<Rotate>(call.row.functions[0]);
  by_rows(call, x.rows(), r, kTaskElements, [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) {
      const int64_t outer = row / x.shape[2];
      const int64_t at = row % x.shape[2] * step[2] + outer % x.shape[1] * step[1] + outer / x.shape[1] * step[0];
      rotate(x.as<float>() + row * r, cos.as<float>() + at, sin.as<float>() + at, y + row * r);
    }
  });
}

// --- caches [B, h, L, d]: rows go to S .. S+T-1, S+T being what the mask [B, S+T] covers ---------------------

// Numbers into a cache of float32 or bfloat16, from its element `at` on.
void put(void* cache, Type type, int64_t at, const float* from, int64_t count) {
  if (type == F32) {
    memcpy(static_cast<float*>(cache) + at, from, count * sizeof(float));
    return;
  }
  uint16_t* to = static_cast<uint16_t*>(cache) + at;
  for (int64_t i = 0; i < count; ++i) {
    uint32_t bits;
    memcpy(&bits, from + i, sizeof bits);
    const bool number = (bits & 0x7fffffff) <= 0x7f800000;  // rounding may carry into infinity, never past it
    to[i] = uint16_t(number ? (bits + 0x7fff + (bits >> 16 & 1)) >> 16 : bits >> 16 | 0x40);
  }
}

int64_t bytes_of(Type type) { return type == F32 ? 4 : type == BF16 ? 2 : 1; }

// Everything but the new rows, when the runtime gave another buffer. False after call.fail.
bool keep_old(Call& call, const Tensor& past, void* to, Type type, int64_t start, int64_t tokens) {
  if (to == past.data) return true;
  const int64_t room = past.shape[2], row_bytes = past.shape[3] * bytes_of(type);
  const char* old = past.as<char>();
  char* present = static_cast<char*>(to);
  if (old < present + past.rows() * row_bytes && present < old + past.rows() * row_bytes)
    return call.fail("a cache and its successor overlap; they must be one buffer or have nothing in common"), false;
  by_rows(call, past.rows(), past.shape[3], kCopyElements, [&](int64_t first, int64_t last) {
    while (first < last) {
      const int64_t row = first % room;
      int64_t stop = row < start ? start : room;
      stop = std::min(last, first - row + stop);
      if (row < start || row >= start + tokens)
        memcpy(present + first * row_bytes, old + first * row_bytes, (stop - first) * row_bytes);
      else
        stop = std::min(last, first - row + start + tokens);
      first = stop;
    }
  });
  return true;
}

void append(Call& call) {
  if (!has_rank(call, 0, 4) || !has_rank(call, 1, 4) || !has_rank(call, 2, 2)) return;
  const Tensor &past = call.in(0), &rows = call.in(1), &mask = call.in(2);
  const int64_t tokens = rows.shape[2], start = mask.shape[1] - tokens, room = past.shape[2], width = past.shape[3];
  if (!fits(call, tokens, mask.shape[1], room)) return;
  for (int axis : {0, 1, 3})
    if (rows.shape[axis] != past.shape[axis])
      return call.fail("new rows are %lld long on axis %d where the cache is %lld", (long long)rows.shape[axis], axis,
                       (long long)past.shape[axis]);
  const Type type = call.row.kind->input_types[0];
  void* present = call.out(0, past.shape, past.rank);
  if (!present) return;
  if (!keep_old(call, past, present, type, start, tokens) || !tokens) return;
  by_rows(call, rows.rows(), width, kCopyElements, [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row)
      put(present, type, (row / tokens * room + start + row % tokens) * width, rows.as<float>() + row * width, width);
  });
}

// --- latent_write: kv [B, T, width] holds latents at column start and rotary keys behind them ----------------

enum WriteDim { C, R, KV_WIDTH, KV_START, PAIRS_IN, PAIRS_OUT };
enum WriteInput { KV, W_NORM, COS, SIN, PAST_LATENT, PAST_KEYS, MASK, PAST_SCALES };  // scales: of int8 only
enum WriteFunction { RMS, ROTATE, ENCODE };
constexpr int64_t kScaled = 32;  // columns of codes that share a scale

void latent_write(Call& call) {
  if (!has_rank(call, KV, 3) || !has_rank(call, PAST_LATENT, 4) || !has_rank(call, PAST_KEYS, 4) ||
      !has_rank(call, MASK, 2))
    return;
  const Tensor &kv = call.in(KV), &cos = call.in(COS), &past = call.in(PAST_LATENT), &past_keys = call.in(PAST_KEYS);
  const int64_t *dims = call.row.dims, c = dims[C], r = dims[R], tokens = kv.shape[1], room = past.shape[2];
  const int64_t seen = call.in(MASK).shape[1], start = seen - tokens, batch = kv.shape[0];
  const bool turned = dims[PAIRS_IN] != NONE, coded = stores(call, PAST_LATENT, I8);
  const int64_t groups = (c + kScaled - 1) / kScaled;
  if (!fits(call, tokens, seen, room) || !holds(call, KV, batch * tokens * dims[KV_WIDTH]) ||
      !holds(call, W_NORM, c) || !holds(call, MASK, batch * seen) ||
      !holds(call, PAST_LATENT, batch * room * c) || !holds(call, PAST_KEYS, batch * room * r) ||
      (turned && !turns(call, COS, batch, tokens, r / 2)) ||
      (coded && (!has_rank(call, PAST_SCALES, 4) || !holds(call, PAST_SCALES, batch * room * groups))))
    return;
  const Type *types = call.row.kind->input_types, type = types[PAST_LATENT], key_type = types[PAST_KEYS];
  void* latents = call.out(0, past.shape, past.rank);
  void* keys = call.out(1, past_keys.shape, past_keys.rank);
  const Tensor& past_scales = call.in(PAST_SCALES);
  auto scales = coded ? static_cast<float*>(call.out(2, past_scales.shape, past_scales.rank)) : nullptr;
  float* made = call.scratch<float>(batch * tokens * (c + r));
  if (!latents || !keys || !made || (coded && !scales)) return;
  if (!keep_old(call, past, latents, type, start, tokens) ||
      !keep_old(call, past_keys, keys, key_type, start, tokens) ||
      (coded && !keep_old(call, past_scales, scales, F32, start, tokens)))
    return;
  const auto rms = reinterpret_cast<Rms>(call.row.functions[RMS]);
  const auto rotate = reinterpret_cast<Rotate>(call.row.functions[ROTATE]);
  const auto encode = coded ? reinterpret_cast<Encode>(call.row.functions[ENCODE]) : nullptr;
  const int64_t angles = angle_step(cos, tokens, r / 2);
  by_rows(call, batch * tokens, c + r, kTaskElements, [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) {
      const int64_t b = row / tokens, t = row % tokens, to = b * room + start + t;
      const float* x = kv.as<float>() + row * dims[KV_WIDTH] + dims[KV_START];
      float *latent = made + row * (c + r), *key = latent + c;
      rms(x, call.in(W_NORM).as<float>(), latent, float(call.row.reals[0]), 1, int32_t(c), int32_t(c));
      const int64_t angle = (b * angles + t) * (r / 2);
      if (turned) rotate(x + c, cos.as<float>() + angle, call.in(SIN).as<float>() + angle, key);
      if (coded) encode(latent, static_cast<int8_t*>(latents) + to * c, scales + to * groups);
      else put(latents, type, to * c, latent, c);
      put(keys, key_type, to * r, turned ? key : x + c, r);
    }
  });
}

constexpr Type floats[] = {F32, F32, F32};
constexpr Type append_inputs[] = {F32, F32, I64};
constexpr Type append_bf16_inputs[] = {BF16, F32, I64};
constexpr Type write_inputs[] = {F32, F32, F32, F32, F32, F32, I64};
constexpr Type write_bf16_inputs[] = {F32, F32, F32, F32, BF16, BF16, I64};
constexpr Type write_int8_inputs[] = {F32, F32, F32, F32, I8, BF16, I64, F32};
constexpr Type bf16_outputs[] = {BF16, BF16};
constexpr Type int8_outputs[] = {I8, BF16, F32};

}  // namespace

namespace kind {
extern const Kind rms_norm = {"rms_norm", 2, 2, 1, floats, floats, moec::rms_norm};
extern const Kind rotary = {"rotary", 3, 3, 1, floats, floats, moec::rotary};
extern const Kind append = {"append", 3, 3, 1, append_inputs, floats, moec::append, in_place<0, 0>};
extern const Kind append_over_bf16 = {"append_over_bf16", 3, 3, 1, append_bf16_inputs, bf16_outputs, moec::append,
                                      in_place<0, 0>};
// Without rotation cos and sin are absent.
extern const Kind latent_write = {"latent_write", 2, 7, 2, write_inputs, floats, moec::latent_write,
                                  in_place<PAST_LATENT, 0, PAST_KEYS, 1>};
extern const Kind latent_write_over_bf16 = {"latent_write_over_bf16", 2, 7, 2, write_bf16_inputs, bf16_outputs,
                                            moec::latent_write, in_place<PAST_LATENT, 0, PAST_KEYS, 1>};
extern const Kind latent_write_over_int8 = {"latent_write_over_int8", 2, 8, 3, write_int8_inputs, int8_outputs,
                                            moec::latent_write,
                                            in_place<PAST_LATENT, 0, PAST_KEYS, 1, PAST_SCALES, 2>};
}  // namespace kind
}  // namespace moec
