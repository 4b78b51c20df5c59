// Sets of query rows over shared keys: panels, tasks, streaming softmax, merging. Knows no model.
#pragma once

#include <xmmintrin.h>

#include <algorithm>
#include <memory>

#include "checks.h"

namespace moec {

// The generated functions; kernels/attention.py and kernels/matmul.py say what they do.
using Score = void (*)(const float* first, const float* second, const void* next, const float* q, float* s,
                       int32_t keys);
using Soften = void (*)(float* s, const int32_t* at, const int32_t* limit, float* most, float* total, float* carry,
                        int32_t keys);
using Weigh = void (*)(const float* s, const float* values, const void* next, float* acc, const float* carry,
                       int32_t keys, int32_t used);
using Widen = void (*)(const void* x, float* y, int32_t count);
using Decode = void (*)(const void* codes, const float* scales, float* y, int32_t rows);
using Merge = void (*)(const float* acc, const float* most, const float* total, float* y, int64_t step,
                       int32_t parts);
using Multiply = void (*)(const float* x, const int64_t* xat, const void* w, float* y, const int64_t* yat,
                          const float* extra, int32_t panels);

constexpr float kBottom = -3.0e38f;  // no key seen yet; differences of it stay numbers
constexpr int64_t kKeyRows = 16;     // stretches are whole tiles of keys, this many at most
constexpr int kHeights = 3;          // products come for 1, 2 and 4 rows
constexpr int64_t kGroupRows = 128;  // rows that a block of keys serves while it is in the cache
constexpr int64_t kMostTasks = 64;   // keys are not split further; merge has room for as many parts
constexpr int64_t kMergeRows = 4;    // rows merged by one task
constexpr int64_t kMaxLanes = 64;    // of a panel
constexpr int64_t kApart = 16;       // floats between rows of sums; kernels/weigh.py says why
constexpr int64_t kMostPartials = 4 << 20;  // floats of half the sums to merge

// One way to attend: how wide panels are and the functions generated for that width.
struct Form {
  int64_t lanes;          // rows of a panel
  int64_t width, value;   // elements of a query, of a result
  int64_t first;          // elements of a query's first part
  int64_t block, span;    // keys of a block; keys of a stretch, at least
  int64_t room;           // floats that keys() below may fill
  Score score;
  Soften soften;
  Weigh weigh;
  Merge merge;
  float scale;            // of queries

  int64_t step() const { return value + kApart; }  // from row to row of sums
};

struct Job {
  int64_t sets, rows;       // sets of rows that share keys
  int64_t rows_per_token;   // rows of a set go token by token
  int64_t sets_per_batch;
  int64_t keys, tokens;     // keys 0 .. keys-1, the last `tokens` of them new
  int64_t group_rows;       // rows a task takes at most, about
  const int64_t* mask;      // [batch, keys], 0 where no key is
};

// Keys and values of one block, and where those of the next lie, as they are stored.
struct Block {
  const float *first, *second, *values;
  const void *next_keys, *next_values;

  void last() { next_keys = first, next_values = values; }  // nothing to ask for
};

// A cache [.., width] of float32; or, with a function that widens it, of bfloat16; or, with one that decodes rows, of
// int8 with scales [.., groups].
struct Cache {
  const char* data;
  int64_t width;
  Widen widen = nullptr;
  Decode decode = nullptr;
  const float* scales = nullptr;
  int64_t groups = 0;

