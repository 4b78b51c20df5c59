// Launching kernels of the cubins that are part of the library.
#include "launch.h"

#include <pthread.h>

#include <cstring>

#include "cuda_abi.h"

namespace moec {
namespace {

Function* loaded = nullptr;
pthread_mutex_t loading = PTHREAD_MUTEX_INITIALIZER;

// Shared memory of a multiprocessor, and what each block takes of it besides its own.
constexpr int64_t kShared = 228 << 10, kReserved = 1 << 10;

// Percent of shared memory for four blocks, a fourth at least; -1, nothing asked for, where half is too little.
//
// A function that asks for nothing runs with what the one before it left. Where that is all shared memory,
// little L1 is left for loads under way, and one that streams weights takes a fourth longer.
int preferred(int64_t shared) {
  const int64_t percent = (4 * (shared + kReserved) * 100 + kShared - 1) / kShared;
  return percent > 50 ? -1 : percent < 25 ? 25 : int(percent);
}

// Functions of one cubin share a module. Loading is never part of a graph, so a capture may go on around it.
const char* load(Function& function, int64_t shared) {
  cuda::Unrestricted unrestricted;
  for (const Function* other = loaded; other && !function.module; other = other->next)
    if (other->cubin == function.cubin) function.module = other->module;
  cuda::Result result = 0;
  if (!function.module) result = cuda::driver.load_module(&function.module, function.cubin);
  if (!result && !function.function) {
    result = cuda::driver.module_function(&function.function, function.module, function.name);
    if (!result) {
      cuda::driver.set_function(function.function, cuda::kPreferredShared, preferred(shared));  // a wish
      function.next = loaded, loaded = &function;
    }
  }
  if (!result && shared > function.shared) {
    result = cuda::driver.set_function(function.function, cuda::kMaxDynamicShared, int(shared));
    if (!result) __atomic_store_n(&function.shared, shared, __ATOMIC_RELEASE);
  }
  return result ? cuda::words(result) : nullptr;
}

bool any_zero(const int64_t* sizes, int count) {
  for (int i = 0; i < count; ++i)
    if (!sizes[i]) return true;
  return false;
}

}  // namespace

void unload_functions() {
  pthread_mutex_lock(&loading);
  while (Function* each = loaded) {
    bool last = true;
    for (const Function* other = each->next; other; other = other->next) last &= other->module != each->module;
    if (last) cuda::driver.unload_module(each->module);
    loaded = each->next;
    *each = {each->cubin, each->name};
  }
  pthread_mutex_unlock(&loading);
}

Run::Run(Call& call, const int64_t (&sizes)[kSizes], void* const* results)
    : Ports(call, sizes, results), stream_(static_cast<CUstream_st*>(call.host().stream())) {}

TensorMap Run::map(void* data, const Tiling& t) {
  TensorMap map;
  memset(&map, 0, sizeof map);
  if (call_.failed() || any_zero(t.shape, t.rank)) return map;
  uint64_t shape[5], strides[5];
  uint32_t box[5], steps[5];
  for (int i = 0; i < t.rank; ++i) {
    shape[i] = uint64_t(t.shape[i]), box[i] = uint32_t(t.box[i]), steps[i] = uint32_t(t.steps[i]);
    strides[i] = i + 1 < t.rank ? uint64_t(t.strides[i]) : 0;
  }
  const cuda::Result result =
      cuda::driver.encode_tiled(&map, t.type, uint32_t(t.rank), data, shape, strides, box, steps, t.interleave,
                                t.swizzle, t.promotion, t.fill);
  if (result)
    call_.fail("a tensor map of %lld x %lld elements was refused: %s", (long long)t.shape[0],
               t.rank > 1 ? (long long)t.shape[1] : 1LL, cuda::words(result));
  return map;
}

void Run::launch(Function& function, const Extent& grid, const Extent& block, int64_t shared, bool overlap,
                 void** arguments) {
  if (call_.failed() || !grid.x || !grid.y || !grid.z) return;
  if (grid.x > INT32_MAX || grid.y > UINT16_MAX || grid.z > UINT16_MAX)
    return call_.fail("%s cannot run on a grid of %lld x %lld x %lld: too much at once", function.name,
                      (long long)grid.x, (long long)grid.y, (long long)grid.z);
  if (!function.function || shared > __atomic_load_n(&function.shared, __ATOMIC_ACQUIRE)) {
    pthread_mutex_lock(&loading);
    const char* why = load(function, shared);
    pthread_mutex_unlock(&loading);
    if (why) return call_.fail("%s cannot be loaded with %lld bytes of shared memory: %s", function.name,
                               (long long)shared, why);
  }
  cuda::Attribute serialization{};
  serialization.id = cuda::kProgrammaticSerialization;
  serialization.value = 1;
  const cuda::LaunchConfig config{{unsigned(grid.x), unsigned(grid.y), unsigned(grid.z)},
                                  {unsigned(block.x), unsigned(block.y), unsigned(block.z)},
                                  unsigned(shared), stream_, &serialization, overlap ? 1u : 0u};
  const cuda::Result result = cuda::driver.launch(&config, function.function, arguments, nullptr);
  if (result) call_.fail("%s was not launched: %s", function.name, cuda::words(result));
}

}  // namespace moec
