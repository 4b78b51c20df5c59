// Runs of a session: timed, captured as CUDA graphs and replayed.
#include <cstdlib>

#include "provider.h"
#include "session.h"

namespace moec {

// Until it is captured, exec is null.
struct Captured {
  int id;       // gpu_graph_id
  int serial;   // as the pool knows it
  int runs;     // before it was captured
  int kernels;  // that the last of them ran
  cuda::GraphExec exec;
  Captured* next;
};

namespace {

// In the first kernels are loaded, in the second onnxruntime lays memory out as it will from then on. The graph takes
// that memory over, so that none has to be got while it is captured.
constexpr int kRunsBefore = 2;
constexpr int kNoGraph = -1;

Captured* find(const Provider& p, int id) {
  Captured* found = p.captured;
  while (found && found->id != id) found = found->next;
  return found;
}

Captured* find_or_add(Provider& p, int id) {
  Captured* found = find(p, id);
  if (found) return found;
  found = static_cast<Captured*>(calloc(1, sizeof(Captured)));
  if (!found) return nullptr;
  found->id = id;
  found->serial = ++p.serials;
  found->next = p.captured;
  return p.captured = found;
}

// Ends the capture. A run that failed, or ran fewer kernels than the one before, leaves no graph.
OrtStatus* finish_capture(Provider& p) {
  Captured& graph = *p.now;
  cuda::Graph recorded = nullptr;
  cuda::Result result = cuda::driver.end_capture(p.queue.stream, &recorded);
  p.now = nullptr;
  p.queue.capturing = false;
  p.device->end_capture();
  const bool whole = !p.failed && p.kernels == graph.kernels;
  if (!result && whole) result = cuda::driver.instantiate(&graph.exec, recorded, 0);
  if (recorded) cuda::driver.destroy_graph(recorded);
  if (!result && whole) return nullptr;
  graph.exec = nullptr;
  graph.runs = 0;
  p.device->release_graph(graph.serial);
  if (result) return said(result, "the run cannot become a CUDA graph");
  return ort::CreateStatus(ort::kFail, "moec: the run failed while it was captured as a CUDA graph");
}

OrtStatus* replay(Provider& p, const Captured& graph) {
  mark_start(p.queue.stream);
  OrtStatus* status = said(cuda::driver.launch_graph(graph.exec, p.queue.stream), "a CUDA graph cannot be launched");
  mark_stop(p.queue.stream);
  return status;
}

}  // namespace

OrtStatus* expect_recordable(bool from_host, bool to_host) {
  if (!from_host && !to_host) return nullptr;
  return ort::CreateStatus(ort::kInvalid,
                           "moec: a CUDA graph reads and writes the GPU's memory only; bind all inputs and outputs "
                           "there, or open the session without \"graph\"");
}

OrtStatus* synchronize(OrtEp* ep) {
  cuda::Current current;
  return said(cuda::driver.synchronize(of(ep).queue.stream), "the GPU failed");
}

bool is_captured(const OrtEp* ep, int id) {
  const Captured* graph = find(of(ep), id);
  return graph && graph->exec;
}

OrtStatus* start_run(OrtEp* ep, const OrtRunOptions* options) {
  Provider& p = of(ep);
  cuda::Current current;
  p.device->settle();
  const char* id = options ? ort::GetRunConfigEntry(options, "gpu_graph_id") : nullptr;
  p.id = id ? atoi(id) : 0;
  p.kernels = 0;
  p.failed = false;
  p.now = nullptr;
  Captured* graph = p.graphs && p.id != kNoGraph ? find_or_add(p, p.id) : nullptr;
  if (!graph || graph->exec || graph->runs < kRunsBefore) return mark_start(p.queue.stream), nullptr;
  const cuda::Result result = cuda::driver.begin_capture(p.queue.stream, cuda::kThreadLocal);
  if (result) return said(result, "no graph can be captured");
  p.device->begin_capture(graph->serial);
  p.queue.capturing = true;
  p.now = graph;
  return nullptr;
}

OrtStatus* stop_run(OrtEp* ep, const OrtRunOptions*, bool wait) {
  Provider& p = of(ep);
  cuda::Current current;
  Captured* graph = p.graphs ? find(p, p.id) : nullptr;
  if (p.now) {
    if (OrtStatus* status = finish_capture(p)) return status;
    if (OrtStatus* status = replay(p, *graph)) return status;
  } else {
    mark_stop(p.queue.stream);
    if (graph && !p.failed) ++graph->runs, graph->kernels = p.kernels;
  }
  return wait ? synchronize(ep) : nullptr;
}

OrtStatus* replay(OrtEp* ep, int id) {
  Provider& p = of(ep);
  cuda::Current current;
  Captured* graph = find(p, id);
  if (!graph || !graph->exec)
    return ort::CreateStatus(ort::kInvalid, "moec: no run was captured under this gpu_graph_id");
  if (OrtStatus* status = replay(p, *graph)) return status;
  return synchronize(ep);
}

OrtStatus* drop_graph(OrtEp* ep, int id) {
  Provider& p = of(ep);
  cuda::Current current;
  for (Captured** at = &p.captured; *at; at = &(*at)->next) {
    Captured* graph = *at;
    if (graph->id != id) continue;
    cuda::driver.synchronize(p.queue.stream);
    if (graph->exec) cuda::driver.destroy_exec(graph->exec);
    p.device->release_graph(graph->serial);
    *at = graph->next;
    free(graph);
    break;
  }
  return nullptr;
}

void drop_graphs(Provider& provider) {
  while (provider.captured) drop_graph(&provider, provider.captured->id);
}

}  // namespace moec