  bool narrow() const { return widen || decode; }
  int64_t step() const { return width * (decode ? 1 : widen ? 2 : 4); }
  const void* row(int64_t at) const { return data + at * step(); }
  // Asks for rows into the second-level cache.
  void ask(int64_t at, int64_t count) const {
    for (int64_t byte = 0; byte < count * step(); byte += 64) __builtin_prefetch(data + at * step() + byte, 0, 2);
  }
  // Rows as float32: where they lie, or made in memory for count * width floats, which then moves on.
  const float* rows(int64_t at, int64_t count, float*& memory) const {
    if (!narrow()) return static_cast<const float*>(row(at));
    float* wide = memory;
    if (decode) decode(row(at), scales + at * groups, wide, int32_t(count));
    else widen(row(at), wide, int32_t(count * width));
    memory += count * width;
    return wide;
  }
};

// A query lies in two parts.
struct Parts {
  const float *first, *second;
};

// Rows become the lanes of q [count, lanes]; four at a time, which takes half as long.
inline void spread(const float* const* rows, int64_t used, int64_t lanes, int64_t count, float scale, float* q) {
  int64_t i = 0;
  for (; i + 4 <= used; i += 4) {
    int64_t d = 0;
    for (; d + 4 <= count; d += 4) {
      __m128 part[4];
      for (int r = 0; r < 4; ++r) part[r] = _mm_mul_ps(_mm_loadu_ps(rows[i + r] + d), _mm_set1_ps(scale));
      _MM_TRANSPOSE4_PS(part[0], part[1], part[2], part[3]);
      for (int r = 0; r < 4; ++r) _mm_storeu_ps(q + (d + r) * lanes + i, part[r]);
    }
    for (; d < count; ++d)
      for (int r = 0; r < 4; ++r) q[d * lanes + i + r] = rows[i + r][d] * scale;
  }
  for (; i < used; ++i)
    for (int64_t d = 0; d < count; ++d) q[d * lanes + i] = rows[i][d] * scale;
}

// y[i] = x[i] @ w for rows `xstep` and `ystep` apart and a packed w; functions are those for 1, 2 and 4 rows.
inline void multiply(void* const* functions, const float* x, int64_t xstep, const void* w, float* y, int64_t ystep,
                     int64_t rows, int64_t panels) {
  const int64_t xat[] = {0, xstep, 2 * xstep, 3 * xstep}, yat[] = {0, ystep, 2 * ystep, 3 * ystep};
  while (rows > 0) {
    const int level = rows >= 4 ? 2 : rows >= 2 ? 1 : 0;
    reinterpret_cast<Multiply>(functions[level])(x, xat, w, y, yat, nullptr, int32_t(panels));
    x += xstep << level, y += ystep << level, rows -= 1 << level;
  }
}

// How a job falls into tasks. The same shapes always fall the same way, so results do not depend on the machine.
struct Division {
  int64_t panels, group, groups;  // of a set; panels of a task; tasks a set's panels make
  int64_t splits, stretch;        // stretches of keys, and keys of one

  Division(const Form& form, const Job& job) {
    panels = (job.rows + form.lanes - 1) / form.lanes;
    group = std::min(panels, std::max<int64_t>(1, job.group_rows / form.lanes));
    groups = (panels + group - 1) / group;
    // Every stretch costs as much more as its sums take to merge, however many panels share it.
    const int64_t floats = panels * form.lanes * form.value;
    splits = 1;
    while (job.sets * groups * splits < kMostTasks && job.keys > form.span * splits * 3 / 2 &&
           job.sets * splits * floats < kMostPartials)
      splits *= 2;
    stretch = ((job.keys + splits - 1) / splits + kKeyRows - 1) / kKeyRows * kKeyRows;
    splits = (job.keys + stretch - 1) / stretch;
  }
};

// Memory for results: sums of values, and each row's maximum and sum of weights.
struct Sums {
  float *acc, *most, *total;

  static int64_t size(const Form& form, int64_t panels) { return panels * form.lanes * (form.step() + 2); }
  Sums(float* memory, const Form& form, int64_t panels)
      : acc(memory), most(acc + panels * form.lanes * form.step()), total(most + panels * form.lanes) {}

  Sums from(int64_t panel, const Form& form) const {
    Sums later = *this;
    later.acc += panel * form.lanes * form.step(), later.most += panel * form.lanes, later.total += panel * form.lanes;
    return later;
  }
  // One row's result out of as many parts, `step` floats apart.
  void merge(int64_t row, const Form& form, float* result, int64_t step, int64_t parts) const {
    form.merge(acc + row * form.step(), most + row, total + row, result, step, int32_t(parts));
  }
};

struct Free {
  void operator()(float* memory) const { free(memory); }
};
using Memory = std::unique_ptr<float, Free>;

inline Memory allocate(int64_t floats) {
  return Memory(static_cast<float*>(aligned_alloc(64, (floats * sizeof(float) + 63) / 64 * 64)));
}

// One task: panels first .. first+count-1 of a set over keys start .. stop-1.
struct Task {
  const Form& form;
  const Job& job;
  int64_t set, first, count, start, stop;
  float *q, *s, *carry, *room;
  int32_t *limit, *at;

  static int64_t size(const Form& form, int64_t count) {
    const int64_t lanes = form.lanes;
    return count * lanes * (form.width + 1) + form.block * lanes + lanes + form.block + form.room;
  }

  Task(const Form& form, const Job& job, int64_t set, int64_t first, int64_t count, int64_t start, int64_t stop,
       float* memory)
      : form(form), job(job), set(set), first(first), count(count), start(start), stop(stop) {
    q = memory;
    s = q + count * form.lanes * form.width;
    carry = s + form.block * form.lanes;
    room = carry + form.lanes;
    limit = reinterpret_cast<int32_t*>(room + form.room);
    at = limit + count * form.lanes;
  }

  int64_t rows(int64_t panel) const { return std::min(form.lanes, job.rows - (first + panel) * form.lanes); }

