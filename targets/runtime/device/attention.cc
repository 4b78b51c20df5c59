// The kinds that write caches and attend to them, and the rotation before that. A cache has `room` rows, of which a
// mask of `seen` columns says which are real; kernels learn from a span [B, 2] where those begin and end. Or it is in
// pages of a pool [P, 1, kPage, d] that all sequences share: then a table [B, pages], the last input, says in which.
// Latents may be codes (U8) whose scales [B, 1, room, 1], or such a pool, are one more cache: the last input but that.
#include "sizes.h"

namespace moec {
namespace {

constexpr int64_t kPage = 64;

// Where the two caches of latent attention are: what kernels know as room and pages, and the rows of all sequences.
struct Place {
  int64_t room, pages, rows;
};

// Whether the latents are codes, with scales.
bool coded(const Call& call, int latents) { return call.row.kind->input_types[latents] == U8; }

// The place of caches c and r wide, for as many tokens as the call says; false after call.fail. scales: the input, of
// a kind that has them; a table comes behind.
bool placed(Call& call, int latents, int keys, int scales, const Sizes& s, int64_t c, int64_t r, Place* place) {
  const Tensor& first = call.in(latents);
  const int table = scales + coded(call, latents);
  int64_t each = 1;  // rows of what `room` counts
  if (call.row.kind->inputs <= table) {
    *place = {first.shape[2], 0, s.batch * first.shape[2]};
  } else {
    if (!has_rank(call, table, 2) || !holds(call, table, s.batch * call.in(table).shape[1])) return false;
    if (first.shape[2] != kPage)
      return call.fail("pages have %lld rows; %lld were expected", (long long)first.shape[2], (long long)kPage), false;
    *place = {call.in(table).shape[1], first.shape[0], first.shape[0] * kPage};
    each = kPage;
  }
  return fits(call, s.tokens, s.seen, place->room * each) && holds(call, latents, place->rows * c) &&
         holds(call, keys, place->rows * r) && (table == scales || holds(call, scales, place->rows));
}

// --- caches [B, h, L, d]: new rows go to end-T .. end-1, end being in span [B, 2] ----------------------------

// The cache for new rows: the old one, or a copy of it where onnxruntime gave another buffer. Null after call.fail.
// size: bytes of a number.
void* renewed(Call& call, int input, int output, int64_t size = 2) {
  const Tensor& old = call.in(input);
  auto fresh = static_cast<char*>(call.out(output, old.shape, old.rank));
  if (!fresh || fresh == old.data) return fresh;
  const int64_t bytes = old.size() * size;
  auto from = old.as<char>();
  if (from < fresh + bytes && fresh < from + bytes)
    return call.fail("a cache and its successor overlap; they must be one buffer or have nothing in common"), nullptr;
  const auto stream = static_cast<device::Stream>(call.host().stream());
  if (device::Result result = device::copy(fresh, false, from, false, size_t(bytes), stream))
    return call.fail("a cache cannot be copied: %s", device::words(result)), nullptr;
  return fresh;
}

enum AppendInput { PAST, ROWS, APPEND_MASK, APPEND_SPAN };

void append(Call& call) {
  if (!has_rank(call, PAST, 4) || !has_rank(call, ROWS, 4) || !has_rank(call, APPEND_MASK, 2)) return;
  const Tensor &past = call.in(PAST), &rows = call.in(ROWS);
  const int64_t batch = past.shape[0], tokens = rows.shape[2], room = past.shape[2];
  const int64_t seen = call.in(APPEND_MASK).shape[1], h = call.row.dims[0], d = call.row.dims[1];
  if (!fits(call, tokens, seen, room) || !holds(call, PAST, batch * h * room * d) ||
      !holds(call, ROWS, batch * h * tokens * d) || !holds(call, APPEND_SPAN, batch * 2))
    return;
  void* present = renewed(call, PAST, 0);
  run(call, {batch * tokens, batch, tokens, seen, room}, batch * tokens, {present});
}

enum WriteDim { C, R, KV_WIDTH };
enum WriteInput { KV, W_NORM, COS, SIN, PAST_LATENT, PAST_KEYS, WRITE_MASK, WRITE_SPAN, PAST_SCALES };

void latent_write(Call& call) {
  if (!has_rank(call, KV, 3) || !has_rank(call, PAST_LATENT, 4) || !has_rank(call, WRITE_MASK, 2)) return;
  const int64_t *dims = call.row.dims, batch = call.in(KV).shape[0], tokens = call.in(KV).shape[1];
  const int64_t seen = call.in(WRITE_MASK).shape[1];
  Place at;
  if (!placed(call, PAST_LATENT, PAST_KEYS, PAST_SCALES, {0, batch, tokens, seen}, dims[C], dims[R], &at) ||
      !has_width(call, KV, dims[KV_WIDTH]) || !holds(call, W_NORM, dims[C]) ||
      !holds(call, COS, batch * tokens * (dims[R] / 2)) || !holds(call, SIN, batch * tokens * (dims[R] / 2)) ||
      !holds(call, WRITE_SPAN, batch * 2))
    return;
  const bool codes = coded(call, PAST_LATENT);
  void* latents = renewed(call, PAST_LATENT, 0, codes ? 1 : 2);
  void* keys = renewed(call, PAST_KEYS, 1);
  void* scales = codes ? renewed(call, PAST_SCALES, 2, 4) : nullptr;
  run(call, {batch * tokens, batch, tokens, seen, at.room, at.pages}, batch * tokens, {latents, keys, scales});
}

enum LatentDim { HEADS, NOPE, ROPE, LATENT, VALUE, PAIRS_IN, PAIRS_OUT, Q_WIDTH };
enum LatentInput { Q, Q_COS, Q_SIN, LATENTS, KEYS, MASK, SPAN, W_KVB, SCALES };

void latent_attention(Call& call) {
  if (!has_rank(call, Q, 3) || !has_rank(call, LATENTS, 4) || !has_rank(call, MASK, 2)) return;
  const int64_t *dims = call.row.dims, batch = call.in(Q).shape[0], tokens = call.in(Q).shape[1];
  const int64_t seen = call.in(MASK).shape[1], turns = dims[ROPE] / 2;
  Place at;
  if (!placed(call, LATENTS, KEYS, SCALES, {0, batch, tokens, seen}, dims[LATENT], dims[ROPE], &at) ||
      !has_width(call, Q, dims[Q_WIDTH]) || !holds(call, Q_COS, batch * tokens * turns) ||
      !holds(call, Q_SIN, batch * tokens * turns) ||
      !holds(call, SPAN, batch * 2) || !holds(call, W_KVB, dims[HEADS] * (dims[NOPE] + dims[VALUE]) * dims[LATENT]))
    return;
  void* y = call.out(0, {batch, tokens, dims[HEADS] * dims[VALUE]});
  if (y) call.count(uint64_t(dims[HEADS] * (dims[NOPE] + dims[VALUE]) * dims[LATENT] * 2));
  run(call, {batch * tokens, batch, tokens, seen, at.room, at.pages}, batch * tokens, {y});
}

// --- mla_decode: q [B, T, heads, c+r] in the space of latents, the caches, mask, span -> [B, T, heads, c] -----

enum MlaDim { MLA_HEADS, MLA_LATENT, MLA_ROPE };
constexpr int kMlaScales = 5;

void mla_decode(Call& call) {
  if (!has_rank(call, 0, 4) || !has_rank(call, 1, 4) || !has_rank(call, 3, 2)) return;
  const int64_t *dims = call.row.dims, batch = call.in(0).shape[0], tokens = call.in(0).shape[1];
  const int64_t seen = call.in(3).shape[1], heads = dims[MLA_HEADS];
  Place at;
  if (!placed(call, 1, 2, kMlaScales, {0, batch, tokens, seen}, dims[MLA_LATENT], dims[MLA_ROPE], &at) ||
      !has_width(call, 0, dims[MLA_LATENT] + dims[MLA_ROPE]) ||
      !holds(call, 0, batch * tokens * heads * (dims[MLA_LATENT] + dims[MLA_ROPE])) ||
      !holds(call, 4, batch * 2))
    return;
  void* y = call.out(0, {batch, tokens, heads, dims[MLA_LATENT]});
  run(call, {batch * tokens, batch, tokens, seen, at.room, at.pages}, batch * tokens, {y});
}

// --- rotary: x [B, N, T, r], cos and sin [B, T, r/2]. Its m are the rows of x, B*N*T. ------------------------

void rotary(Call& call) {
  if (!has_rank(call, 0, 4)) return;
  const Tensor& x = call.in(0);
  const int64_t r = call.row.dims[0], batch = x.shape[0], tokens = x.shape[2];
  if (!has_width(call, 0, r) || !holds(call, 1, batch * tokens * (r / 2)) || !holds(call, 2, batch * tokens * (r / 2)))
    return;
  void* y = call.out(0, x.shape, x.rank);
  run(call, {x.rows(), batch, tokens}, x.rows() ? batch * tokens : 0, {y});
}

// --- attention: q [B, heads, T, dk], keys [B, groups, L, dk], values [B, groups, L, dv] -> [B, heads, T, dv] ---

enum AttentionDim { ATTENTION_HEADS, ATTENTION_GROUPS, DK, DV };

void attention(Call& call) {
  if (!has_rank(call, 0, 4) || !has_rank(call, 1, 4) || !has_rank(call, 3, 2)) return;
  const int64_t *dims = call.row.dims, heads = dims[ATTENTION_HEADS], groups = dims[ATTENTION_GROUPS];
  const int64_t batch = call.in(0).shape[0], tokens = call.in(0).shape[2], room = call.in(1).shape[2];
  const int64_t seen = call.in(3).shape[1];
  if (!fits(call, tokens, seen, room) || !holds(call, 0, batch * heads * tokens * dims[DK]) ||
      !holds(call, 1, batch * groups * room * dims[DK]) || !holds(call, 2, batch * groups * room * dims[DV]) ||
      !holds(call, 4, batch * 2))
    return;
  void* y = call.out(0, {batch, heads, tokens, dims[DV]});
  run(call, {batch * tokens, batch, tokens, seen, room}, batch * tokens, {y});
}

constexpr Type halves[] = {BF16, BF16, BF16};
constexpr Type write_inputs[] = {BF16, F32, F32, F32, BF16, BF16, I64, I64, I64};
constexpr Type latent_inputs[] = {BF16, F32, F32, BF16, BF16, I64, I64, BF16, I64};
constexpr Type coded_write_inputs[] = {BF16, F32, F32, F32, U8, BF16, I64, I64, F32, I64};
constexpr Type coded_write_outputs[] = {U8, BF16, F32};
constexpr Type coded_latent_inputs[] = {BF16, F32, F32, U8, BF16, I64, I64, BF16, F32, I64};
constexpr Type coded_mla_inputs[] = {BF16, U8, BF16, I64, I64, F32};
constexpr Type append_inputs[] = {BF16, BF16, I64, I64};
constexpr Type rotary_inputs[] = {BF16, F32, F32};
constexpr Type attention_inputs[] = {BF16, BF16, BF16, I64, I64, I64};

}  // namespace

namespace kind {
extern const Kind latent_write = {"latent_write", 8, 8, 2, write_inputs, halves, moec::latent_write,
                                  in_place<PAST_LATENT, 0, PAST_KEYS, 1>};
extern const Kind latent_attention = {"latent_attention", 8, 8, 1, latent_inputs, halves, moec::latent_attention};
extern const Kind mla_decode = {"mla_decode", 5, 5, 1, attention_inputs, halves, moec::mla_decode};
extern const Kind latent_write_paged = {"latent_write_paged", 9, 9, 2, write_inputs, halves, moec::latent_write,
                                        in_place<PAST_LATENT, 0, PAST_KEYS, 1>};
extern const Kind latent_attention_paged = {"latent_attention_paged", 9, 9, 1, latent_inputs, halves,
                                            moec::latent_attention};
extern const Kind mla_decode_paged = {"mla_decode_paged", 6, 6, 1, attention_inputs, halves, moec::mla_decode};
extern const Kind latent_write_over_fp8 = {"latent_write_over_fp8", 9, 9, 3, coded_write_inputs, coded_write_outputs,
                                           moec::latent_write,
                                           in_place<PAST_LATENT, 0, PAST_KEYS, 1, PAST_SCALES, 2>};
extern const Kind latent_attention_over_fp8 = {"latent_attention_over_fp8", 9, 9, 1, coded_latent_inputs, halves,
                                               moec::latent_attention};
extern const Kind mla_decode_over_fp8 = {"mla_decode_over_fp8", 6, 6, 1, coded_mla_inputs, halves, moec::mla_decode};
extern const Kind latent_write_paged_over_fp8 = {"latent_write_paged_over_fp8", 10, 10, 3, coded_write_inputs,
                                                 coded_write_outputs, moec::latent_write,
                                                 in_place<PAST_LATENT, 0, PAST_KEYS, 1, PAST_SCALES, 2>};
extern const Kind latent_attention_paged_over_fp8 = {"latent_attention_paged_over_fp8", 10, 10, 1, coded_latent_inputs,
                                                     halves, moec::latent_attention};
extern const Kind append = {"append", 4, 4, 1, append_inputs, halves, moec::append, in_place<PAST, 0>};
extern const Kind rotary = {"rotary", 3, 3, 1, rotary_inputs, halves, moec::rotary};
extern const Kind attention = {"attention", 5, 5, 1, attention_inputs, halves, moec::attention};
}  // namespace kind
}  // namespace moec
