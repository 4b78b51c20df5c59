// What operands must be like for a kernel to read them safely; false after call.fail.
#pragma once

#include "kernel.h"

namespace moec {

inline bool holds(Call& call, int input, int64_t elements) {
  const Tensor& t = call.in(input);
  if (t.data ? t.size() == elements : !elements) return true;
  call.fail("input %d holds %lld elements; %lld were expected", input, t.data ? (long long)t.size() : 0LL,
            (long long)elements);
  return false;
}

// Whether the elements of an input are of a type; the shell lets no other than the declared ones through.
inline bool stores(const Call& call, int input, Type type) { return input_type(call.row, size_t(input)) == type; }

inline bool has_rank(Call& call, int input, int rank) {
  if (call.in(input).rank == rank) return true;
  call.fail("input %d has rank %d; %d was expected", input, call.in(input).rank, rank);
  return false;
}

// Caches of `room` rows hold what a mask over `seen` tokens, `tokens` of them new, says.
inline bool fits(Call& call, int64_t tokens, int64_t seen, int64_t room) {
  if (tokens <= seen && seen <= room) return true;
  call.fail("the attention mask covers %lld tokens, which must be at least the %lld new ones and fit the cache's "
            "%lld rows",
            (long long)seen, (long long)tokens, (long long)room);
  return false;
}

// cos and sin [B, T, pairs], B being 1 or the batch.
inline bool turns(Call& call, int cos, int64_t batch, int64_t tokens, int64_t pairs) {
  const int64_t angles = tokens * pairs, given = call.in(cos).size();
  return holds(call, cos, given == angles ? angles : batch * angles) && holds(call, cos + 1, given);
}

// How many tokens' angles lie from one sequence to the next: none where all share them. By size, which turns()
// made sure of, not by shape.
inline int64_t angle_step(const Tensor& cos, int64_t tokens, int64_t pairs) {
  return cos.data && cos.size() > tokens * pairs ? tokens : 0;
}

}  // namespace moec
