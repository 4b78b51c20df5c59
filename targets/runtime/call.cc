// Calls of kernels, whoever makes them, and their counts.
#include <cstdarg>
#include <cstdio>
#include <ctime>

#include "kernel.h"
#include "lock.h"

namespace moec {
namespace {

Counter* made = nullptr;
bool making = false;

uint64_t clock_now() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return uint64_t(time.tv_sec) * 1000000000 + uint64_t(time.tv_nsec);
}

}  // namespace

Counter* counters() {
  Lock lock(making);
  if (made) return made;
  auto fresh = static_cast<Counter*>(malloc((row_count + !row_count) * sizeof(Counter)));
  for (size_t i = 0; fresh && i < row_count; ++i) fresh[i] = {rows[i].name, rows[i].kind->name, 0, 0, 0};
  return made = fresh;
}

void execute(const Row& row, Host& host) {
  Counter* all = counters();
  if (!all) return host.fail("moec: no memory for the counts of kernels");
  Counter& counter = all[&row - rows];
  const uint64_t start = clock_now();
  __atomic_fetch_add(&counter.calls, 1, __ATOMIC_RELAXED);
  {
    Call call(row, counter, host);
    if (!call.failed()) call.choose(call.in(0).rows() / row.rows_per_token);
    if (!call.failed()) row.kind->compute(call);
  }
  __atomic_fetch_add(&counter.nanoseconds, clock_now() - start, __ATOMIC_RELAXED);
}

Call::Call(const Row& row, Counter& counter, Host& host) : row(row), host_(host), counter_(counter) { load(); }

Call::~Call() {
  while (blocks_) host_.give(scratch_[--blocks_]);
}

bool Call::load() {
  const int given = host_.inputs();
  for (int i = 0; i < given && i < kMaxInputs; ++i) {
    tensors_[i] = {nullptr, shapes_[i], 0};
    if (!host_.input(i, &tensors_[i], shapes_[i])) return false;
    if (tensors_[i].rank > kMaxRank)
      return fail("input %d has rank %d; kernels take at most %d", i, tensors_[i].rank, kMaxRank), false;
    ++inputs_;
  }
  return true;
}

void Call::choose(int64_t tokens) {
  const Variant* variant = row.variants;
  while (tokens > variant->most) ++variant;
  row.knobs = variant->knobs;
  row.functions = variant->functions;
}

void* Call::out(int i, const int64_t* shape, int rank) {
  void* data = failed() ? nullptr : host_.output(i, shape, rank);
  for (int axis = 0; axis < rank; ++axis)
    if (!shape[axis]) return nullptr;
  return data;
}

void* Call::scratch(size_t bytes) {
  void* block = blocks_ < kMaxScratch ? host_.take(bytes) : nullptr;
  if (!block) return fail("no memory for %zu bytes of scratch", bytes), nullptr;
  return scratch_[blocks_++] = block;
}

void Call::fail(const char* format, ...) {
  char text[512];
  int used = snprintf(text, sizeof text, "%s: ", row.name);
  if (used >= int(sizeof text)) used = sizeof text - 1;
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text + used, sizeof text - used, format, arguments);
  va_end(arguments);
  if (!failed()) host_.fail(text);
}

}  // namespace moec

// Fills in up to `most` counters, one per kernel in the order of the table; returns how many kernels there are.
EXPORT size_t moec_counts(moec::Counter* counters, size_t most) {
  const moec::Counter* all = moec::counters();
  if (!all) return 0;
  for (size_t i = 0; i < moec::row_count && i < most; ++i) {
    const moec::Counter& now = all[i];  // sessions may be running
    counters[i] = {now.name, now.kind, __atomic_load_n(&now.calls, __ATOMIC_RELAXED),
                   __atomic_load_n(&now.weight_bytes, __ATOMIC_RELAXED),
                   __atomic_load_n(&now.nanoseconds, __ATOMIC_RELAXED)};
  }
  return moec::row_count;
}
