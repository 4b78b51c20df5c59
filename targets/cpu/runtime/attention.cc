// Attention over cached keys, latent (MLA) and grouped (GQA).
//
// Queries that see the same keys are the rows of one set: all heads and tokens over a latent cache, all tokens and
// heads of a group over its keys. Rows stand side by side as the lanes of a panel, so a block of keys is read once
// for all of them. A task takes some panels of a set over a stretch of its keys; stretches are merged at the end.
#include <cstring>

#include "attention.h"

namespace moec {
namespace {

// --- latent attention ----------------------------------------------------------------------------------------

enum LatentDim { HEADS, NOPE, ROPE, LATENT, VALUE, PAIRS_IN, PAIRS_OUT, Q_WIDTH, Q_START };
enum LatentKnob { NR, FEW, MANY, LONE, BLOCK, SPAN, PATH, ABSORB };
enum LatentInput { Q, COS, SIN, CACHE, ROTARY_KEYS, MASK, W_UK_Q, W_UK, W_UV, SCALES };
enum LatentFunction {
  SCORE_FEW, SOFTEN_FEW, WEIGH_FEW, SCORE_MANY, SOFTEN_MANY, WEIGH_MANY, SCORE_KEYS, WEIGH_KEYS,
  MERGE_LATENT, MERGE_VALUE, ROTATE, PROJECT_QUERY, PROJECT_LATENT = PROJECT_QUERY + kHeights,
  WIDEN = PROJECT_LATENT + kHeights, DECODE
};
enum Path { AUTO, ABSORBED, MATERIALISED };
enum Pairs { INTERLEAVED, HALVES, NONE };

using Rotate = void (*)(const float* x, const float* cos, const float* sin, float* y);

constexpr int64_t kScaled = 32;  // columns of codes that share a scale

int64_t padded(int64_t size, int64_t to) { return (size + to - 1) / to * to; }

struct Latent {
  Call& call;
  const int64_t heads, nope, rope, latent, value, nr;     // of the row
  const int64_t q_step, q_start;                           // from token to token; the first query's column
  const int64_t latent_padded, nope_padded, value_padded;  // to whole panels of nr
  const int64_t batch, tokens, keys, room;                 // of this call
  const float* q;
  const Cache latents, rotary_keys;
  const int64_t* mask;
  float* rows = nullptr;  // queries ready for scores, row_step apart
  int64_t row_step = 0;
  float* mixed = nullptr;  // absorbed: latents mixed by weight, `latent` apart

  explicit Latent(Call& call)
      : call(call), heads(call.row.dims[HEADS]), nope(call.row.dims[NOPE]), rope(call.row.dims[ROPE]),
        latent(call.row.dims[LATENT]), value(call.row.dims[VALUE]), nr(call.row.knobs[NR]),
        q_step(call.row.dims[Q_WIDTH]), q_start(call.row.dims[Q_START]),
        latent_padded(padded(latent, nr)), nope_padded(padded(nope, nr)), value_padded(padded(value, nr)),
        batch(call.in(Q).shape[0]), tokens(call.in(Q).shape[1]), keys(call.in(MASK).shape[1]),
        room(call.in(CACHE).shape[2]), q(call.in(Q).as<float>()), latents(cache(CACHE, latent)),
        rotary_keys(cache(ROTARY_KEYS, rope)), mask(call.in(MASK).as<int64_t>()) {}

