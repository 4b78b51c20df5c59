#include "queue.h"

#include <cstdio>
#include <cstdlib>

#include "lock.h"

namespace moec {
namespace {

Queue* queues = nullptr;
bool listing = false;

template <class T>
T* zeroed() {
  return static_cast<T*>(calloc(1, sizeof(T)));
}

OrtStatus* no_memory() { return ort::CreateStatus(ort::kFail, "moec: out of memory"); }

// --- streams and their events --------------------------------------------------------------------------------

struct Notification : OrtSyncNotificationImpl {
  device::Event event;
  device::Stream stream;
};

Notification* of(OrtSyncNotificationImpl* impl) { return static_cast<Notification*>(impl); }

OrtStatus* notify(device::Stream stream, OrtSyncNotificationImpl** made) {
  device::Current current;
  auto* n = zeroed<Notification>();
  if (!n) return no_memory();
  n->version = ort::kEpVersion;
  n->stream = stream;
  n->Release = [](OrtSyncNotificationImpl* impl) {
    device::Current current;
    device::driver.destroy_event(of(impl)->event);
    free(of(impl));
  };
  n->Activate = [](OrtSyncNotificationImpl* impl) {
    device::Current current;
    return said(device::driver.record(of(impl)->event, of(impl)->stream), "an event cannot be recorded");
  };
  n->WaitOnDevice = [](OrtSyncNotificationImpl* impl, OrtSyncStream* consumer) {
    device::Current current;
    auto stream = static_cast<device::Stream>(ort::SyncStream_GetHandle(consumer));
    return said(device::driver.wait_event(stream, of(impl)->event, 0), "a stream cannot wait for another");
  };
  n->WaitOnHost = [](OrtSyncNotificationImpl* impl) {
    device::Current current;
    return said(device::driver.wait_host(of(impl)->event), device::kFailed);
  };
  if (OrtStatus* status = said(device::driver.create_event(&n->event, device::kUntimed), "an event cannot be made")) {
    free(n);
    return status;
  }
  *made = n;
  return nullptr;
}

struct SyncStream : OrtSyncStreamImpl {
  device::Stream stream;
  Queue* queue;
};

SyncStream* of(OrtSyncStreamImpl* impl) { return static_cast<SyncStream*>(impl); }

// --- copies --------------------------------------------------------------------------------------------------

bool is_capturing(device::Stream stream) {
  Lock lock(listing);
  for (const Queue* queue = queues; queue; queue = queue->next)
    if (queue->stream == stream) return queue->capturing;
  return false;
}

// Waits for all that sessions have asked for so far, in whatever stream.
device::Result wait_for_all() {
  device::Stream open[64];
  int count = 0;
  {
    Lock lock(listing);
    for (const Queue* queue = queues; queue && count < 64; queue = queue->next)
      if (!queue->capturing) open[count++] = queue->stream;
  }
  device::Result result = 0;
  for (int i = 0; i < count && !result; ++i) result = device::driver.synchronize(open[i]);
  return result;
}

bool is_ours(const OrtMemoryDevice* device) {
  return ort::MemoryDevice_GetDeviceType(device) == device::kMemoryType && ort::MemoryDevice_GetVendorId(device) == device::kVendor;
}

OrtStatus* is_on_host(const OrtValue* value, bool* result) {
  const OrtMemoryInfo* info = nullptr;
  if (OrtStatus* status = ort::GetTensorMemoryInfo(value, &info)) return status;
  int type = 0;
  ort::MemoryInfoGetDeviceType(info, &type);
  *result = type == ort::kCpu || ort::MemoryInfoGetDeviceMemType(info) == ort::kHostAccessible;
  return nullptr;
}

OrtStatus* copy_all(const OrtValue** from, OrtValue** to, OrtSyncStream** streams, size_t count) {
  device::Current current;
  device::Stream own = nullptr;
  OrtStatus* status = nullptr;
  for (size_t i = 0; i < count && !status; ++i) {
    auto stream = streams && streams[i] ? static_cast<device::Stream>(ort::SyncStream_GetHandle(streams[i])) : own;
    if (!stream) {
      status = said(wait_for_all(), device::kFailed);
      if (!status) status = said(device::driver.create_stream(&own, device::kNonBlocking), "a stream cannot be made");
      stream = own;
    }
    if (!status) status = copy_in(stream, from[i], to[i]);
  }
  if (own) {
    if (OrtStatus* late = said(device::driver.synchronize(own), "a tensor cannot be copied")) {
      if (status) ort::ReleaseStatus(late);
      else status = late;
    }
    device::driver.destroy_stream(own);
  }
  return status;
}

struct Allocator : OrtAllocator {
  Pool* pool;
  const OrtMemoryInfo* info;
};

Pool& pool(OrtAllocator* allocator) { return *static_cast<Allocator*>(allocator)->pool; }

}  // namespace

OrtStatus* said(device::Result result, const char* what) {
  if (!result) return nullptr;
  char text[300];
  snprintf(text, sizeof text, "moec: %s: %s", what, device::words(result));
  return ort::CreateStatus(ort::kFail, text);
}

OrtStatus* open(Queue& queue) {
  const device::Result result = device::driver.create_stream(&queue.stream, device::kNonBlocking);
  if (result) return said(result, "a stream cannot be made");
  Lock lock(listing);
  queue.next = queues;
  queues = &queue;
  return nullptr;
}

void close(Queue& queue) {
  if (!queue.stream) return;
  {
    Lock lock(listing);
    Queue** at = &queues;
    while (*at && *at != &queue) at = &(*at)->next;
    if (*at) *at = queue.next;
  }
  device::driver.destroy_stream(queue.stream);
  queue.stream = nullptr;
}

OrtStatus* make_stream(device::Stream stream, Queue* queue, OrtSyncStreamImpl** made) {
  auto* s = zeroed<SyncStream>();
  if (!s) return no_memory();
  s->version = ort::kEpVersion;
  s->stream = stream;
  s->queue = queue;
  s->Release = [](OrtSyncStreamImpl* impl) {
    device::Current current;
    if (!of(impl)->queue) device::driver.destroy_stream(of(impl)->stream);
    free(of(impl));
  };
  s->GetHandle = [](OrtSyncStreamImpl* impl) -> void* { return of(impl)->stream; };
  s->CreateNotification = [](OrtSyncStreamImpl* impl, OrtSyncNotificationImpl** made) {
    return notify(of(impl)->stream, made);
  };
  s->Flush = [](OrtSyncStreamImpl* impl) -> OrtStatus* {
    device::Current current;
    if (of(impl)->queue && of(impl)->queue->capturing) return nullptr;
    return said(device::driver.synchronize(of(impl)->stream), device::kFailed);
  };
  s->OnSessionRunEnd = [](OrtSyncStreamImpl*) -> OrtStatus* { return nullptr; };
  *made = s;
  return nullptr;
}

OrtStatus* copy_in(device::Stream stream, const OrtValue* from, OrtValue* to) {
  void *source = nullptr, *target = nullptr;
  size_t bytes = 0;
  if (OrtStatus* status = ort::GetTensorMutableData(const_cast<OrtValue*>(from), &source)) return status;
  if (OrtStatus* status = ort::GetTensorMutableData(to, &target)) return status;
  if (OrtStatus* status = ort::GetTensorSizeInBytes(from, &bytes)) return status;
  if (!bytes || source == target) return nullptr;
  bool from_host = false, to_host = false;
  if (OrtStatus* status = is_on_host(from, &from_host)) return status;
  if (OrtStatus* status = is_on_host(to, &to_host)) return status;
  if (is_capturing(stream))
    if (OrtStatus* status = expect_recordable(from_host, to_host)) return status;
  return said(device::copy(target, to_host, source, from_host, bytes, stream), "a tensor cannot be copied");
}

OrtStatus* make_transfer(OrtDataTransferImpl** made) {
  auto* t = zeroed<OrtDataTransferImpl>();
  if (!t) return no_memory();
  t->version = ort::kEpVersion;
  t->Release = [](OrtDataTransferImpl* impl) { free(impl); };
  t->CanCopy = [](const OrtDataTransferImpl*, const OrtMemoryDevice* from, const OrtMemoryDevice* to) {
    const bool from_cpu = ort::MemoryDevice_GetDeviceType(from) == ort::kCpu;
    const bool to_cpu = ort::MemoryDevice_GetDeviceType(to) == ort::kCpu;
    return (is_ours(from) && (is_ours(to) || to_cpu)) || (from_cpu && is_ours(to));
  };
  t->CopyTensors = [](OrtDataTransferImpl*, const OrtValue** from, OrtValue** to, OrtSyncStream** streams,
                      size_t count) {
    return copy_all(from, to, streams, count);
  };
  *made = t;
  return nullptr;
}

OrtStatus* make_allocator(Pool* pool_, const OrtMemoryInfo* info, OrtAllocator** made) {
  auto* a = zeroed<Allocator>();
  if (!a) return no_memory();
  a->version = ort::kEpVersion;
  a->pool = pool_->hold();
  a->info = info;
  a->Alloc = a->Reserve = [](OrtAllocator* allocator, size_t bytes) { return pool(allocator).take(bytes); };
  a->Free = [](OrtAllocator* allocator, void* data) { pool(allocator).give(data); };
  a->Info = [](const OrtAllocator* allocator) { return static_cast<const Allocator*>(allocator)->info; };
  *made = a;
  return nullptr;
}

void release_allocator(OrtAllocator* allocator) {
  pool(allocator).release();
  free(static_cast<Allocator*>(allocator));
}

}  // namespace moec
