// The slice of the CUDA driver's interface this library speaks, declared here so that building needs no CUDA.
//
// libcuda.so.1 is opened when the library is first used, never linked: machines without a driver load the library
// and are told what is missing.
#pragma once

#include <cstddef>
#include <cstdint>

struct CUctx_st;
struct CUmod_st;
struct CUfunc_st;
struct CUstream_st;
struct CUevent_st;
struct CUgraph_st;
struct CUgraphExec_st;

namespace moec {
namespace cuda {

using Result = int;  // 0: success
using Context = CUctx_st*;
using Module = CUmod_st*;
using Code = CUfunc_st*;
using Stream = CUstream_st*;
using Event = CUevent_st*;
using Graph = CUgraph_st*;
using GraphExec = CUgraphExec_st*;

constexpr int kMajor = 75, kMinor = 76;          // device attributes: the compute capability
constexpr int kNonBlocking = 1;                  // streams: do not wait for the default stream
constexpr int kTimed = 0, kUntimed = 2;          // events
constexpr int kThreadLocal = 1, kRelaxed = 2;    // what capturing a stream forbids to this thread
constexpr int kMaxDynamicShared = 8;             // a function's attributes
constexpr int kPreferredShared = 9;              // percent of what is L1 else
constexpr int kProgrammaticSerialization = 6;    // a launch's attribute

struct Attribute {
  int id;
  int padding;
  union {
    int value;
    char room[64];
  };
};

struct LaunchConfig {
  unsigned grid[3], block[3], shared;
  Stream stream;
  Attribute* attributes;
  unsigned count;
};
static_assert(sizeof(Attribute) == 72 && sizeof(LaunchConfig) == 56, "the driver reads these by offset");

// As we call it, the driver's symbol, its parameters. Device addresses are pointers of the host's size.
#define MOEC_CUDA_FUNCTIONS(F)                                                                                  \
  F(init, "cuInit", unsigned)                                                                                   \
  F(error_string, "cuGetErrorString", Result, const char**)                                                     \
  F(device_count, "cuDeviceGetCount", int*)                                                                     \
  F(device, "cuDeviceGet", int*, int)                                                                           \
  F(device_attribute, "cuDeviceGetAttribute", int*, int, int)                                                   \
  F(retain_context, "cuDevicePrimaryCtxRetain", Context*, int)                                                  \
  F(current_context, "cuCtxGetCurrent", Context*)                                                               \
  F(set_context, "cuCtxSetCurrent", Context)                                                                    \
  F(load_module, "cuModuleLoadData", Module*, const void*)                                                      \
  F(module_function, "cuModuleGetFunction", Code*, Module, const char*)                                         \
  F(unload_module, "cuModuleUnload", Module)                                                                    \
  F(set_function, "cuFuncSetAttribute", Code, int, int)                                                         \
  F(launch, "cuLaunchKernelEx", const LaunchConfig*, Code, void**, void**)                                      \
  F(encode_tiled, "cuTensorMapEncodeTiled", void*, int, uint32_t, void*, const uint64_t*, const uint64_t*,      \
    const uint32_t*, const uint32_t*, int, int, int, int)                                                       \
  F(allocate, "cuMemAlloc_v2", void**, size_t)                                                                  \
  F(free, "cuMemFree_v2", void*)                                                                                \
  F(allocate_host, "cuMemHostAlloc", void**, size_t, unsigned)                                                  \
  F(free_host, "cuMemFreeHost", void*)                                                                          \
  F(copy, "cuMemcpyAsync", void*, const void*, size_t, Stream)                                                  \
  F(fill, "cuMemsetD8Async", void*, unsigned char, size_t, Stream)                                              \
  F(create_stream, "cuStreamCreate", Stream*, unsigned)                                                         \
  F(destroy_stream, "cuStreamDestroy_v2", Stream)                                                               \
  F(synchronize, "cuStreamSynchronize", Stream)                                                                 \
  F(wait_event, "cuStreamWaitEvent", Stream, Event, unsigned)                                                   \
  F(begin_capture, "cuStreamBeginCapture_v2", Stream, int)                                                      \
  F(end_capture, "cuStreamEndCapture", Stream, Graph*)                                                          \
  F(exchange_capture_mode, "cuThreadExchangeStreamCaptureMode", int*)                                           \
  F(instantiate, "cuGraphInstantiateWithFlags", GraphExec*, Graph, unsigned long long)                          \
  F(launch_graph, "cuGraphLaunch", GraphExec, Stream)                                                           \
  F(destroy_exec, "cuGraphExecDestroy", GraphExec)                                                              \
  F(destroy_graph, "cuGraphDestroy", Graph)                                                                     \
  F(create_event, "cuEventCreate", Event*, unsigned)                                                            \
  F(destroy_event, "cuEventDestroy_v2", Event)                                                                  \
  F(record, "cuEventRecord", Event, Stream)                                                                     \
  F(wait_host, "cuEventSynchronize", Event)                                                                     \
  F(elapsed, "cuEventElapsedTime", float*, Event, Event)

struct Driver {
#define F(name, symbol, ...) Result (*name)(__VA_ARGS__);
  MOEC_CUDA_FUNCTIONS(F)
#undef F
};

// Its functions are there once open() succeeded.
extern Driver driver;

// Makes the first GPU ready. Null, or why it cannot run this library: a sentence.
const char* open();

// The driver's word for a failure.
const char* words(Result result);

// The GPU's primary context is this thread's for as long as one of these lives.
class Current {
 public:
  Current();
  ~Current();
  Current(const Current&) = delete;
  Current& operator=(const Current&) = delete;

 private:
  Context before_ = nullptr;
  bool changed_ = false;
};

// What capturing a stream forbids is allowed to this thread meanwhile: the graph takes no part in it.
class Unrestricted {
 public:
  Unrestricted() { driver.exchange_capture_mode(&mode_); }
  ~Unrestricted() { driver.exchange_capture_mode(&mode_); }
  Unrestricted(const Unrestricted&) = delete;
  Unrestricted& operator=(const Unrestricted&) = delete;

 private:
  int mode_ = kRelaxed;
};

}  // namespace cuda
}  // namespace moec
