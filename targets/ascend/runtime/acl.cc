// The NPU by ACL.
#include <dlfcn.h>

#include <cstdio>
#include <cstring>

#include "acl_abi.h"
#include "device.h"
#include "launch.h"

namespace moec {
namespace acl {

Functions functions;

namespace {

Handle context = nullptr;  // of the first NPU, once it is open
void* addresses = nullptr;
char reason[400];

}  // namespace

const char* load(bool* found) {
  void* library = dlopen("libascendcl.so", RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    const char* why = dlerror();
    // A file that is there but cannot be loaded wants to be mended, not worked around.
    *found = !strstr(why, "libascendcl.so: cannot open shared object file");
    snprintf(reason, sizeof reason, "no CANN that can be used (%s)", why);
    return reason;
  }
  *found = true;
  const char* missing = nullptr;
  auto find = [&](const char* symbol) {
    void* found = dlsym(library, symbol);
    if (!found && !missing) missing = symbol;
    return found;
  };
#define F(name, symbol, result, ...) functions.name = reinterpret_cast<result (*)(__VA_ARGS__)>(find(symbol));
  MOEC_ACL_FUNCTIONS(F)
#undef F
  if (!missing) return nullptr;
  snprintf(reason, sizeof reason, "a CANN without %s: install a newer one", missing);
  return reason;
}

const char* open() {
  uint32_t count = 0;
  Result result = functions.init(nullptr);
  if (result == kInitialised) result = 0;
  if (!result) result = functions.device_count(&count);
  if (!result && !count) return "none; MOEC_SIMULATE=1 has kernels simulated on this CPU";
  if (!result) result = functions.set_device(0);
  if (result) {
    snprintf(reason, sizeof reason, "none that can be used (%s)", words(result));
    return reason;
  }
  const char* soc = functions.soc_name();
  if (!soc || strcmp(soc, soc_name)) {
    snprintf(reason, sizeof reason, "%s; compile again on this machine", soc ? soc : "one without a name");
    return reason;
  }
  result = functions.sync_address(&addresses);
  if (!result) result = functions.current_context(&context);
  if (!result) return nullptr;
  snprintf(reason, sizeof reason, "one that cannot be opened (%s)", words(result));
  return reason;
}

void* sync_address() { return addresses; }

const char* words(Result result) {
  thread_local char text[300];
  const char* more = functions.recent_error();
  snprintf(text, sizeof text, "ACL's error %d%s%.200s", result, more ? ", " : "", more ? more : "");
  for (char* at = text; *at; ++at)
    if (*at == '\n') *at = ' ';
  return text;
}

}  // namespace acl

namespace ascend {
namespace {

using acl::functions;

// Memory of the host is the caller's, who may change or free it at once, and no page of it is locked.
Result transfer(void* to, bool to_host, const void* from, bool from_host, size_t bytes, Stream stream) {
  if (!to_host && !from_host) return functions.copy_later(to, bytes, from, bytes, acl::kWithinDevice, stream);
  if (Result result = functions.synchronize(stream)) return result;
  const int way = !to_host ? acl::kToDevice : from_host ? acl::kWithinHost : acl::kToHost;
  return functions.copy(to, bytes, from, bytes, way);
}

// What work that waits still needs must not go, and ACL does not see to that.
Result after_all(Result (*release)(acl::Handle), acl::Handle what) {
  if (Result result = functions.synchronize_all()) return result;
  return release(what);
}

}  // namespace

const Driver of_npu = {
    [](void** made, size_t bytes) { return functions.allocate(made, bytes, acl::kHugePagesFirst); },
    [](void* data) { return after_all(functions.free, data); },
    [](void** made, size_t bytes, unsigned) { return functions.allocate_host(made, bytes); },
    [](void* data) { return functions.free_host(data); },
    transfer,
    [](void* data, unsigned char byte, size_t bytes, Stream s) { return functions.fill(data, bytes, byte, bytes, s); },
    [](Stream* made, unsigned) { return functions.create_stream(made); },
    [](Stream stream) { return after_all(functions.destroy_stream, stream); },
    [](Stream stream) { return functions.synchronize(stream); },
    [](Stream stream, Event event, unsigned) { return functions.wait_event(stream, event); },
    [](Event* made, unsigned timed) { return functions.create_event(made, timed ? acl::kTimeLine : acl::kSync); },
    [](Event event) { return after_all(functions.destroy_event, event); },
    [](Event event, Stream stream) { return functions.record(event, stream); },
    [](Event event) { return functions.wait_host(event); },
    [](float* ms, Event first, Event last) { return functions.elapsed(ms, first, last); },
};

Current::Current() {
  if (!acl::context) return;
  if (functions.current_context(&before_)) before_ = nullptr;
  changed_ = before_ != acl::context && !functions.set_context(acl::context);
}

// A thread that had no context keeps this one: ACL cannot take it away.
Current::~Current() {
  if (changed_ && before_) functions.set_context(before_);
}

}  // namespace ascend
}  // namespace moec
