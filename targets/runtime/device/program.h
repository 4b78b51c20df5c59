// What the steps of a program have of one call: its sizes, buffers and stream. A target's Run launches with them.
#pragma once

#include "kernel.h"

namespace moec {

// Sizes known when a call is made: rows (tokens of all sequences), sequences, new tokens of each, the width of the
// attention mask, rows of the cache; where that is in pages, those of a sequence, and those of the pool. Those that
// mean nothing to a kind are 0.
enum Size { kM, kBatch, kTokens, kSeen, kRoom, kPages, kSizes };

class Run;  // of the target, in its launch.h; made of Ports

struct Extent {
  int64_t x, y, z;
};

using Step = void(Run&);

// The steps of a kernel for one schedule, and the device memory they need beside their operands: buffers of
// scratch(run, i) bytes, 256-byte aligned.
struct Program {
  Step* const* steps;
  int count;
  int64_t (*scratch)(const Run&, int);
  int buffers;
};

class Ports {
 public:
  int64_t size(Size which) const { return sizes_[which]; }
  double real(int i) const { return call_.row.reals[i]; }
  void* x(int i) const { return call_.in(i).data; }
  void* y(int i) const { return results_[i]; }
  void* s(int i) const { return scratch_[i]; }

 protected:
  // sizes are the kind's; results are what call.out gave.
  Ports(Call& call, const int64_t (&sizes)[kSizes], void* const* results)
      : call_(call), sizes_(sizes), results_(results) {}
  Ports(const Ports&) = delete;
  Ports& operator=(const Ports&) = delete;
  ~Ports() = default;

  // Takes the scratch, then runs the steps of the call's program.
  void run(Run& self);

  Call& call_;

 private:
  const int64_t* sizes_;
  void* const* results_;
  void* scratch_[kMaxScratch] = {};
};

}  // namespace moec
