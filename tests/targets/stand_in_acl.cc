// A stand-in for libascendcl.so: the part of ACL that the Ascend runtime calls, over the host's memory.
//
// Work waits in its stream until something waits for it, so results are wrong where a wait is missing. What ACL
// would refuse, or would silently let go wrong, goes to the log as a line "wrong: ..", and what was never freed as
// "left: ..". An object NAME.o is a library for this CPU that has moec_plan, what a launch must be like, and
// moec_run, which runs all blocks (stand_in_objects.py makes such).
//
// Environment: STAND_IN_LOG a file; STAND_IN_SOC "Ascend910B3"; STAND_IN_DEVICES "1"; STAND_IN_MEMORY bytes.
#include <dlfcn.h>

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <iterator>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace {

enum Code { OK = 0, INVALID = 107000, NO_CONTEXT = 107002, NO_DEVICE = 107001, NO_MEMORY = 207001, BAD = 500000 };
constexpr size_t kAligned = 512, kCopied = 64;  // addresses of memory, and of copies within it

using Memory = std::vector<std::pair<const char*, size_t>>;

struct Work {
  std::function<void()> run;
  Memory memory;  // that must be there when it runs
};

struct Stream {
  std::deque<Work> waiting;
};
struct Event {
  uint32_t flags;
  Stream* stream = nullptr;  // once it was recorded
  size_t waiting = 0;        // streams that are to wait for it
};

// What a kernel's object says of it.
struct Plan {
  const char* name;
  uint32_t magic;
  size_t bytes;               // of the arguments
  size_t workspace, locks;    // bytes for a block, and how many there are
  const size_t* memory;       // where among the arguments memory is
  size_t memories;
};
struct Function;
struct Binary {
  void* library;
  const Plan* plan;
  Function* function = nullptr;
};
struct Function {
  Binary* binary;
};

// The arguments of any kernel: these, its own, and at last the grid.
struct Hidden {
  char *sync, *locks, *workspace;
};

std::recursive_mutex mutex;
std::map<const char*, size_t> device, host;
std::set<Stream*> streams;
std::set<Event*> events;
std::set<Binary*> binaries;
std::set<Function*> functions;
thread_local void* current = nullptr;
thread_local std::string recent;
char context, sync_memory;
bool initialised = false;
size_t used = 0;

void log(const char* format, ...) {
  static FILE* file = getenv("STAND_IN_LOG") ? fopen(getenv("STAND_IN_LOG"), "a") : nullptr;
  va_list arguments;
  va_start(arguments, format);
  char text[500];
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  if (!strncmp(text, "wrong: ", 7)) recent = text + 7;
  if (!file) return;
  fprintf(file, "%s\n", text);
  fflush(file);
}

#define WRONG(...) (log("wrong: " __VA_ARGS__), INVALID)

const char* setting(const char* name, const char* otherwise) { return getenv(name) ? getenv(name) : otherwise; }

bool lies_in(const std::map<const char*, size_t>& all, const char* data, size_t bytes) {
  auto next = all.upper_bound(data);
  if (next == all.begin()) return false;
  const auto& [start, size] = *std::prev(next);
  return data + bytes <= start + size;
}

int ready(const char* what) {
  if (!initialised) return WRONG("%s before aclInit", what);
  if (current != &context) return WRONG("%s without a context", what), NO_CONTEXT;
  return OK;
}

void run(const Work& work) {
  for (const auto& [data, bytes] : work.memory)
    if (!lies_in(device, data, bytes)) return void(WRONG("work uses %p, which was freed", (const void*)data));
  work.run();
}

void drain(Stream* stream) {
  while (!stream->waiting.empty()) {
    Work work = std::move(stream->waiting.front());
    stream->waiting.pop_front();
    run(work);
  }
}

int ask(Stream* stream, Work work) {
  if (int code = ready("work")) return code;
  if (!streams.count(stream)) return WRONG("work for a stream that is none");
  stream->waiting.push_back(std::move(work));
  return OK;
}

// --- memory --------------------------------------------------------------------------------------------------

int allocate(std::map<const char*, size_t>& where, void** out, size_t bytes) {
  if (int code = ready("memory")) return code;
  if (!bytes) return WRONG("no bytes of memory");
  if (used + bytes > strtoull(setting("STAND_IN_MEMORY", "1000000000"), nullptr, 10)) {
    recent = "out of memory\nasked for by the stand-in";
    return NO_MEMORY;
  }
  auto* data = static_cast<char*>(aligned_alloc(kAligned, (bytes + kAligned - 1) / kAligned * kAligned));
  memset(data, 0xEE, bytes);
  where[data] = bytes;
  used += bytes;
  log("allocate %p %zu", (void*)data, bytes);
  *out = data;
  return OK;
}

// Nothing waits for work that may still use it.
int release(std::map<const char*, size_t>& where, const char* data) {
  if (int code = ready("freeing")) return code;
  if (!where.count(data)) return WRONG("%p was freed, which was never allocated so", (const void*)data);
  used -= where[data];
  where.erase(data);
  log("free %p", (const void*)data);
  free(const_cast<char*>(data));
  return OK;
}

// Kinds: 0 within the host, 1 to the device, 2 to the host, 3 within the device.
int expect_places(const char* to, size_t room, const char* from, size_t bytes, int kind) {
  if (kind < 0 || kind > 3) return WRONG("a copy of kind %d", kind);
  if (!bytes || bytes > room) return WRONG("a copy of %zu bytes into %zu", bytes, room);
  const bool to_device = kind & 1, from_device = kind & 2;
  if (to_device != lies_in(device, to, room) || from_device != lies_in(device, from, bytes))
    return WRONG("a copy of kind %d from %p to %p, %zu bytes, which lie elsewhere", kind, (const void*)from,
                 (const void*)to, bytes);
  if (kind == 3 && (uintptr_t(to) % kCopied || uintptr_t(from) % kCopied))
    return WRONG("a copy within the device that is not aligned");
  if (kind == 3 && to < from + bytes && from < to + bytes) return WRONG("a copy onto itself");
  return OK;
}

// --- kernels -------------------------------------------------------------------------------------------------

int load(const char* path, uint32_t magic, Binary** out) {
  // The same file once more would be the same library, which is unloaded once.
  void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!library) return recent = dlerror(), BAD;
  auto* plan = static_cast<const Plan*>(dlsym(library, "moec_plan"));
  if (!plan) return WRONG("%s is no kernel's object", path);
  if (plan->magic != magic) return WRONG("%s was loaded with magic %x; it has %x", path, magic, plan->magic);
  for (const Binary* other : binaries)
    if (other->library == library) return WRONG("%s was loaded twice", path);
  binaries.insert(*out = new Binary{library, plan});
  log("load %s", plan->name);
  return OK;
}

