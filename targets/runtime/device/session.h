// What the files that make up a session's execution provider share.
#pragma once

#include "launch.h"
#include "queue.h"

namespace moec {

struct Provider;
struct Captured;  // a run as the target records it

// One of the provider's kernels; of those without a row, onnxruntime's copies between the host and the device.
struct State {
  Provider* provider;
  const Row* row;
};

struct Provider : OrtEp {
  Queue queue;
  Pool *device, *host;
  bool graphs;
  bool clocked;  // each kernel by itself
  OrtKernelRegistry* registry;
  State* states;  // one for every row, and one for copies
  Captured* captured;
  Captured* now;  // what this run captures
  int serials, id;
  int kernels;  // this run's so far
  bool failed;  // one of them
};

inline Provider& of(OrtEp* ep) { return *static_cast<Provider*>(ep); }
inline const Provider& of(const OrtEp* ep) { return *static_cast<const Provider*>(ep); }

// OrtEp's functions: in kernels.cc
OrtStatus* get_registry(OrtEp* ep, const OrtKernelRegistry** result);
OrtStatus* get_capability(OrtEp* ep, const OrtGraph* graph, OrtEpGraphSupportInfo* support);
// and in runs.cc, which is the target's.
OrtStatus* start_run(OrtEp* ep, const OrtRunOptions* options);
OrtStatus* stop_run(OrtEp* ep, const OrtRunOptions* options, bool wait);
OrtStatus* synchronize(OrtEp* ep);
bool is_captured(const OrtEp* ep, int id);
OrtStatus* replay(OrtEp* ep, int id);
OrtStatus* drop_graph(OrtEp* ep, int id);
void drop_graphs(Provider& provider);

}  // namespace moec
