// The device that the shared runtime serves: an Ascend NPU, or this CPU in its place where there is no NPU's runtime.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ep_abi.h"

namespace moec {
namespace ascend {

using Result = int;  // 0: success
using Stream = void*;
using Event = void*;

constexpr uint32_t kVendor = 0x19E5;                // the PCI number of the vendor
constexpr int kHardware = ort::kNpu, kMemoryType = ort::kNpuMemory;
constexpr const char* kProvider = "MoecAscendExecutionProvider";
constexpr const char* kOptions = "ep.moecascendexecutionprovider.";  // in front of a session's wishes
constexpr const char *kMemory = "MoecAscend", *kHostMemory = "MoecAscendHost";
constexpr bool kRecords = false;  // whether runs can become graphs
constexpr const char* kFailed = "the NPU failed";
constexpr unsigned kNonBlocking = 0;         // streams: there is one kind
constexpr unsigned kTimed = 1, kUntimed = 0;  // events

struct Driver {
  Result (*allocate)(void**, size_t);
  Result (*free)(void*);
  Result (*allocate_host)(void**, size_t, unsigned);
  Result (*free_host)(void*);
  Result (*copy)(void* to, bool to_host, const void* from, bool from_host, size_t, Stream);
  Result (*fill)(void*, unsigned char, size_t, Stream);
  Result (*create_stream)(Stream*, unsigned);
  Result (*destroy_stream)(Stream);
  Result (*synchronize)(Stream);
  Result (*wait_event)(Stream, Event, unsigned);
  Result (*create_event)(Event*, unsigned);
  Result (*destroy_event)(Event);
  Result (*record)(Event, Stream);
  Result (*wait_host)(Event);
  Result (*elapsed)(float*, Event, Event);
};

// Its functions are there once open() succeeded.
extern Driver driver;
extern const Driver of_npu, of_cpu;

// Makes the first NPU ready, or this CPU in its place, which is said on stderr. Null, or why neither runs this
// library: a sentence. MOEC_SIMULATE=1 wants the CPU, MOEC_SIMULATE=0 does not.
const char* open();

// Whether kernels run on this CPU.
bool simulated();

// The driver's word for a failure.
const char* words(Result result);

inline Result copy(void* to, bool to_host, const void* from, bool from_host, size_t bytes, Stream stream) {
  return driver.copy(to, to_host, from, from_host, bytes, stream);
}

// What else onnxruntime is to know of the device: whether it is simulated.
void describe(OrtKeyValuePairs* facts);

// The NPU's context is this thread's for as long as one of these lives.
class Current {
 public:
  Current();
  ~Current();
  Current(const Current&) = delete;
  Current& operator=(const Current&) = delete;

 private:
  void* before_ = nullptr;
  bool changed_ = false;
};

// Nothing is ever recorded, so nothing is forbidden meanwhile.
struct Unrestricted {
  Unrestricted() {}
};

}  // namespace ascend

namespace device = ascend;

}  // namespace moec
