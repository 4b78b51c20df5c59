// The NPU simulated: its memory is the host's, and all that is asked of a stream is done at once.
#include "simulated.h"

#include <pthread.h>
#include <sched.h>

#include <cstdlib>
#include <cstring>
#include <ctime>

#include "device.h"

namespace moec {
namespace ascend {
namespace {

constexpr Result kNoMemory = 1, kNoClock = 2;
constexpr size_t kAligned = 512;
constexpr int kMostThreads = 16;
constexpr int64_t kWorthThreads = 500000;  // nanoseconds of blocks, before others help

Result allocate(void** made, size_t bytes) {
  *made = aligned_alloc(kAligned, (bytes + kAligned - 1) / kAligned * kAligned);
  return *made ? 0 : kNoMemory;
}

// A stream or an event, of which there is nothing to know.
Result make(void** made, unsigned) {
  *made = calloc(1, 1);
  return *made ? 0 : kNoMemory;
}

Result release(void* data) { return free(data), 0; }

// Nanoseconds.
int64_t now() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return int64_t(time.tv_sec) * 1000000000 + time.tv_nsec;
}

struct Grid {
  const Function& function;
  const Argument* arguments;
  int32_t x, y, z;
  int64_t count, next;
};

// Runs the next block. False where none is left.
bool step(Grid& grid) {
  const int64_t i = __atomic_fetch_add(&grid.next, 1, __ATOMIC_RELAXED);
  if (i >= grid.count) return false;
  const int64_t plane = int64_t(grid.x) * grid.y;
  const int32_t place[] = {grid.x, grid.y, grid.z, int32_t(i % grid.x), int32_t(i % plane / grid.x), int32_t(i / plane)};
  grid.function.block(grid.arguments, place);
  moec_block_done();
  return true;
}

void* work(void* grid) {
  while (step(*static_cast<Grid*>(grid))) {}
  moec_chip_off();
  return nullptr;
}

int processors() {
  cpu_set_t set;
  return sched_getaffinity(0, sizeof set, &set) ? 1 : CPU_COUNT(&set);
}

}  // namespace

const Driver of_cpu = {
    allocate,
    release,
    [](void** made, size_t bytes, unsigned) { return allocate(made, bytes); },
    release,
    [](void* to, bool, const void* from, bool, size_t bytes, Stream) { return memcpy(to, from, bytes), 0; },
    [](void* data, unsigned char byte, size_t bytes, Stream) { return memset(data, byte, bytes), 0; },
    make,
    release,
    [](Stream) { return 0; },
    [](Stream, Event, unsigned) { return 0; },
    make,
    release,
    [](Event, Stream) { return 0; },
    [](Event) { return 0; },
    [](float*, Event, Event) { return kNoClock; },
};

void simulate(const Function& function, const Extent& extent, const Argument* arguments) {
  Grid grid{function, arguments, int32_t(extent.x), int32_t(extent.y), int32_t(extent.z),
            extent.x * extent.y * extent.z, 0};
  const int64_t start = now();
  while (now() - start < kWorthThreads && step(grid)) {}
  const int64_t left = grid.count - grid.next, most = function.serial ? 1 : processors();
  pthread_t threads[kMostThreads];
  int others = 0;
  // A thread that cannot be had leaves its blocks to the rest.
  while (others < kMostThreads && others + 1 < most && others + 1 < left &&
         !pthread_create(&threads[others], nullptr, work, &grid))
    ++others;
  work(&grid);
  while (others) pthread_join(threads[--others], nullptr);
}

}  // namespace ascend
}  // namespace moec