void unload(Binary* binary) {
  functions.erase(binary->function);
  delete binary->function;
  dlclose(binary->library);
  delete binary;
}

int launch(Function* function, uint32_t blocks, Stream* stream, const char* given, size_t bytes) {
  if (!functions.count(function)) return WRONG("a function that is none was launched");
  const Plan& plan = *function->binary->plan;
  if (bytes != plan.bytes) return WRONG("%s got %zu bytes of arguments; it has %zu", plan.name, bytes, plan.bytes);
  std::vector<char> arguments(given, given + bytes);
  const auto& hidden = *reinterpret_cast<const Hidden*>(arguments.data());
  Work work;
  std::string pointers;
  for (size_t i = 0; i < plan.memories; ++i) {
    const char* data;
    memcpy(&data, arguments.data() + plan.memory[i], sizeof data);
    if (!lies_in(device, data, 1)) return WRONG("%s got %p", plan.name, (const void*)data);
    work.memory.push_back({data, 1});
    char text[32];
    snprintf(text, sizeof text, " %p", (const void*)data);
    pointers += text;
  }
  if (hidden.sync != &sync_memory) return WRONG("%s got no place to synchronise at", plan.name);
  const std::pair<const char*, size_t> own[] = {{hidden.locks, plan.locks * 8},
                                                {hidden.workspace, plan.workspace * blocks}};
  for (const auto& [data, size] : own) {
    if (size ? !lies_in(device, data, size) : data != nullptr)
      return WRONG("%s got %p for %zu bytes", plan.name, (const void*)data, size);
    if (size) work.memory.push_back({data, size});
  }
  if (!blocks || blocks > 65535) return WRONG("%s was launched with %u blocks", plan.name, blocks);
  auto run = reinterpret_cast<const char* (*)(const void*, uint32_t)>(dlsym(function->binary->library, "moec_run"));
  log("launch %s%s on %u", plan.name, pointers.c_str(), blocks);
  work.run = [=, &plan] {
    const auto& hidden = *reinterpret_cast<const Hidden*>(arguments.data());
    for (size_t i = 0; i < plan.locks * 8; ++i)
      if (hidden.locks[i]) return void(WRONG("locks of %s are not zero", plan.name));
    if (const char* why = run(arguments.data(), blocks)) return void(WRONG("%s: %s", plan.name, why));
    memset(hidden.locks, 0x77, plan.locks * 8);
    memset(hidden.workspace, 0x77, plan.workspace * blocks);
  };
  return ask(stream, std::move(work));
}

