// What generated code launches kernels with. One Run is one call of one program: its sizes, buffers and stream.
//
// A step of the generated code asks the Run for sizes and pointers, encodes tensor maps and launches one function.
// After a failure nothing more is launched; the call carries the sentence.
#pragma once

#include <cstddef>
#include <cstdint>

#include "program.h"

struct CUfunc_st;
struct CUmod_st;
struct CUstream_st;

namespace moec {

// A kernel in a cubin that is part of the library. Loaded when it is first launched.
struct Function {
  const unsigned char* cubin;
  const char* name;
  CUmod_st* module = nullptr;
  CUfunc_st* function = nullptr;
  int64_t shared = 0;        // bytes of dynamic shared memory it is allowed so far
  Function* next = nullptr;  // of those loaded
};

// A tensor map as kernels get it: by value, aligned.
struct alignas(64) TensorMap {
  uint64_t words[16];
};

// What cuTensorMapEncodeTiled is told. Axes are inner first; strides in bytes from the second axis on; numbers of
// enums are the driver's.
struct Tiling {
  int type;
  int rank;
  int64_t shape[5];
  int64_t strides[5];
  int64_t box[5];
  int64_t steps[5];
  int interleave, swizzle, promotion, fill;
};

class Run : public Ports {
 public:
  Run(Call& call, const int64_t (&sizes)[kSizes], void* const* results);

  // A map of no elements is all zeros.
  TensorMap map(void* data, const Tiling& tiling);

  // Nothing is launched when an extent of the grid is 0. With overlap the function may start before what precedes
  // it on the stream is done (programmatic stream serialization).
  void launch(Function& function, const Extent& grid, const Extent& block, int64_t shared, bool overlap,
              void** arguments);

  void run() { Ports::run(*this); }

 private:
  CUstream_st* stream_;
};

// Frees what launches loaded; nothing may run meanwhile. A later launch loads again.
void unload_functions();

// Given by the generated table: the architecture kernels are compiled for.
extern const char* const sm_name;
extern const int sm_major, sm_minor;

}  // namespace moec
