// The execution provider of one session.
#pragma once

#include "launch.h"
#include "queue.h"

namespace moec {

// graphs: whether runs are captured as graphs and replayed, by gpu_graph_id. clocked: whether kernels run one by one,
// each waited for, so that counters hold what the device took for them.
OrtStatus* make_provider(bool graphs, bool clocked, OrtEp** made);
void release_provider(OrtEp* provider);

// Events around what the device does for one run. Marks of several sessions at once overwrite each other.
void mark_start(device::Stream stream);
void mark_stop(device::Stream stream);

// Microseconds between them; waits for the second. -1 when there was none.
float elapsed_us();

// Frees those events, and the memory that moec_launch kept.
void release_direct();

}  // namespace moec