// --- events --------------------------------------------------------------------------------------------------

// All that was asked of the event's stream, which is more than what came before it.
void reach(Event* event) {
  if (streams.count(event->stream)) drain(event->stream);
}

struct AtExit {
  ~AtExit() {
    log("left: %zu allocations, %zu of the host, %zu streams, %zu events, %zu binaries", device.size(), host.size(),
        streams.size(), events.size(), binaries.size());
  }
} at_exit;

}  // namespace

#define API extern "C" __attribute__((visibility("default"))) int
#define TEXT extern "C" __attribute__((visibility("default"))) const char*
#define LOCKED std::lock_guard<std::recursive_mutex> guard(mutex)

API aclInit(const char*) {
  LOCKED;
  return initialised ? 100002 : (initialised = true, OK);
}
TEXT aclGetRecentErrMsg() {
  static thread_local std::string kept;
  kept = std::move(recent);
  recent.clear();
  return kept.empty() ? nullptr : kept.c_str();
}
TEXT aclrtGetSocName() { return setting("STAND_IN_SOC", "Ascend910B3"); }
API aclrtGetDeviceCount(uint32_t* count) { return *count = uint32_t(atoi(setting("STAND_IN_DEVICES", "1"))), OK; }
API aclrtSetDevice(int32_t which) {
  if (!initialised) return WRONG("a device before aclInit");
  if (which) return NO_DEVICE;
  return current = &context, OK;
}
API aclrtGetCurrentContext(void** out) { return current ? (*out = current, OK) : NO_CONTEXT; }
API aclrtSetCurrentContext(void* which) {
  if (which != &context) return WRONG("a context that is none");
  return current = which, OK;
}
API aclrtGetHardwareSyncAddr(void** out) {
  if (int code = ready("the place to synchronise at")) return code;
  return *out = &sync_memory, OK;
}

API aclrtMalloc(void** out, size_t bytes, int policy) {
  LOCKED;
  return policy ? WRONG("memory by policy %d", policy) : allocate(device, out, bytes);
}
API aclrtFree(char* data) { LOCKED; return release(device, data); }
API aclrtMallocHost(void** out, size_t bytes) { LOCKED; return allocate(host, out, bytes); }
API aclrtFreeHost(char* data) { LOCKED; return release(host, data); }
API aclrtMemcpy(char* to, size_t room, const char* from, size_t bytes, int kind) {
  LOCKED;
  if (int code = ready("a copy")) return code;
  if (int code = expect_places(to, room, from, bytes, kind)) return code;
  log("launch copying %zu to %p", bytes, (void*)to);
  return memcpy(to, from, bytes), OK;
}
API aclrtMemcpyAsync(char* to, size_t room, const char* from, size_t bytes, int kind, Stream* stream) {
  LOCKED;
  if (int code = expect_places(to, room, from, bytes, kind)) return code;
  if (kind != 3) return WRONG("an asynchronous copy of memory of the host that is not locked");
  log("launch copying %zu to %p", bytes, (void*)to);
  return ask(stream, {[=] { memcpy(to, from, bytes); }, {{to, bytes}, {from, bytes}}});
}
API aclrtMemsetAsync(char* to, size_t room, int32_t value, size_t bytes, Stream* stream) {
  LOCKED;
  if (!bytes || bytes > room || !lies_in(device, to, room)) return WRONG("%zu bytes are set in %zu", bytes, room);
  return ask(stream, {[=] { memset(to, value, bytes); }, {{to, bytes}}});
}

