#include "memory.h"

#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "device.h"

namespace moec {
namespace {

constexpr size_t kSmallest = 512;
constexpr size_t kIdleLimit = size_t(256) << 20;  // bytes that may lie idle when more has to be asked for

struct Guard {
  explicit Guard(pthread_mutex_t& mutex) : mutex(mutex) { pthread_mutex_lock(&mutex); }
  ~Guard() { pthread_mutex_unlock(&mutex); }
  pthread_mutex_t& mutex;
};

}  // namespace

struct Pool::Block {
  char* data;
  size_t bytes;
  int graph;    // whose it is: 0 anybody's
  bool live;    // handed out
  Block* next;  // of those that lie idle
};

Pool* Pool::make(bool on_host) {
  auto pool = static_cast<Pool*>(calloc(1, sizeof(Pool)));
  if (!pool) return nullptr;
  pthread_mutex_init(&pool->mutex_, nullptr);
  pool->holders_ = 1;
  pool->on_host_ = on_host;
  return pool;
}

Pool* Pool::hold() {
  __atomic_fetch_add(&holders_, 1, __ATOMIC_RELAXED);
  return this;
}

void Pool::release() {
  if (__atomic_sub_fetch(&holders_, 1, __ATOMIC_ACQ_REL)) return;
  device::Current current;
  for (size_t i = 0; i < count_; ++i) {
    on_host_ ? device::driver.free_host(blocks_[i]->data) : device::driver.free(blocks_[i]->data);
    free(blocks_[i]);
  }
  free(blocks_);
  pthread_mutex_destroy(&mutex_);
  free(this);
}

// Sizes in steps of an eighth, so that calls of like sizes find what others left.
size_t Pool::rounded(size_t bytes) const {
  size_t step = kSmallest;
  while (settled_ && step * 16 <= bytes) step *= 2;
  return (bytes + step - 1) & ~(step - 1);
}

void* Pool::take(size_t bytes) {
  if (!bytes) return nullptr;
  Guard guard(mutex_);
  const int graph = capturing_;
  Block* block = find(bytes, graph);
  if (!block) block = allocate(rounded(bytes));
  if (!block) return nullptr;
  block->live = true;
  if (graph) block->graph = graph;
  return block->data;
}

// The smallest idle block that is large enough and not much too large; of a graph's own, any.
Pool::Block* Pool::find(size_t bytes, int graph) {
  Block** best = nullptr;
  for (Block** at = &idle_; *at; at = &(*at)->next) {
    const Block& block = **at;
    const bool ours = !block.graph || block.graph == graph;
    if (ours && block.bytes >= bytes && block.bytes / 2 <= bytes + kSmallest && (!best || block.bytes < (*best)->bytes))
      best = at;
  }
  if (!best) return nullptr;
  Block* block = *best;
  *best = block->next;
  idle_bytes_ -= block->bytes;
  return block;
}

Pool::Block* Pool::allocate(size_t size) {
  if (idle_bytes_ > kIdleLimit && !capturing_) trim();
  auto block = static_cast<Block*>(calloc(1, sizeof(Block)));
  if (!block) return nullptr;
  block->bytes = size;
  block->data = static_cast<char*>(obtain(size));
  if (!block->data && idle_ && !capturing_) {
    trim();
    block->data = static_cast<char*>(obtain(size));
  }
  if (block->data && add(block)) return block;
  if (block->data) on_host_ ? device::driver.free_host(block->data) : device::driver.free(block->data);
  free(block);
  return nullptr;
}

void* Pool::obtain(size_t size) {
  device::Current current;
  device::Unrestricted unrestricted;
  void* data = nullptr;
  const device::Result result =
      on_host_ ? device::driver.allocate_host(&data, size, 0) : device::driver.allocate(&data, size);
  return result ? nullptr : data;
}

bool Pool::add(Block* block) {
  if (count_ == room_) {
    const size_t room = room_ ? 2 * room_ : 64;
    auto larger = static_cast<Block**>(realloc(blocks_, room * sizeof(Block*)));
    if (!larger) return false;
    blocks_ = larger;
    room_ = room;
  }
  size_t at = count_++;
  for (; at && blocks_[at - 1]->data > block->data; --at) blocks_[at] = blocks_[at - 1];
  blocks_[at] = block;
  return true;
}

void Pool::give(void* data) {
  if (!data) return;
  Guard guard(mutex_);
  size_t low = 0, high = count_;
  while (low < high) {
    const size_t middle = (low + high) / 2;
    if (blocks_[middle]->data < data) low = middle + 1;
    else high = middle;
  }
  if (low == count_ || blocks_[low]->data != data || !blocks_[low]->live) return;  // not ours
  Block* block = blocks_[low];
  block->live = false;
  block->next = idle_;
  idle_ = block;
  idle_bytes_ += block->bytes;
}

// Gives the driver what is idle and no graph's.
void Pool::trim() {
  device::Current current;
  device::Unrestricted unrestricted;
  Block* kept = nullptr;
  idle_bytes_ = 0;
  for (Block* block = idle_; block;) {
    Block* next = block->next;
    if (block->graph) {
      block->next = kept;
      kept = block;
      idle_bytes_ += block->bytes;
    } else {
      block->next = nullptr;
      on_host_ ? device::driver.free_host(block->data) : device::driver.free(block->data);
      block->data = nullptr;
    }
    block = next;
  }
  idle_ = kept;
  size_t left = 0;
  for (size_t i = 0; i < count_; ++i)
    if (blocks_[i]->data) blocks_[left++] = blocks_[i];
    else free(blocks_[i]);
  count_ = left;
}

void Pool::begin_capture(int graph) {
  Guard guard(mutex_);
  capturing_ = graph;
}

void Pool::end_capture() {
  Guard guard(mutex_);
  capturing_ = 0;
}

void Pool::release_graph(int graph) {
  Guard guard(mutex_);
  for (size_t i = 0; i < count_; ++i)
    if (blocks_[i]->graph == graph) blocks_[i]->graph = 0;
}

}  // namespace moec