  template <class F>
  F function(int i) const { return reinterpret_cast<F>(call.row.functions[i]); }
  float scale() const { return call.row.reals[0]; }
  int64_t knob(LatentKnob i) const { return call.row.knobs[i]; }
  int64_t width() const { return nope + rope; }
  int64_t row(int64_t b, int64_t t, int64_t n) const { return (b * tokens + t) * heads + n; }
  const float* query(int64_t b, int64_t t, int64_t n) const {
    return q + (b * tokens + t) * q_step + q_start + n * width();
  }
  bool coded() const { return stores(call, CACHE, I8); }
  int64_t groups() const { return padded(latent, kScaled) / kScaled; }
  Cache cache(LatentInput in, int64_t width) const {
    const auto data = call.in(in).as<char>();
    if (stores(call, in, I8))
      return {data, width, nullptr, function<Decode>(DECODE), call.in(SCALES).as<float>(), groups()};
    return {data, width, stores(call, in, BF16) ? function<Widen>(WIDEN) : nullptr};
  }
  void ask(int64_t at, int64_t count) const { latents.ask(at, count), rotary_keys.ask(at, count); }
  int64_t weight_bytes() const { return stores(call, W_UK, BF16) ? 2 : 4; }
  const void* weight(LatentInput w, int64_t n, int64_t size) const {  // that of head n
    return call.in(w).as<char>() + n * size * weight_bytes();
  }
};

// By the multiplications a head needs; the schedule says how much longer those of the absorbed way take, in percent.
bool absorbed_is_cheaper(const Latent& a) {
  const int64_t seen = a.tokens * (a.keys - a.tokens) + a.tokens * (a.tokens + 1) / 2;  // keys, over all tokens
  const int64_t project = a.latent * (a.nope + a.value);
  const int64_t absorbed = seen * (2 * a.latent + a.rope) + a.tokens * project;
  const int64_t materialised = seen * (a.nope + a.rope + a.value) + a.keys * project;
  return absorbed * a.knob(ABSORB) <= materialised * 100;
}

// Turns the rotary part of each query and, absorbed, takes its other part into the space of the latents.
void prepare(const Latent& a, bool absorbed) {
  const auto rotate = a.function<Rotate>(ROTATE);
  const Tensor &cos = a.call.in(COS), &sin = a.call.in(SIN);
  const bool turned = a.call.row.dims[PAIRS_IN] != NONE;
  const int64_t angles = angle_step(cos, a.tokens, a.rope / 2);
  a.call.parallel(a.batch * a.heads, [&](size_t task) {
    const int64_t b = task / a.heads, n = task % a.heads;
    const float* q = a.query(b, 0, n);
    float* row = a.rows + a.row(b, 0, n) * a.row_step;
    for (int64_t t = 0; t < a.tokens; ++t) {
      const float* from = q + t * a.q_step + a.nope;
      float* to = row + (t * a.heads + 1) * a.row_step - a.rope;
      const int64_t angle = (b * angles + t) * (a.rope / 2);
      if (turned) rotate(from, cos.as<float>() + angle, sin.as<float>() + angle, to);
      else memcpy(to, from, a.rope * sizeof(float));
    }
    if (!absorbed) return;
    const void* w = a.weight(W_UK_Q, n, a.latent_padded * a.nope);
    multiply(&a.call.row.functions[PROJECT_QUERY], q, a.q_step, w, row, a.heads * a.row_step, a.tokens,
             a.latent_padded / a.nr);
  });
}

// One value row of each head and token from its mixed latents.
void project_values(const Latent& a, float* out) {
  const bool direct = a.value == a.value_padded;
  const int64_t tasks = a.batch * a.heads, step = a.heads * a.value;
  float* spare = direct ? nullptr : a.call.scratch<float>(tasks * a.tokens * a.value_padded);
  if (!direct && !spare) return;
  a.call.parallel(tasks, [&](size_t task) {
    const int64_t b = task / a.heads, n = task % a.heads;
    const void* w = a.weight(W_UV, n, a.value_padded * a.latent);
    float* y = out + a.row(b, 0, n) * a.value;
    float* padded = direct ? y : spare + task * a.tokens * a.value_padded;
    const float* x = a.mixed + a.row(b, 0, n) * a.latent;
    multiply(&a.call.row.functions[PROJECT_LATENT], x, a.heads * a.latent, w, padded, direct ? step : a.value_padded,
             a.tokens, a.value_padded / a.nr);
    for (int64_t t = 0; !direct && t < a.tokens; ++t)
      memcpy(y + t * step, padded + t * a.value_padded, a.value * sizeof(float));
  });
}

void absorbed(Latent& a, float* out) {
  a.row_step = a.latent_padded + a.rope;
  a.rows = a.call.scratch<float>(a.batch * a.tokens * a.heads * a.row_step);
  a.mixed = a.call.scratch<float>(a.batch * a.tokens * a.heads * a.latent);
  if (!a.rows || !a.mixed) return;
  a.call.count(a.weight_bytes() * a.heads * (a.latent_padded * a.nope + a.value_padded * a.latent));
  prepare(a, true);
  const bool few = a.heads * a.tokens <= a.knob(FEW);
  const int first = few ? SCORE_FEW : SCORE_MANY;
  const int64_t lanes = a.knob(few ? FEW : MANY), block = a.knob(few ? LONE : BLOCK);
  Form form{lanes, a.latent + a.rope, a.latent, a.latent, block, a.knob(SPAN),
            a.latents.narrow() ? block * (a.latent + a.rope) : 0,
            a.function<Score>(first), a.function<Soften>(first + 1), a.function<Weigh>(first + 2),
            a.function<Merge>(MERGE_LATENT), a.scale()};
  Job job{a.batch, a.heads * a.tokens, a.heads, 1, a.keys, a.tokens, kGroupRows, a.mask};
  attend(
      a.call, form, job,
      [&](int64_t b, int64_t row) {
        const float* from = a.rows + (a.row(b, 0, 0) + row) * a.row_step;
        return Parts{from, from + a.latent_padded};
      },
      [&](int64_t b, int64_t start, int64_t count, float* memory) {
        const int64_t at = b * a.room + start;
        const float* latents = a.latents.rows(at, count, memory);
        const float* turned = a.rotary_keys.rows(at, count, memory);
        return Block{latents, turned, latents, a.rotary_keys.row(at + count), a.latents.row(at + count)};
      },
      [&](int64_t b, int64_t start, int64_t count) { a.ask(b * a.room + start, count); },
      [&](int64_t b, int64_t row) { return a.mixed + (a.row(b, 0, 0) + row) * a.latent; });
  if (!a.call.failed()) project_values(a, out);
}

void materialised(Latent& a, float* out) {
  a.row_step = a.rope;
  a.rows = a.call.scratch<float>(a.batch * a.tokens * a.heads * a.row_step);
  if (!a.rows) return;
  a.call.count(a.weight_bytes() * a.heads * (a.nope_padded + a.value_padded) * a.latent);
  prepare(a, false);
  const int64_t lanes = a.knob(MANY), block = a.knob(BLOCK);
  Form form{lanes, a.width(), a.value, a.nope, block, a.knob(SPAN),
            block * (a.nope_padded + a.value_padded + a.latent + a.rope),
            a.function<Score>(SCORE_KEYS), a.function<Soften>(SOFTEN_MANY), a.function<Weigh>(WEIGH_KEYS),
            a.function<Merge>(MERGE_VALUE), a.scale()};
  Job job{a.batch * a.heads, a.tokens, 1, a.heads, a.keys, a.tokens, a.tokens, a.mask};
  void* const* project = &a.call.row.functions[PROJECT_LATENT];
  attend(
      a.call, form, job,
      [&](int64_t set, int64_t t) {
        const int64_t b = set / a.heads, n = set % a.heads;
        return Parts{a.query(b, t, n), a.rows + a.row(b, t, n) * a.row_step};
      },
      [&](int64_t set, int64_t start, int64_t count, float* keys) {
        const int64_t at = set / a.heads * a.room + start, n = set % a.heads;
        float *values = keys + block * a.nope_padded, *memory = values + block * a.value_padded;
        const float* latents = a.latents.rows(at, count, memory);
        const void* w_uk = a.weight(W_UK, n, a.nope_padded * a.latent);
        const void* w_uv = a.weight(W_UV, n, a.value_padded * a.latent);
        multiply(project, latents, a.latent, w_uk, keys, a.nope_padded, count, a.nope_padded / a.nr);
        multiply(project, latents, a.latent, w_uv, values, a.value_padded, count, a.value_padded / a.nr);
        const void* next = a.latents.row(at + count);
        return Block{keys, a.rotary_keys.rows(at, count, memory), values, next, next};
      },
      [&](int64_t set, int64_t start, int64_t count) { a.ask(set / a.heads * a.room + start, count); },
      [&](int64_t set, int64_t t) { return out + a.row(set / a.heads, t, set % a.heads) * a.value; });
}

// Latent reads the shapes of q, the cache and the mask, so their ranks must be right before.
bool operands_fit(Call& call, const Latent& a) {
  const bool turned = call.row.dims[PAIRS_IN] != NONE;
  const int64_t by_head = a.heads * a.latent;
  return fits(call, a.tokens, a.keys, a.room) && holds(call, Q, a.batch * a.tokens * a.q_step) &&
         (!turned || turns(call, COS, a.batch, a.tokens, a.rope / 2)) &&
         holds(call, CACHE, a.batch * a.room * a.latent) && holds(call, ROTARY_KEYS, a.batch * a.room * a.rope) &&
         holds(call, MASK, a.batch * a.keys) && holds(call, W_UK_Q, a.heads * a.latent_padded * a.nope) &&
         holds(call, W_UK, by_head * a.nope_padded) && holds(call, W_UV, by_head * a.value_padded) &&
         (!a.coded() || holds(call, SCALES, a.batch * a.room * a.groups()));
}

void latent_attention(Call& call) {
  if (!has_rank(call, Q, 3) || !has_rank(call, CACHE, 4) || !has_rank(call, MASK, 2)) return;
  Latent a(call);
  if (!operands_fit(call, a)) return;
  float* out = call.out<float>(0, {a.batch, a.tokens, a.heads * a.value});
  if (!out) return;
  const int64_t path = a.knob(PATH);
  (path == AUTO ? absorbed_is_cheaper(a) : path == ABSORBED) ? absorbed(a, out) : materialised(a, out);
}

// --- grouped attention ---------------------------------------------------------------------------------------

enum GroupedDim { G_HEADS, G_GROUPS, G_KEY, G_VALUE };
enum GroupedKnob { G_FEW, G_MANY, G_LONE, G_BLOCK, G_SPAN };
enum GroupedFunction { G_MERGE = 6, G_WIDEN };  // behind those of both forms

void attention(Call& call) {
  if (!has_rank(call, 0, 4) || !has_rank(call, 1, 4) || !has_rank(call, 3, 2)) return;
  const int64_t *dims = call.row.dims, *knobs = call.row.knobs;
  const Tensor &q = call.in(0), &keys = call.in(1), &values = call.in(2), &mask = call.in(3);
  const int64_t heads = dims[G_HEADS], groups = dims[G_GROUPS], key = dims[G_KEY], value = dims[G_VALUE];
  const int64_t batch = q.shape[0], tokens = q.shape[2], seen = mask.shape[1], room = keys.shape[2];
  const int64_t share = heads / groups;
  if (!fits(call, tokens, seen, room) || !holds(call, 0, batch * heads * tokens * key) ||
      !holds(call, 1, batch * groups * room * key) || !holds(call, 2, batch * groups * room * value) ||
      !holds(call, 3, batch * seen))
    return;
  float* out = call.out<float>(0, {batch, heads, tokens, value});
  if (!out) return;
  const bool few = share * tokens <= knobs[G_FEW];
  void* const* functions = call.row.functions + (few ? 0 : 3);
  const int64_t lanes = knobs[few ? G_FEW : G_MANY], block = knobs[few ? G_LONE : G_BLOCK];
  const auto widen = stores(call, 1, BF16) ? reinterpret_cast<Widen>(call.row.functions[G_WIDEN]) : nullptr;
  const Cache past_keys{keys.as<char>(), key, widen}, past_values{values.as<char>(), value, widen};
  Form form{lanes, key, value, key, block, knobs[G_SPAN], widen ? block * (key + value) : 0,
            reinterpret_cast<Score>(functions[0]), reinterpret_cast<Soften>(functions[1]),
            reinterpret_cast<Weigh>(functions[2]), reinterpret_cast<Merge>(call.row.functions[G_MERGE]),
            float(call.row.reals[0])};
  Job job{batch * groups, share * tokens, share, groups, seen, tokens, kGroupRows, mask.as<int64_t>()};
  // Rows of a set go token by token; q and the result go head by head.
  auto place = [=](int64_t set, int64_t row) { return (set * share + row % share) * tokens + row / share; };
  attend(
      call, form, job,
      [&](int64_t set, int64_t row) { return Parts{q.as<float>() + place(set, row) * key, nullptr}; },
      [&](int64_t set, int64_t start, int64_t count, float* memory) {
        const int64_t at = set * room + start;
        const float* first = past_keys.rows(at, count, memory);
        const float* second = past_values.rows(at, count, memory);
        return Block{first, nullptr, second, past_keys.row(at + count), past_values.row(at + count)};
      },
      [&](int64_t set, int64_t start, int64_t count) {
        past_keys.ask(set * room + start, count), past_values.ask(set * room + start, count);
      },
      [&](int64_t set, int64_t row) { return out + place(set, row) * value; });
}

constexpr Type latent_inputs[] = {F32, F32, F32, F32, F32, I64, F32, F32, F32};
constexpr Type latent_bf16_inputs[] = {F32, F32, F32, F32, F32, I64, BF16, BF16, BF16};
constexpr Type latent_over_bf16_inputs[] = {F32, F32, F32, BF16, BF16, I64, F32, F32, F32};
constexpr Type latent_bf16_over_bf16_inputs[] = {F32, F32, F32, BF16, BF16, I64, BF16, BF16, BF16};
constexpr Type latent_over_int8_inputs[] = {F32, F32, F32, I8, BF16, I64, F32, F32, F32, F32};
constexpr Type latent_bf16_over_int8_inputs[] = {F32, F32, F32, I8, BF16, I64, BF16, BF16, BF16, F32};
constexpr Type grouped_inputs[] = {F32, F32, F32, I64};
constexpr Type grouped_over_bf16_inputs[] = {F32, BF16, BF16, I64};
constexpr Type one_output[] = {F32};

}  // namespace

namespace kind {
// Without rotation cos and sin are absent.
extern const Kind latent_attention = {"latent_attention", 1, 9, 1, latent_inputs, one_output, moec::latent_attention};
extern const Kind latent_attention_bf16 = {"latent_attention_bf16", 1, 9, 1, latent_bf16_inputs, one_output,
                                           moec::latent_attention};
extern const Kind latent_attention_over_bf16 = {
    "latent_attention_over_bf16", 1, 9, 1, latent_over_bf16_inputs, one_output, moec::latent_attention};
extern const Kind latent_attention_bf16_over_bf16 = {
    "latent_attention_bf16_over_bf16", 1, 9, 1, latent_bf16_over_bf16_inputs, one_output, moec::latent_attention};
extern const Kind latent_attention_over_int8 = {
    "latent_attention_over_int8", 1, 10, 1, latent_over_int8_inputs, one_output, moec::latent_attention};
extern const Kind latent_attention_bf16_over_int8 = {
    "latent_attention_bf16_over_int8", 1, 10, 1, latent_bf16_over_int8_inputs, one_output, moec::latent_attention};
extern const Kind attention = {"attention", 4, 4, 1, grouped_inputs, one_output, moec::attention};
extern const Kind attention_over_bf16 = {
    "attention_over_bf16", 4, 4, 1, grouped_over_bf16_inputs, one_output, moec::attention};
}  // namespace kind
}  // namespace moec