API aclrtCreateStream(Stream** out) {
  LOCKED;
  if (int code = ready("a stream")) return code;
  return streams.insert(*out = new Stream), OK;
}
API aclrtDestroyStream(Stream* stream) {
  LOCKED;
  if (!streams.erase(stream)) return WRONG("a stream that is none was destroyed");
  if (!stream->waiting.empty()) WRONG("a stream was destroyed with work in it");
  delete stream;
  return OK;
}
API aclrtSynchronizeStream(Stream* stream) {
  LOCKED;
  if (int code = ready("waiting")) return code;
  if (!streams.count(stream)) return WRONG("waiting for a stream that is none");
  return drain(stream), OK;
}
API aclrtSynchronizeDevice() {
  LOCKED;
  if (int code = ready("waiting")) return code;
  for (Stream* stream : streams) drain(stream);
  return OK;
}
API aclrtStreamWaitEvent(Stream* stream, Event* event) {
  LOCKED;
  if (!events.count(event) || !event->stream) return WRONG("a stream waits for an event that was not recorded");
  ++event->waiting;
  return ask(stream, {[=] {
               reach(event);
               --event->waiting;
             },
                      {}});
}

API aclrtCreateEventExWithFlag(Event** out, uint32_t flags) {
  LOCKED;
  if (int code = ready("an event")) return code;
  if (flags != 1 && flags != 8) return WRONG("an event of kind %u", flags);
  return events.insert(*out = new Event{flags}), OK;
}
API aclrtDestroyEvent(Event* event) {
  LOCKED;
  if (!events.erase(event)) return WRONG("an event was destroyed twice");
  if (event->waiting) WRONG("an event was destroyed that a stream waits for");
  delete event;
  return OK;
}
API aclrtRecordEvent(Event* event, Stream* stream) {
  LOCKED;
  if (!events.count(event) || !streams.count(stream)) return WRONG("an event for a stream that is none");
  event->stream = stream;
  return OK;
}
API aclrtSynchronizeEvent(Event* event) {
  LOCKED;
  if (!events.count(event) || !event->stream) return WRONG("waiting for an event that was not recorded");
  return reach(event), OK;
}
API aclrtEventElapsedTime(float* ms, Event* first, Event* last) {
  LOCKED;
  for (Event* each : {first, last}) {
    if (!events.count(each) || !each->stream) return WRONG("time from an event that was not recorded");
    if (each->flags != 8) return WRONG("time from an event that has none");
    if (streams.count(each->stream) && !each->stream->waiting.empty()) return WRONG("time before the event");
  }
  return *ms = 0.125f, OK;
}

struct LoadOptions {
  struct Option {
    int type;
    uint32_t value[4];
  } * options;
  size_t count;
};

API aclrtBinaryLoadFromFile(const char* path, const LoadOptions* options, Binary** out) {
  LOCKED;
  if (int code = ready("a binary")) return code;
  if (!options || options->count != 1 || options->options->type != 2) return WRONG("a binary without its magic");
  return load(path, options->options->value[0], out);
}
API aclrtBinaryUnLoad(Binary* binary) {
  LOCKED;
  if (!binaries.erase(binary)) return WRONG("a binary that is none was unloaded");
  for (const Stream* stream : streams)
    if (!stream->waiting.empty()) WRONG("a binary was unloaded while work waits");
  return unload(binary), OK;
}
API aclrtBinaryGetFunction(Binary* binary, const char* name, Function** out) {
  LOCKED;
  if (!binaries.count(binary)) return WRONG("a function of a binary that is none");
  if (strcmp(name, binary->plan->name)) return WRONG("there is no %s in %s", name, binary->plan->name);
  if (!binary->function) functions.insert(binary->function = new Function{binary});
  return *out = binary->function, OK;
}
API aclrtLaunchKernelWithHostArgs(Function* function, uint32_t blocks, Stream* stream, void* config, void* given,
                                  size_t bytes, void* places, size_t count) {
  LOCKED;
  if (config || places || count) return WRONG("a launch with more than its arguments");
  return launch(function, blocks, stream, static_cast<const char*>(given), bytes);
}
