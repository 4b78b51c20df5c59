// A kernel's blocks run on this CPU.
#pragma once

#include "launch.h"

namespace moec {
namespace ascend {

// Runs all blocks of a grid, on several threads unless the function is serial.
void simulate(const Function& function, const Extent& grid, const Argument* arguments);

}  // namespace ascend
}  // namespace moec

// Of on_chip.cc: a block has run, so that its memory on the chip is free again; this thread runs no more of them.
extern "C" void moec_block_done();
extern "C" void moec_chip_off();
