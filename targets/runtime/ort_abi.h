// The slice of onnxruntime's C interface this library speaks, declared here so that building needs no headers.
//
// The function table only ever grows, so an index is good for every later version. Functions are fetched by index
// through the typed wrappers in namespace ort; structures named here without a body are never looked into.
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {

struct OrtStatus;
struct OrtSessionOptions;
struct OrtCustomOpDomain;
struct OrtKernelInfo;
struct OrtKernelContext;
struct OrtShapeInferContext;
struct OrtTensorTypeAndShapeInfo;
struct OrtValue;

struct OrtApiBase {
  const void* (*GetApi)(uint32_t version);
  const char* (*GetVersionString)();
};

// What one operator says about itself. Order and count of the members are the interface of version 22.
struct OrtCustomOp {
  uint32_t version;
  void* (*CreateKernel)(const OrtCustomOp*, const void* api, const OrtKernelInfo*);
  const char* (*GetName)(const OrtCustomOp*);
  const char* (*GetExecutionProviderType)(const OrtCustomOp*);
  int (*GetInputType)(const OrtCustomOp*, size_t);
  size_t (*GetInputTypeCount)(const OrtCustomOp*);
  int (*GetOutputType)(const OrtCustomOp*, size_t);
  size_t (*GetOutputTypeCount)(const OrtCustomOp*);
  void (*KernelCompute)(void* kernel, OrtKernelContext*);
  void (*KernelDestroy)(void* kernel);
  int (*GetInputCharacteristic)(const OrtCustomOp*, size_t);
  int (*GetOutputCharacteristic)(const OrtCustomOp*, size_t);
  int (*GetInputMemoryType)(const OrtCustomOp*, size_t);
  int (*GetVariadicInputMinArity)(const OrtCustomOp*);
  int (*GetVariadicInputHomogeneity)(const OrtCustomOp*);
  int (*GetVariadicOutputMinArity)(const OrtCustomOp*);
  int (*GetVariadicOutputHomogeneity)(const OrtCustomOp*);
  OrtStatus* (*CreateKernelV2)(const OrtCustomOp*, const void* api, const OrtKernelInfo*, void** kernel);
  OrtStatus* (*KernelComputeV2)(void* kernel, OrtKernelContext*);
  OrtStatus* (*InferOutputShapeFn)(const OrtCustomOp*, OrtShapeInferContext*);
  int (*GetStartVersion)(const OrtCustomOp*);
  int (*GetEndVersion)(const OrtCustomOp*);
  size_t (*GetMayInplace)(int** inputs, int** outputs);
  void (*ReleaseMayInplace)(int* inputs, int* outputs);
  size_t (*GetAliasMap)(int** inputs, int** outputs);
  void (*ReleaseAliasMap)(int* inputs, int* outputs);
};
static_assert(sizeof(OrtCustomOp) == 26 * sizeof(void*), "onnxruntime reads this structure by offset");

}  // extern "C"

namespace ort {

constexpr uint32_t kVersion = 22;        // onnxruntime 1.22, the first with everything used below
constexpr int kFail = 1, kInvalid = 2;   // status codes
constexpr int kRequired = 0, kOptional = 1;  // of inputs and outputs

extern void* const* table;  // OrtApi of kVersion

template <class Result, class... Arguments>
struct Function {
  int index;
  Result operator()(Arguments... arguments) const {
    return reinterpret_cast<Result (*)(Arguments...)>(table[index])(arguments...);
  }
};

using Status = OrtStatus*;
constexpr Function<Status, int, const char*> CreateStatus{0};
constexpr Function<Status, const char*, OrtCustomOpDomain**> CreateCustomOpDomain{26};
constexpr Function<Status, OrtCustomOpDomain*, const OrtCustomOp*> CustomOpDomain_Add{27};
constexpr Function<Status, OrtSessionOptions*, OrtCustomOpDomain*> AddCustomOpDomain{28};
constexpr Function<Status, OrtValue*, void**> GetTensorMutableData{51};
constexpr Function<Status, const OrtTensorTypeAndShapeInfo*, size_t*> GetDimensionsCount{61};
constexpr Function<Status, const OrtTensorTypeAndShapeInfo*, int64_t*, size_t> GetDimensions{62};
constexpr Function<Status, const OrtTensorTypeAndShapeInfo*, size_t*> GetTensorShapeElementCount{64};
constexpr Function<Status, const OrtValue*, OrtTensorTypeAndShapeInfo**> GetTensorTypeAndShape{65};
constexpr Function<Status, const OrtKernelContext*, size_t*> KernelContext_GetInputCount{88};
constexpr Function<Status, const OrtKernelContext*, size_t, const OrtValue**> KernelContext_GetInput{90};
constexpr Function<Status, OrtKernelContext*, size_t, const int64_t*, size_t, OrtValue**> KernelContext_GetOutput{91};
constexpr Function<void, OrtStatus*> ReleaseStatus{93};
constexpr Function<void, OrtTensorTypeAndShapeInfo*> ReleaseTensorTypeAndShapeInfo{99};
constexpr Function<Status, const OrtKernelInfo*, size_t, int*, const OrtValue**> KernelInfoGetConstantInput_tensor{249};
constexpr Function<Status, const OrtKernelContext*, void (*)(void*, size_t), size_t, size_t, void*>
    KernelContext_ParallelFor{274};

}  // namespace ort
