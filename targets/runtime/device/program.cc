#include "launch.h"

namespace moec {

void Ports::run(Run& self) {
  const auto& program = *static_cast<const Program*>(call_.row.functions[0]);
  if (program.buffers > kMaxScratch)
    return call_.fail("%d pieces of scratch are more than the %d there can be", program.buffers, kMaxScratch);
  for (int i = 0; i < program.buffers && !call_.failed(); ++i) {
    const int64_t bytes = program.scratch(self, i);
    if (bytes) scratch_[i] = call_.scratch(size_t(bytes));
  }
  for (int i = 0; i < program.count && !call_.failed(); ++i) program.steps[i](self);
}

}  // namespace moec
