// The slice of ACL, the interface of CANN's runtime, that this library speaks, declared here so that building needs
// no CANN.
//
// libascendcl.so is opened when the library is first used, never linked.
#pragma once

#include <cstddef>
#include <cstdint>

namespace moec {
namespace acl {

using Result = int;  // 0: success
using Handle = void*;

constexpr Result kInitialised = 100002;  // somebody else has called aclInit in this process
constexpr int kHugePagesFirst = 0;       // how memory is allocated
constexpr int kWithinHost = 0, kToDevice = 1, kToHost = 2, kWithinDevice = 3;  // copies
constexpr uint32_t kSync = 1, kTimeLine = 8;                                   // events: to wait for, to time with
constexpr uint32_t kForAnyCore = 0x43554245, kForVectorCores = 0x41415246;     // what a kernel's object is for
constexpr int kMagic = 2;  // the option of loading an object that says so

struct LoadOption {
  int type;
  union {
    uint32_t magic;
    uint32_t room[4];
  };
};

struct LoadOptions {
  LoadOption* options;
  size_t count;
};
static_assert(sizeof(LoadOption) == 20 && sizeof(LoadOptions) == 16, "ACL reads these by offset");

// As we call it, ACL's symbol, what it gives, its parameters.
#define MOEC_ACL_FUNCTIONS(F)                                                                                      \
  F(init, "aclInit", Result, const char*)                                                                          \
  F(recent_error, "aclGetRecentErrMsg", const char*)                                                               \
  F(device_count, "aclrtGetDeviceCount", Result, uint32_t*)                                                        \
  F(set_device, "aclrtSetDevice", Result, int32_t)                                                                 \
  F(soc_name, "aclrtGetSocName", const char*)                                                                      \
  F(current_context, "aclrtGetCurrentContext", Result, Handle*)                                                    \
  F(set_context, "aclrtSetCurrentContext", Result, Handle)                                                         \
  F(sync_address, "aclrtGetHardwareSyncAddr", Result, void**)                                                      \
  F(allocate, "aclrtMalloc", Result, void**, size_t, int)                                                          \
  F(free, "aclrtFree", Result, void*)                                                                              \
  F(allocate_host, "aclrtMallocHost", Result, void**, size_t)                                                      \
  F(free_host, "aclrtFreeHost", Result, void*)                                                                     \
  F(copy, "aclrtMemcpy", Result, void*, size_t, const void*, size_t, int)                                          \
  F(copy_later, "aclrtMemcpyAsync", Result, void*, size_t, const void*, size_t, int, Handle)                       \
  F(fill, "aclrtMemsetAsync", Result, void*, size_t, int32_t, size_t, Handle)                                      \
  F(create_stream, "aclrtCreateStream", Result, Handle*)                                                           \
  F(destroy_stream, "aclrtDestroyStream", Result, Handle)                                                          \
  F(synchronize, "aclrtSynchronizeStream", Result, Handle)                                                         \
  F(synchronize_all, "aclrtSynchronizeDevice", Result)                                                             \
  F(wait_event, "aclrtStreamWaitEvent", Result, Handle, Handle)                                                    \
  F(create_event, "aclrtCreateEventExWithFlag", Result, Handle*, uint32_t)                                         \
  F(destroy_event, "aclrtDestroyEvent", Result, Handle)                                                            \
  F(record, "aclrtRecordEvent", Result, Handle, Handle)                                                            \
  F(wait_host, "aclrtSynchronizeEvent", Result, Handle)                                                            \
  F(elapsed, "aclrtEventElapsedTime", Result, float*, Handle, Handle)                                              \
  F(load_binary, "aclrtBinaryLoadFromFile", Result, const char*, LoadOptions*, Handle*)                            \
  F(unload_binary, "aclrtBinaryUnLoad", Result, Handle)                                                            \
  F(binary_function, "aclrtBinaryGetFunction", Result, Handle, const char*, Handle*)                               \
  F(launch, "aclrtLaunchKernelWithHostArgs", Result, Handle, uint32_t, Handle, void*, void*, size_t, void*, size_t)

struct Functions {
#define F(name, symbol, result, ...) result (*name)(__VA_ARGS__);
  MOEC_ACL_FUNCTIONS(F)
#undef F
};

extern Functions functions;

// Opens libascendcl.so and finds the functions. Null, or what is missing; found says whether the file is there.
const char* load(bool* found);

// Makes the first NPU ready. Null, or why it cannot run this library: the rest of "this machine has ..".
const char* open();

// What ACL says of a failure; holds until this thread asks again.
const char* words(Result result);

// Where kernels of cube and vector cores wait for each other.
void* sync_address();

}  // namespace acl
}  // namespace moec
