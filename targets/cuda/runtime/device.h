// The device that the shared runtime serves: an NVIDIA GPU.
#pragma once

#include "cuda_abi.h"
#include "ep_abi.h"

namespace moec {
namespace cuda {

constexpr uint32_t kVendor = 0x10DE;  // the PCI number of the vendor
constexpr int kHardware = ort::kGpu, kMemoryType = ort::kGpu;
constexpr const char* kProvider = "MoecCudaExecutionProvider";
constexpr const char* kOptions = "ep.moeccudaexecutionprovider.";  // in front of a session's wishes
constexpr const char *kMemory = "MoecCuda", *kHostMemory = "MoecCudaHost";
constexpr bool kRecords = true;  // whether runs can become graphs
constexpr const char* kFailed = "the GPU failed";

// The driver tells by addresses which memory is the host's.
inline Result copy(void* to, bool, const void* from, bool, size_t bytes, Stream stream) {
  return driver.copy(to, from, bytes, stream);
}

// What else onnxruntime is to know of the device.
inline void describe(OrtKeyValuePairs*) {}

}  // namespace cuda

namespace device = cuda;

}  // namespace moec
