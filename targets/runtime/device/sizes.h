// How kinds run: the sizes of a call, and what its operands must be like.
#pragma once

#include "checks.h"
#include "device.h"
#include "launch.h"

namespace moec {

struct Sizes {
  int64_t m = 0, batch = 0, tokens = 0, seen = 0, room = 0, pages = 0;
};

// Runs the program for so many tokens.
inline void run(Call& call, const Sizes& s, int64_t tokens, std::initializer_list<void*> results) {
  if (call.failed() || !tokens) return;
  const int64_t sizes[kSizes] = {s.m, s.batch, s.tokens, s.seen, s.room, s.pages};
  call.choose(tokens);
  Run(call, sizes, results.begin()).run();
}

// Whether the last axis of an input is that long; false after call.fail.
inline bool has_width(Call& call, int input, int64_t width) {
  const Tensor& t = call.in(input);
  if (t.rank && t.dim(-1) == width) return true;
  call.fail("input %d is %lld wide; %lld was expected", input, t.rank ? (long long)t.dim(-1) : 0LL, (long long)width);
  return false;
}

}  // namespace moec
