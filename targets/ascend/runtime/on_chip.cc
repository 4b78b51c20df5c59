// What kernels compiled for the host's CPU call: memory of the chip, poisoned, and copies between memories.
#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace {

constexpr size_t kLine = 64;
constexpr size_t kSmallest = 1 << 20;  // of a piece of the host's memory

struct Piece {
  Piece* next;   // the one before it, which is full
  size_t bytes;  // behind the first line
  size_t used;
};
static_assert(sizeof(Piece) <= kLine, "what a piece holds begins on its second line");

// This thread's: the newest piece first.
thread_local Piece* chip = nullptr;

size_t rounded(size_t bytes) { return (bytes + kLine - 1) / kLine * kLine; }

// A piece with room for so many bytes.
Piece* grown(size_t bytes) {
  size_t size = chip ? 2 * chip->bytes : kSmallest;
  while (size < bytes) size *= 2;
  auto* piece = static_cast<Piece*>(aligned_alloc(kLine, kLine + size));
  if (!piece) abort();  // a block cannot fail
  *piece = {chip, size, 0};
  return chip = piece;
}

struct Ranked {
  int64_t rank;
  struct View {
    char *allocated, *aligned;
    int64_t offset;
    int64_t sizes[];  // rank of them, then rank strides
  }* view;
};

// Rows along the last axis where both sides have them in one piece.
void copy(int64_t rank, const int64_t* sizes, const int64_t* from_strides, const int64_t* to_strides, int64_t size,
          const char* from, char* to) {
  if (!rank) return void(memcpy(to, from, size_t(size)));
  if (rank == 1 && *from_strides == 1 && *to_strides == 1) return void(memcpy(to, from, size_t(*sizes * size)));
  for (int64_t i = 0; i < *sizes; ++i)
    copy(rank - 1, sizes + 1, from_strides + 1, to_strides + 1, size, from + i * *from_strides * size,
         to + i * *to_strides * size);
}

}  // namespace

#define SHOWN __attribute__((visibility("default")))

extern "C" {

// Memory of a block: until moec_block_done nothing of it is given back. It holds NaN where nobody wrote.
void* _mlir_memref_to_llvm_alloc(size_t bytes) {
  bytes = rounded(bytes);
  Piece* piece = chip && chip->bytes - chip->used >= bytes ? chip : grown(bytes);
  char* data = reinterpret_cast<char*>(piece) + kLine + piece->used;
  piece->used += bytes;
  return memset(data, 0xFF, bytes);
}

void* _mlir_memref_to_llvm_aligned_alloc(size_t, size_t bytes) { return _mlir_memref_to_llvm_alloc(bytes); }
void _mlir_memref_to_llvm_free(void*) {}

void memrefCopy(int64_t size, Ranked* from, Ranked* to) {
  const int64_t rank = from->rank, *sizes = from->view->sizes;
  copy(rank, sizes, sizes + rank, to->view->sizes + rank, size, from->view->aligned + from->view->offset * size,
       to->view->aligned + to->view->offset * size);
}

// A block has run: its memory is free again. The largest piece is kept for the next one.
SHOWN void moec_block_done() {
  while (Piece* piece = chip ? chip->next : nullptr) {
    chip->next = piece->next;
    free(piece);
  }
  if (chip) chip->used = 0;
}

// This thread runs no more blocks.
SHOWN void moec_chip_off() {
  while (Piece* piece = chip) {
    chip = piece->next;
    free(piece);
  }
}

}  // extern "C"