  // Queries into lanes; how far each row sees; sums empty.
  template <class Query>
  void begin(Query&& query, const Sums& sums) {
    const int64_t lanes = form.lanes, cached = job.keys - job.tokens;
    std::fill(sums.acc, sums.acc + count * lanes * form.step(), 0.0f);
    std::fill(sums.most, sums.most + count * lanes, kBottom);
    std::fill(sums.total, sums.total + count * lanes, 0.0f);
    for (int64_t i = 0; i < count * lanes; ++i) {
      const int64_t row = first * lanes + i;
      limit[i] = row < job.rows ? int32_t(cached + row / job.rows_per_token + 1) : 0;
    }
    for (int64_t panel = 0; panel < count; ++panel) {
      const float *parts[2][kMaxLanes];
      float* to = q + panel * lanes * form.width;
      const int64_t used = rows(panel);
      for (int64_t i = 0; i < used; ++i) {
        const Parts from = query(set, (first + panel) * lanes + i);
        parts[0][i] = from.first, parts[1][i] = from.second;
      }
      if (used < lanes) std::fill(to, to + lanes * form.width, 0.0f);
      spread(parts[0], used, lanes, form.first, form.scale, to);
      spread(parts[1], used, lanes, form.width - form.first, form.scale, to + form.first * lanes);
    }
  }

  template <class Keys>
  void run(Keys&& keys, const Sums& sums) {
    const int64_t* mask = job.mask + set / job.sets_per_batch * job.keys;
    const int64_t end = std::min<int64_t>(stop, limit[(count - 1) * form.lanes + rows(count - 1) - 1]);
    for (int64_t k = start; k < end; k += form.block) {
      const int64_t seen = std::min(form.block, end - k);
      for (int64_t i = 0; i < seen; ++i) at[i] = mask[k + i] ? int32_t(k + i) : INT32_MAX;
      Block block = keys(set, k, seen, room);
      if (k + form.block >= end) block.last();
      for (int64_t panel = 0; panel < count; ++panel) {
        step(block, panel, k, seen, sums);
        block.last();
      }
    }
  }

  void step(const Block& block, int64_t panel, int64_t k, int64_t seen, const Sums& sums) {
    const int64_t lanes = form.lanes, row = panel * lanes, used = rows(panel);
    seen = std::min<int64_t>(seen, limit[row + used - 1] - k);
    if (seen <= 0) return;
    form.score(block.first, block.second, block.next_keys, q + row * form.width, s, int32_t(seen));
    form.soften(s, at, limit + row, sums.most + row, sums.total + row, carry, int32_t(seen));
    form.weigh(s, block.values, block.next_values, sums.acc + row * form.step(), carry, int32_t(seen), int32_t(used));
  }
};

// Attends every row of every set.
//   query(set, row)                    the Parts of its query
//   keys(set, start, count, room)      the Block of those keys, expanded into room if need be
//   ask(set, start, count)             asks for a stretch's first block, which none before it could ask for
//   result(set, row)                   where the row's `value` numbers go
template <class Query, class Keys, class Ask, class Result>
void attend(Call& call, const Form& form, const Job& job, Query&& query, Keys&& keys, Ask&& ask, Result&& result) {
  const Division d(form, job);
  const int64_t step = Sums::size(form, d.panels);
  float* parts = d.splits > 1 ? call.scratch<float>(job.sets * d.splits * step) : nullptr;
  if (d.splits > 1 && !parts) return;
  bool failed = false;
  call.parallel(job.sets * d.groups * d.splits, [&](size_t task) {
    const int64_t split = task % d.splits, group = task / d.splits % d.groups, set = task / d.splits / d.groups;
    const int64_t first = group * d.group, count = std::min(d.group, d.panels - first), start = split * d.stretch;
    const int64_t size = Task::size(form, count);
    const Memory memory = allocate(size + (parts ? 0 : Sums::size(form, count)));
    if (!memory) return __atomic_store_n(&failed, true, __ATOMIC_RELAXED);
    const Sums sums = parts ? Sums(parts + (set * d.splits + split) * step, form, d.panels).from(first, form)
                            : Sums(memory.get() + size, form, count);
    const int64_t stop = std::min(job.keys, start + d.stretch);
    Task work(form, job, set, first, count, start, stop, memory.get());
    ask(set, start, std::min(form.block, stop - start));
    work.begin(query, sums);
    work.run(keys, sums);
    if (parts) return;
    const int64_t at = first * form.lanes, rows = std::min(count * form.lanes, job.rows - at);
    for (int64_t row = 0; row < rows; ++row) sums.merge(row, form, result(set, at + row), 0, 1);
  });
  if (failed) return call.fail("no memory for a task's queries, keys and sums");
  if (!parts) return;
  const int64_t chunks = (job.rows + kMergeRows - 1) / kMergeRows;
  call.parallel(job.sets * chunks, [&](size_t task) {
    const int64_t set = task / chunks, first = task % chunks * kMergeRows;
    const Sums sums(parts + set * d.splits * step, form, d.panels);
    for (int64_t row = first; row < std::min(job.rows, first + kMergeRows); ++row)
      sums.merge(row, form, result(set, row), step, d.splits);
  });
}

}  // namespace moec
