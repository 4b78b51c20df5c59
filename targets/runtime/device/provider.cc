#include "provider.h"

#include <cstdlib>

#include "session.h"

namespace moec {
namespace {

void describe(Provider& p) {
  p.version = ort::kEpVersion;
  p.GetName = [](const OrtEp*) { return device::kProvider; };
  p.GetCapability = get_capability;
  p.OnRunStart = start_run;
  p.OnRunEnd = stop_run;
  p.CreateAllocator = [](OrtEp* ep, const OrtMemoryInfo* info, OrtAllocator** made) {
    const bool on_host = ort::MemoryInfoGetDeviceMemType(info) == ort::kHostAccessible;
    return make_allocator(on_host ? of(ep).host : of(ep).device, info, made);
  };
  p.CreateSyncStreamForDevice = [](OrtEp* ep, const OrtMemoryDevice*, OrtSyncStreamImpl** made) {
    return make_stream(of(ep).queue.stream, &of(ep).queue, made);
  };
  p.GetKernelRegistry = get_registry;
  p.IsConcurrentRunSupported = [](OrtEp*, bool* supported) -> OrtStatus* { return *supported = false, nullptr; };
  p.Sync = synchronize;
  p.IsGraphCaptureEnabled = [](const OrtEp* ep) { return of(ep).graphs; };
  p.IsGraphCaptured = is_captured;
  p.ReplayGraph = replay;
  p.ReleaseCapturedGraph = drop_graph;
}

}  // namespace

OrtStatus* make_provider(bool graphs, bool clocked, OrtEp** made) {
  device::Current current;
  auto* p = static_cast<Provider*>(calloc(1, sizeof(Provider)));
  if (!p) return ort::CreateStatus(ort::kFail, "moec: out of memory");
  describe(*p);
  p->graphs = graphs;
  p->clocked = clocked;
  p->states = static_cast<State*>(calloc(row_count + 1, sizeof(State)));
  p->device = Pool::make(false);
  p->host = Pool::make(true);
  const bool made_all = p->states && p->device && p->host;
  OrtStatus* status = made_all ? nullptr : ort::CreateStatus(ort::kFail, "moec: out of memory");
  if (!status) status = open(p->queue);
  if (status) release_provider(p);
  else *made = p;
  return status;
}

void release_provider(OrtEp* ep) {
  Provider& p = of(ep);
  device::Current current;
  if (p.queue.stream) device::driver.synchronize(p.queue.stream);
  drop_graphs(p);
  close(p.queue);
  if (p.registry) ort::ReleaseKernelRegistry(p.registry);
  if (p.device) p.device->release();
  if (p.host) p.host->release();
  free(p.states);
  free(&p);
}

}  // namespace moec
