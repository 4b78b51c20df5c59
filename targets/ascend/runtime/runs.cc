// Runs of a session: timed. None is recorded, whatever a session wishes.
#include "provider.h"
#include "session.h"

namespace moec {

OrtStatus* expect_recordable(bool, bool) { return nullptr; }

OrtStatus* synchronize(OrtEp* ep) {
  device::Current current;
  return said(device::driver.synchronize(of(ep).queue.stream), device::kFailed);
}

bool is_captured(const OrtEp*, int) { return false; }

OrtStatus* start_run(OrtEp* ep, const OrtRunOptions*) {
  Provider& p = of(ep);
  device::Current current;
  p.device->settle();
  p.kernels = 0;
  p.failed = false;
  mark_start(p.queue.stream);
  return nullptr;
}

OrtStatus* stop_run(OrtEp* ep, const OrtRunOptions*, bool wait) {
  device::Current current;
  mark_stop(of(ep).queue.stream);
  return wait ? synchronize(ep) : nullptr;
}

OrtStatus* replay(OrtEp*, int) {
  return ort::CreateStatus(ort::kInvalid, "moec: no run was captured under this gpu_graph_id");
}

OrtStatus* drop_graph(OrtEp*, int) { return nullptr; }

void drop_graphs(Provider&) {}

}  // namespace moec
