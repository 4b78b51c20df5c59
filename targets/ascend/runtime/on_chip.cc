// What kernels compiled for the host's CPU call: memory of the chip, poisoned, and copies between memories.
#include <pthread.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace {

constexpr size_t kLine = 64;

struct Piece {
  Piece* next;
  size_t bytes;
};

struct Chip {
  Piece* pieces = nullptr;
  size_t bytes = 0, peak = 0, copied = 0;
};

thread_local Chip chip;

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

extern "C" {

// Memory of a block: until moec_block_done nothing of it is given back. It holds NaN where nobody wrote.
void* _mlir_memref_to_llvm_alloc(size_t bytes) {
  auto* piece = static_cast<Piece*>(aligned_alloc(kLine, (sizeof(Piece) + kLine - 1 + bytes + kLine - 1) / kLine * kLine));
  if (!piece) abort();
  memset(static_cast<void*>(piece), 0xFF, kLine + bytes);
  piece->next = chip.pieces;
  piece->bytes = bytes;
  chip.pieces = piece;
  chip.bytes += bytes;
  if (chip.bytes > chip.peak) chip.peak = chip.bytes;
  return reinterpret_cast<char*>(piece) + kLine;
}

void* _mlir_memref_to_llvm_aligned_alloc(size_t, size_t bytes) { return _mlir_memref_to_llvm_alloc(bytes); }
void _mlir_memref_to_llvm_free(void*) {}

void memrefCopy(int64_t size, Ranked* from, Ranked* to) {
  const int64_t rank = from->rank, *sizes = from->view->sizes;
  int64_t elements = 1;
  for (int64_t i = 0; i < rank; ++i) elements *= sizes[i];
  chip.copied += size_t(elements * size);
  copy(rank, sizes, sizes + rank, to->view->sizes + rank, size, from->view->aligned + from->view->offset * size,
       to->view->aligned + to->view->offset * size);
}

// A block has run: its memory is free again.
__attribute__((visibility("default"))) void moec_block_done() {
  while (Piece* piece = chip.pieces) {
    chip.pieces = piece->next;
    free(piece);
  }
  chip.bytes = 0;
}

}  // extern "C"
