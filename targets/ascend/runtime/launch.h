// What generated code launches kernels with. One Run is one call of one program: its sizes, buffers and stream.
//
// A step of the generated code asks the Run for sizes and pointers and launches one function. After a failure
// nothing more is launched; the call carries the sentence. Of one function that is:
//
//   extern "C" void norm_5b(void*, void*, int64_t, int64_t, int64_t, .., int32_t, float, int32_t, ..);
//   static void block0(const Argument* a, const int32_t* at) {  // MLIR's memory: two pointers, offset, size, stride
//     norm_5b(0, 0, 0, 0, 1, 0, 0, 0, 0, 1,                     // locks and a workspace, which no CPU needs
//             a[0].memory, a[0].memory, 0, 0, 1, a[1].memory, a[1].memory, 0, 0, 1, a[2].integer, a[3].real,
//             at[0], at[1], at[2], at[3], at[4], at[5]);
//   }
//   static Function function0{"norm_5b", false, 0, 0, false, block0};
//   static void step0_1_0(Run& run) {
//     const int64_t m = run.size(kM);
//     const Argument arguments[] = {run.x(0), run.y(0), int32_t(m), float(run.real(0))};
//     run.launch(function0, {40, 1, 1}, arguments);
//   }
#pragma once

#include <cstddef>
#include <cstdint>

#include "program.h"

namespace moec {

// What a function gets, in the order of its parameters: memory, a size (i32) or a real (f32).
struct Argument {
  enum Kind { kMemory, kInteger, kReal } kind;
  union {
    void* memory;
    int32_t integer;
    float real;
  };
  Argument(void* memory) : kind(kMemory), memory(memory) {}
  Argument(int32_t integer) : kind(kInteger), integer(integer) {}
  Argument(float real) : kind(kReal), real(real) {}
};

// One block of a kernel on this CPU. place: the grid's sizes x, y, z, then where in it the block is: x, y, z.
using Block = void(const Argument* arguments, const int32_t* place);

// A kernel: for the NPU in ascend/NAME.o beside the library, read when it is first launched; for this CPU in the
// library itself, as a function of MLIR's, which a block of the generated table calls.
struct Function {
  const char* name;
  bool mixed;         // whether it needs cube cores; else vector cores alone
  int64_t workspace;  // bytes of the NPU's memory for each block, beside its operands
  int64_t locks;      // eight bytes each, zero at first, that its blocks order themselves by
  bool serial;        // on this CPU block after block: they add to the same memory
  Block* block;       // null where the library was linked without code for this CPU
  void* binary = nullptr;  // once it is loaded, as the driver knows it
  void* handle = nullptr;
  Function* next = nullptr;  // of those loaded
};

class Run : public Ports {
 public:
  Run(Call& call, const int64_t (&sizes)[kSizes], void* const* results) : Ports(call, sizes, results) {}

  // Nothing is launched when an extent of the grid is 0.
  template <int count>
  void launch(Function& function, const Extent& grid, const Argument (&arguments)[count]) {
    launch(function, grid, arguments, count);
  }

  void run() { Ports::run(*this); }

 private:
  void launch(Function& function, const Extent& grid, const Argument* arguments, int count);
};

// Frees what launches loaded; nothing may run meanwhile. A later launch loads again.
void unload_functions();

// Given by the generated table: the SoC kernels are compiled for, such as Ascend910B3.
extern const char* const soc_name;

}  // namespace moec
