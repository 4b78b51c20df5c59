// Memory of the device, and of the host where the device reaches it, handed out again without asking the driver.
//
// A pool serves one stream: what is given back while kernels that use it still wait may be handed out at once, since
// whatever uses it next waits behind them. What a captured graph uses stays the graph's: replays write there.
#pragma once

#include <pthread.h>

#include <cstddef>

namespace moec {

class Pool {
 public:
  // Null without memory. Whoever holds it calls release(); with the last, all goes back to the driver.
  static Pool* make(bool on_host);
  Pool* hold();
  void release();

  // 256-byte aligned or more; null if there is no more. No more is taken than asked for until settle(): what is
  // taken before that lives long, what comes later has many sizes.
  void* take(size_t bytes);
  void give(void* data);
  void settle() { settled_ = true; }

  // Until end_capture, what is taken is that graph's.
  void begin_capture(int graph);
  void end_capture();
  // The graph is gone; what it used is anybody's.
  void release_graph(int graph);

 private:
  struct Block;

  size_t rounded(size_t bytes) const;
  Block* find(size_t bytes, int graph);
  Block* allocate(size_t size);
  bool add(Block* block);
  void* obtain(size_t size);
  void trim();

  pthread_mutex_t mutex_;
  int holders_;
  bool on_host_, settled_;
  Block** blocks_;  // all, by address
  size_t count_, room_;
  Block* idle_;
  size_t idle_bytes_;
  int capturing_;  // the graph, or 0
};

}  // namespace moec
