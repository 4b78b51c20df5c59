// A stand-in for libcuda.so.1: the part of the driver that the CUDA runtime calls, over the host's memory.
//
// Work waits in its stream until something waits for it, so results are wrong where a wait is missing. What the
// real driver would refuse, or would silently let go wrong, goes to the log as a line "wrong: ..", and what was
// never freed as "left: ..". Kernels are those of behaviours[] below; a fake cubin lists some with their
// parameters, as in "sum pppi;gather pppii;": p memory, m a tensor map, i an int32, f a float. Functions of a real
// cubin do nothing, and their arguments are not looked at.
//
// Environment: STAND_IN_LOG a file; STAND_IN_CAPABILITY "9.0"; STAND_IN_DEVICES "1"; STAND_IN_MEMORY bytes.
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace {

enum Code { OK = 0, INVALID = 1, NO_MEMORY = 2, NO_DEVICE = 100, BAD_IMAGE = 200, NOT_FOUND = 500, CAPTURING = 900 };

struct Work {
  std::function<void()> run;
  std::vector<std::pair<const char*, size_t>> memory;  // that must be there when it runs
};

struct Event;
struct Graph {
  std::vector<Work> work;
};
struct Stream {
  std::deque<Work> waiting;
  Graph* graph = nullptr;  // being captured
};
struct Event {
  Stream* stream = nullptr;  // once it was recorded
};
struct Function {
  std::string name, parameters;
  int shared = 48 << 10;
  bool preferred = false;  // whether it was said how much of L1 it wants as shared memory
};
struct Module {
  std::vector<Function*> functions;
  bool real = false;  // a cubin, which has whatever function it is asked for
};
struct Map {
  uint64_t magic;
  const char* data;
  size_t bytes;
};
constexpr uint64_t kMagic = 0x6d6170206d617021;

std::recursive_mutex mutex;
std::map<const char*, size_t> device, host;
std::set<Stream*> streams;
std::set<Event*> events;
std::set<Graph*> graphs, execs;
std::set<Module*> modules;
thread_local int mode = 1;  // of this thread while a stream is captured: 1 thread-local, 2 relaxed
thread_local void* current = nullptr;
int context;
size_t used = 0;

void log(const char* format, ...) {
  static FILE* file = getenv("STAND_IN_LOG") ? fopen(getenv("STAND_IN_LOG"), "a") : nullptr;
  if (!file) return;
  va_list arguments;
  va_start(arguments, format);
  vfprintf(file, format, arguments);
  va_end(arguments);
  fputc('\n', file);
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

void drain_all() {
  for (Stream* stream : streams) drain(stream);
}

int ask(Stream* stream, Work work) {
  if (!streams.count(stream)) return WRONG("work for a stream that is none");
  if (current != &context) return WRONG("work without the context");
  if (stream->graph) stream->graph->work.push_back(std::move(work));
  else stream->waiting.push_back(std::move(work));
  return OK;
}

// What may not be done while this thread captures.
int forbidden(const char* what) {
  for (const Stream* stream : streams)
    if (stream->graph && mode != 2) return log("wrong: %s while a stream is captured", what), CAPTURING;
  return OK;
}

// --- kernels -------------------------------------------------------------------------------------------------

struct Arguments {
  std::vector<char*> memory;
  std::vector<int> numbers;
};

using U16 = uint16_t;

template <class T>
T* as(const Arguments& a, int i) {
  return reinterpret_cast<T*>(a.memory[i]);
}

// y[m, n] = rows of table[.., n] by ids; the numbers are m, n.
void gather(const Arguments& a) {
  const int n = a.numbers[1];
  for (int i = 0; i < a.numbers[0]; ++i)
    memcpy(as<U16>(a, 2) + i * n, as<U16>(a, 1) + as<int64_t>(a, 0)[i] * n, n * sizeof(U16));
}

// y = a + b of so many 16-bit integers
void sum(const Arguments& a) {
  for (int i = 0; i < a.numbers[0]; ++i) as<U16>(a, 2)[i] = U16(as<U16>(a, 0)[i] + as<U16>(a, 1)[i]);
}

// y = x, so many 16-bit integers
void copy(const Arguments& a) { memcpy(as<U16>(a, 1), as<U16>(a, 0), a.numbers[0] * sizeof(U16)); }

// y in f32 = x, so many 16-bit integers
void widen(const Arguments& a) {
  for (int i = 0; i < a.numbers[0]; ++i) as<float>(a, 1)[i] = as<U16>(a, 0)[i];
}

// rows [b, h, T, d], span [b, 2], cache [b, h, L, d]; the numbers are b * h, T, L, d, h.
void append(const Arguments& a) {
  const auto& [heads, tokens, room, d, h] = *reinterpret_cast<const int(*)[5]>(a.numbers.data());
  for (int i = 0; i < heads; ++i) {
    const int64_t end = as<int64_t>(a, 1)[i / h * 2 + 1];
    memcpy(as<U16>(a, 2) + (i * room + end - tokens) * d, as<U16>(a, 0) + i * tokens * d, tokens * d * sizeof(U16));
  }
}

const std::map<std::string, void (*)(const Arguments&)> behaviours = {
    {"gather", gather}, {"sum", sum}, {"copy", copy}, {"widen", widen}, {"append", append}};

struct Config {
  unsigned grid[3], block[3], shared;
  Stream* stream;
  struct Attribute {
    int id, padding;
    int value[16];
  } * attributes;
  unsigned count;
};

int launch(const Config* config, Function* function, void** given) {
  const auto& [grid, block, shared, stream, attributes, count] = *config;
  if (!grid[0] || !grid[1] || !grid[2] || grid[1] > 65535 || grid[2] > 65535) return WRONG("a grid of no size");
  const unsigned threads = block[0] * block[1] * block[2];
  if (!threads || threads > 1024) return WRONG("%u threads in a block", threads);
  if (int(shared) > function->shared) return WRONG("%u bytes of shared memory were not asked for", shared);
  if (!function->preferred) return WRONG("it was not said how much L1 is to be left");
  for (unsigned i = 0; i < count; ++i)
    if (attributes[i].id != 6 || attributes[i].value[0] != 1) return WRONG("an unknown attribute");
  Arguments arguments;
  Work work;
  std::string pointers;
  for (size_t i = 0; i < function->parameters.size(); ++i) {
    const char kind = function->parameters[i];
    if (kind == 'i') arguments.numbers.push_back(*static_cast<int*>(given[i]));
    if (kind != 'p' && kind != 'm') continue;
    const Map* map = kind == 'm' ? static_cast<Map*>(given[i]) : nullptr;
    if (map && (map->magic != kMagic || uintptr_t(map) % 64)) return WRONG("%s got no map", function->name.c_str());
    char* data = map ? const_cast<char*>(map->data) : *static_cast<char**>(given[i]);
    if (!lies_in(device, data, map ? map->bytes : 1)) return WRONG("%s got %p", function->name.c_str(), (void*)data);
    work.memory.push_back({data, 1});
    arguments.memory.push_back(data);
    char text[32];
    snprintf(text, sizeof text, " %p", (void*)data);
    pointers += text;
  }
  log("%s %s%s%s", stream->graph ? "capture" : "launch", function->name.c_str(), pointers.c_str(),
      count ? " overlapping" : "");
  const auto found = behaviours.find(function->name);
  work.run = [arguments, found] {
    if (found != behaviours.end()) found->second(arguments);
  };
  return ask(stream, std::move(work));
}

// "name parameters;" once or more
Module* parse(const char* image) {
  auto* module = new Module;
  module->real = !memcmp(image, "\x7f" "ELF", 4);
  for (const char* at = image; const char* end = strchr(at, ';'); at = end + 1) {
    const std::string line(at, end);
    const size_t space = line.find(' ');
    if (space == std::string::npos || !behaviours.count(line.substr(0, space))) break;
    module->functions.push_back(new Function{line.substr(0, space), line.substr(space + 1)});
  }
  return module;
}

int encode(void* out, int type, uint32_t rank, char* data, const uint64_t* shape, const uint64_t* strides,
           const uint32_t* box, const uint32_t* steps, int, int swizzle, int, int) {
  const size_t element = type == 9 || type == 6 || type == 1 ? 2 : type == 7 || type == 2 ? 4 : type == 0 ? 1 : 8;
  if (uintptr_t(data) % 16 || uintptr_t(out) % 64) return WRONG("a tensor map that is not aligned");
  if (!rank || rank > 5) return WRONG("a tensor map of rank %u", rank);
  size_t bytes = shape[0] * element;
  for (uint32_t i = 0; i < rank; ++i) {
    if (!shape[i] || !box[i] || box[i] > 256 || steps[i] != 1) return WRONG("a tensor map of odd sizes");
    if (i && strides[i - 1] % 16) return WRONG("a stride of %llu bytes", (unsigned long long)strides[i - 1]);
    if (i) bytes += (shape[i] - 1) * strides[i - 1];
  }
  if (box[0] * element % 16 || (swizzle && box[0] * element > (16u << swizzle))) return WRONG("a box too wide");
  if (!lies_in(device, data, bytes)) return WRONG("a tensor map of %zu bytes at %p", bytes, (void*)data);
  const Map map{kMagic, data, bytes};
  memcpy(out, &map, sizeof map);
  return OK;
}

int allocate(std::map<const char*, size_t>& where, void** out, size_t bytes) {
  if (int code = forbidden("memory was allocated")) return code;
  if (current != &context) return WRONG("memory without the context");
  if (used + bytes > strtoull(setting("STAND_IN_MEMORY", "1000000000"), nullptr, 10)) return NO_MEMORY;
  auto* data = static_cast<char*>(aligned_alloc(512, (bytes + 511) / 512 * 512));
  memset(data, 0xEE, bytes);
  where[data] = bytes;
  used += bytes;
  log("allocate %p %zu", (void*)data, bytes);
  *out = data;
  return OK;
}

int release(std::map<const char*, size_t>& where, const char* data) {
  if (int code = forbidden("memory was freed")) return code;
  if (!where.count(data)) return WRONG("%p was freed, which was never allocated", (const void*)data);
  drain_all();
  used -= where[data];
  where.erase(data);
  log("free %p", (const void*)data);
  free(const_cast<char*>(data));
  return OK;
}

// Pageable memory of the host is read before the call returns, and written before it returns.
int copy_bytes(char* to, const char* from, size_t bytes, Stream* stream) {
  const bool to_device = lies_in(device, to, bytes), from_device = lies_in(device, from, bytes);
  log("%s %s %zu to %p", stream->graph ? "capture" : "launch", "copying", bytes, (void*)to);
  Work work;
  if (to_device) work.memory.push_back({to, bytes});
  if (from_device) work.memory.push_back({from, bytes});
  if (from_device || lies_in(host, from, bytes)) {
    work.run = [=] { memcpy(to, from, bytes); };
  } else {
    if (stream->graph) return WRONG("a graph reads the host's memory");
    work.run = [to, staged = std::vector<char>(from, from + bytes)] { memcpy(to, staged.data(), staged.size()); };
  }
  const int code = ask(stream, std::move(work));
  if (!code && !to_device && !lies_in(host, to, bytes)) {
    if (stream->graph) return WRONG("a graph writes the host's memory");
    drain(stream);
  }
  return code;
}

// All that was asked of the event's stream, which is more than what came before it.
void reach(Event* event) {
  if (streams.count(event->stream)) drain(event->stream);
}

struct AtExit {
  ~AtExit() {
    log("left: %zu allocations, %zu of the host, %zu streams, %zu events, %zu graphs, %zu modules", device.size(),
        host.size(), streams.size(), events.size(), graphs.size() + execs.size(), modules.size());
  }
} at_exit;

}  // namespace

#define API extern "C" __attribute__((visibility("default"))) int
#define LOCKED std::lock_guard<std::recursive_mutex> guard(mutex)

API cuInit(unsigned) { return atoi(setting("STAND_IN_DEVICES", "1")) ? OK : NO_DEVICE; }
API cuGetErrorString(int code, const char** text) {
  *text = code == NO_MEMORY    ? "out of memory"
          : code == NO_DEVICE  ? "no CUDA-capable device is detected"
          : code == BAD_IMAGE  ? "device kernel image is invalid"
          : code == NOT_FOUND  ? "named symbol not found"
          : code == CAPTURING  ? "operation not permitted when stream is capturing"
                               : "invalid argument";
  return OK;
}
API cuDeviceGetCount(int* count) { return *count = atoi(setting("STAND_IN_DEVICES", "1")), OK; }
API cuDeviceGet(int* device, int) { return *device = 0, OK; }
API cuDeviceGetAttribute(int* value, int which, int) {
  int major = 0, minor = 0;
  sscanf(setting("STAND_IN_CAPABILITY", "9.0"), "%d.%d", &major, &minor);
  return *value = which == 75 ? major : minor, OK;
}
API cuDeviceGetName(char* name, int size, int) { return snprintf(name, size_t(size), "Stand-in"), OK; }
API cuDevicePrimaryCtxRetain(void** out, int) { return *out = &context, OK; }
API cuCtxGetCurrent(void** out) { return *out = current, OK; }
API cuCtxSetCurrent(void* which) { return current = which, OK; }

API cuModuleLoadData(Module** out, const char* image) {
  LOCKED;
  if (int code = forbidden("a module was loaded")) return code;
  *out = parse(image);
  log("module");
  return (*out)->functions.empty() && !(*out)->real ? BAD_IMAGE : (modules.insert(*out), OK);
}
API cuModuleUnload(Module* module) {
  LOCKED;
  drain_all();
  return modules.erase(module) ? OK : WRONG("a module that is none was unloaded");
}
API cuModuleGetFunction(Function** out, Module* module, const char* name) {
  for (Function* each : module->functions)
    if (each->name == name) return *out = each, OK;
  if (!module->real) return NOT_FOUND;
  module->functions.push_back(*out = new Function{name, ""});
  return OK;
}
API cuFuncSetAttribute(Function* function, int which, int value) {
  if (which == 9 && value >= -1 && value <= 50) return function->preferred = true, OK;
  if (which != 8 || value > 227 << 10) return INVALID;
  return function->shared = value, OK;
}
API cuLaunchKernelEx(const Config* config, Function* function, void** arguments, void**) {
  LOCKED;
  return launch(config, function, arguments);
}
API cuTensorMapEncodeTiled(void* out, int type, uint32_t rank, void* data, const uint64_t* shape,
                           const uint64_t* strides, const uint32_t* box,
                           const uint32_t* steps, int a, int swizzle, int b, int c) {
  LOCKED;
  return encode(out, type, rank, static_cast<char*>(data), shape, strides, box, steps, a, swizzle, b, c);
}

API cuMemAlloc_v2(void** out, size_t bytes) { LOCKED; return allocate(device, out, bytes); }
API cuMemFree_v2(char* data) { LOCKED; return release(device, data); }
API cuMemHostAlloc(void** out, size_t bytes, unsigned) { LOCKED; return allocate(host, out, bytes); }
API cuMemFreeHost(char* data) { LOCKED; return release(host, data); }
API cuMemcpyAsync(char* to, const char* from, size_t bytes, Stream* stream) {
  LOCKED;
  return streams.count(stream) ? copy_bytes(to, from, bytes, stream) : WRONG("a copy in no stream");
}
API cuMemcpyDtoDAsync_v2(char* to, const char* from, size_t bytes, Stream* stream) {
  return cuMemcpyAsync(to, from, bytes, stream);
}
API cuMemsetD8Async(char* to, unsigned char byte, size_t bytes, Stream* stream) {
  LOCKED;
  return ask(stream, {[=] { memset(to, byte, bytes); }, {{to, bytes}}});
}

API cuStreamCreate(Stream** out, unsigned) { LOCKED; return streams.insert(*out = new Stream), OK; }
API cuStreamDestroy_v2(Stream* stream) {
  LOCKED;
  drain(stream);
  return streams.erase(stream) ? OK : WRONG("a stream that is none was destroyed");
}
API cuStreamSynchronize(Stream* stream) {
  LOCKED;
  if (!streams.count(stream)) return WRONG("waiting for a stream that is none");
  if (stream->graph) return WRONG("waiting for a stream that is captured");
  return drain(stream), OK;
}
API cuStreamWaitEvent(Stream* stream, Event* event, unsigned) {
  LOCKED;
  return ask(stream, {[=] { reach(event); }, {}});
}
API cuStreamBeginCapture_v2(Stream* stream, int) {
  LOCKED;
  if (stream->graph) return WRONG("a stream is captured twice");
  graphs.insert(stream->graph = new Graph);
  log("begin capture");
  return OK;
}
API cuStreamEndCapture(Stream* stream, Graph** out) {
  LOCKED;
  *out = stream->graph;
  stream->graph = nullptr;
  log("end capture");
  return *out ? OK : WRONG("no stream is captured");
}
API cuThreadExchangeStreamCaptureMode(int* which) { return std::swap(mode, *which), OK; }

API cuGraphInstantiateWithFlags(Graph** out, Graph* graph, unsigned long long) {
  LOCKED;
  return execs.insert(*out = new Graph(*graph)), OK;
}
API cuGraphLaunch(Graph* exec, Stream* stream) {
  LOCKED;
  if (!execs.count(exec)) return WRONG("a graph that is none was launched");
  log("launch graph");
  for (const Work& work : exec->work)
    if (int code = ask(stream, work)) return code;
  return OK;
}
API cuGraphExecDestroy(Graph* exec) { LOCKED; return execs.erase(exec) ? OK : WRONG("a graph was destroyed twice"); }
API cuGraphDestroy(Graph* graph) { LOCKED; return graphs.erase(graph) ? OK : WRONG("a graph was destroyed twice"); }

API cuEventCreate(Event** out, unsigned) { LOCKED; return events.insert(*out = new Event), OK; }
API cuEventDestroy_v2(Event* event) { LOCKED; return events.erase(event) ? OK : WRONG("an event was destroyed twice"); }
API cuEventRecord(Event* event, Stream* stream) {
  LOCKED;
  if (!streams.count(stream)) return WRONG("an event for a stream that is none");
  event->stream = stream;
  return OK;
}
API cuEventSynchronize(Event* event) {
  LOCKED;
  return event->stream ? (reach(event), OK) : INVALID;
}
API cuEventElapsedTime(float* ms, Event* first, Event* last) {
  if (!first->stream || !last->stream) return INVALID;
  return *ms = 0.125f, OK;
}
