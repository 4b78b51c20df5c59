// Launching kernels: on the NPU from objects beside the library, or block by block on this CPU.
#include "launch.h"

#include <dlfcn.h>
#include <pthread.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>

#include "acl_abi.h"
#include "device.h"
#include "simulated.h"

namespace moec {
namespace {

constexpr int64_t kMostBlocks = UINT16_MAX;
constexpr size_t kMostBytes = 1024;  // of a launch's arguments

Function* loaded = nullptr;
pthread_mutex_t loading = PTHREAD_MUTEX_INITIALIZER;

// Where the NPU's object lies. False where the library's own file is not known.
bool find(const Function& function, char* path, size_t size) {
  Dl_info library;
  if (!dladdr(reinterpret_cast<void*>(&find), &library) || !library.dli_fname) return false;
  const char* slash = strrchr(library.dli_fname, '/');
  const int folder = slash ? int(slash + 1 - library.dli_fname) : 0;
  return snprintf(path, size, "%.*sascend/%s.o", folder, library.dli_fname, function.name) < int(size);
}

// Null, or why it cannot be had.
const char* load(Function& function) {
  thread_local char text[700];
  char path[512];
  if (function.handle) return nullptr;
  if (!find(function, path, sizeof path)) return "the path of this library is too long";
  if (access(path, R_OK)) {
    snprintf(text, sizeof text, "%s is not there; on a machine with CANN, run ascend/finish.sh first", path);
    return text;
  }
  acl::LoadOption option{acl::kMagic, {function.mixed ? acl::kForAnyCore : acl::kForVectorCores}};
  acl::LoadOptions options{&option, 1};
  acl::Result result = function.binary ? 0 : acl::functions.load_binary(path, &options, &function.binary);
  if (!result) {
    result = acl::functions.binary_function(function.binary, function.name, &function.handle);
    if (result) acl::functions.unload_binary(function.binary), function.binary = nullptr;
  }
  if (result) return acl::words(result);
  function.next = loaded;
  loaded = &function;
  return nullptr;
}

// Arguments as kernels of Triton's have them: three pointers, the function's own, the grid. Pointers lie on eight
// bytes, numbers on four, and the whole is a multiple of eight.
class Packed {
 public:
  void put(const void* value, size_t size) {
    bytes_ = (bytes_ + size - 1) / size * size;
    if (bytes_ + size <= kMostBytes) memcpy(data_ + bytes_, value, size);
    bytes_ += size;
  }
  void put(void* memory) { put(&memory, sizeof memory); }
  void put(int64_t number) {
    const auto narrow = int32_t(number);
    put(&narrow, sizeof narrow);
  }
  void put(const Argument& argument) {
    if (argument.kind == Argument::kMemory) put(argument.memory);
    else put(&argument.integer, 4);
  }
  size_t bytes() const { return (bytes_ + 7) / 8 * 8; }
  void* data() { return data_; }

 private:
  alignas(8) char data_[kMostBytes] = {};
  size_t bytes_ = 0;
};

// Memory of a launch alone: the next one in the stream may have it.
class Lent {
 public:
  Lent(Call& call, int64_t bytes) : host_(call.host()), data_(bytes ? host_.take(size_t(bytes)) : nullptr) {
    if (bytes && !data_) call.fail("no memory for %lld bytes of workspace", (long long)bytes);
  }
  ~Lent() {
    if (data_) host_.give(data_);
  }
  Lent(const Lent&) = delete;
  Lent& operator=(const Lent&) = delete;
  void* data() const { return data_; }

 private:
  Host& host_;
  void* data_;
};

void launch_on_npu(Call& call, Function& function, const Extent& grid, const Argument* arguments, int count) {
  pthread_mutex_lock(&loading);
  const char* why = load(function);
  pthread_mutex_unlock(&loading);
  if (why) return call.fail("%s cannot be loaded: %s", function.name, why);
  const int64_t blocks = grid.x * grid.y * grid.z, locks_bytes = function.locks * 8;
  const Lent locks(call, locks_bytes), workspace(call, function.workspace * blocks);
  if (call.failed()) return;
  acl::Handle stream = call.host().stream();
  acl::Result result = locks_bytes ? device::driver.fill(locks.data(), 0, size_t(locks_bytes), stream) : 0;
  Packed packed;
  for (void* hidden : {acl::sync_address(), locks.data(), workspace.data()}) packed.put(hidden);
  for (int i = 0; i < count; ++i) packed.put(arguments[i]);
  for (int64_t extent : {grid.x, grid.y, grid.z}) packed.put(extent);
  if (packed.bytes() > kMostBytes) return call.fail("%s takes too many arguments", function.name);
  if (!result)
    result = acl::functions.launch(function.handle, uint32_t(blocks), stream, nullptr, packed.data(), packed.bytes(),
                                   nullptr, 0);
  if (result) call.fail("%s was not launched: %s", function.name, acl::words(result));
}

}  // namespace

void unload_functions() {
  pthread_mutex_lock(&loading);
  while (Function* each = loaded) {
    acl::functions.unload_binary(each->binary);
    loaded = each->next;
    each->binary = each->handle = nullptr;
    each->next = nullptr;
  }
  pthread_mutex_unlock(&loading);
}

void Run::launch(Function& function, const Extent& grid, const Argument* arguments, int count) {
  if (call_.failed() || !grid.x || !grid.y || !grid.z) return;
  if (grid.x > kMostBlocks || grid.y > kMostBlocks || grid.z > kMostBlocks ||
      grid.x * grid.y * grid.z > kMostBlocks)
    return call_.fail("%s cannot run on a grid of %lld x %lld x %lld: too much at once", function.name,
                      (long long)grid.x, (long long)grid.y, (long long)grid.z);
  if (!device::simulated()) return launch_on_npu(call_, function, grid, arguments, count);
  if (!function.block)
    return call_.fail("%s cannot be simulated: this library was linked without code for CPUs", function.name);
  device::simulate(function, grid, arguments);
}

}  // namespace moec
