// The slice of onnxruntime's interface for execution providers this library speaks, as of version 27 (onnxruntime
// 1.27), declared here so that building needs no headers. Order and count of members are the interface.
#pragma once

#include "ort_abi.h"

extern "C" {

struct OrtEpDevice;
struct OrtEpGraphSupportInfo;
struct OrtGraph;
struct OrtHardwareDevice;
struct OrtKernelDef;
struct OrtKernelDefBuilder;
struct OrtKernelRegistry;
struct OrtKeyValuePairs;
struct OrtLogger;
struct OrtMemoryDevice;
struct OrtMemoryInfo;
struct OrtNode;
struct OrtRunOptions;
struct OrtSyncStream;

struct OrtAllocator {
  uint32_t version;
  void* (*Alloc)(OrtAllocator*, size_t);
  void (*Free)(OrtAllocator*, void*);
  const OrtMemoryInfo* (*Info)(const OrtAllocator*);
  void* (*Reserve)(OrtAllocator*, size_t);
  void* GetStats;
  void* AllocOnStream;
  void* Shrink;
};

struct OrtDataTransferImpl {
  uint32_t version;
  void (*Release)(OrtDataTransferImpl*);
  bool (*CanCopy)(const OrtDataTransferImpl*, const OrtMemoryDevice* from, const OrtMemoryDevice* to);
  OrtStatus* (*CopyTensors)(OrtDataTransferImpl*, const OrtValue** from, OrtValue** to, OrtSyncStream**, size_t);
};

struct OrtSyncNotificationImpl {
  uint32_t version;
  void (*Release)(OrtSyncNotificationImpl*);
  OrtStatus* (*Activate)(OrtSyncNotificationImpl*);
  OrtStatus* (*WaitOnDevice)(OrtSyncNotificationImpl*, OrtSyncStream* consumer);
  OrtStatus* (*WaitOnHost)(OrtSyncNotificationImpl*);
};

struct OrtSyncStreamImpl {
  uint32_t version;
  void (*Release)(OrtSyncStreamImpl*);
  void* (*GetHandle)(OrtSyncStreamImpl*);
  OrtStatus* (*CreateNotification)(OrtSyncStreamImpl*, OrtSyncNotificationImpl**);
  OrtStatus* (*Flush)(OrtSyncStreamImpl*);
  OrtStatus* (*OnSessionRunEnd)(OrtSyncStreamImpl*);
};

struct OrtKernelImpl {
  uint32_t version;
  uint32_t flags;
  OrtStatus* (*Compute)(OrtKernelImpl*, OrtKernelContext*);
  void (*Release)(OrtKernelImpl*);
  void* PrePackWeight;
  void* SetSharedPrePackedWeight;
};

using OrtKernelCreateFunc = OrtStatus* (*)(void* state, const OrtKernelInfo*, OrtKernelImpl**);

struct OrtEp {
  uint32_t version;
  const char* (*GetName)(const OrtEp*);
  OrtStatus* (*GetCapability)(OrtEp*, const OrtGraph*, OrtEpGraphSupportInfo*);
  void* Compile;
  void* ReleaseNodeComputeInfos;
  void* GetPreferredDataLayout;
  void* ShouldConvertDataLayoutForOp;
  void* SetDynamicOptions;
  OrtStatus* (*OnRunStart)(OrtEp*, const OrtRunOptions*);
  OrtStatus* (*OnRunEnd)(OrtEp*, const OrtRunOptions*, bool synchronize);
  OrtStatus* (*CreateAllocator)(OrtEp*, const OrtMemoryInfo*, OrtAllocator**);
  OrtStatus* (*CreateSyncStreamForDevice)(OrtEp*, const OrtMemoryDevice*, OrtSyncStreamImpl**);
  void* GetCompiledModelCompatibilityInfo;
  OrtStatus* (*GetKernelRegistry)(OrtEp*, const OrtKernelRegistry**);
  OrtStatus* (*IsConcurrentRunSupported)(OrtEp*, bool*);
  OrtStatus* (*Sync)(OrtEp*);
  void* CreateProfiler;
  bool (*IsGraphCaptureEnabled)(const OrtEp*);
  bool (*IsGraphCaptured)(const OrtEp*, int graph);
  OrtStatus* (*ReplayGraph)(OrtEp*, int graph);
  void* GetGraphCaptureNodeAssignmentPolicy;
  void* GetAvailableResource;
  void* OnSessionInitializationEnd;
  void* GetDefaultMemoryDevice;
  OrtStatus* (*ReleaseCapturedGraph)(OrtEp*, int graph);
};

struct OrtEpFactory {
  uint32_t version;
  const char* (*GetName)(const OrtEpFactory*);
  const char* (*GetVendor)(const OrtEpFactory*);
  OrtStatus* (*GetSupportedDevices)(OrtEpFactory*, const OrtHardwareDevice* const*, size_t, OrtEpDevice**, size_t most,
                                    size_t* count);
  OrtStatus* (*CreateEp)(OrtEpFactory*, const OrtHardwareDevice* const*, const OrtKeyValuePairs* const*, size_t,
                         const OrtSessionOptions*, const OrtLogger*, OrtEp**);
  void (*ReleaseEp)(OrtEpFactory*, OrtEp*);
  uint32_t (*GetVendorId)(const OrtEpFactory*);
  const char* (*GetVersion)(const OrtEpFactory*);
  void* ValidateCompiledModelCompatibilityInfo;
  OrtStatus* (*CreateAllocator)(OrtEpFactory*, const OrtMemoryInfo*, const OrtKeyValuePairs*, OrtAllocator**);
  void (*ReleaseAllocator)(OrtEpFactory*, OrtAllocator*);
  OrtStatus* (*CreateDataTransfer)(OrtEpFactory*, OrtDataTransferImpl**);
  bool (*IsStreamAware)(const OrtEpFactory*);
  OrtStatus* (*CreateSyncStreamForDevice)(OrtEpFactory*, const OrtMemoryDevice*, const OrtKeyValuePairs*,
                                          OrtSyncStreamImpl**);
  void* GetHardwareDeviceIncompatibilityDetails;
  void* CreateExternalResourceImporterForDevice;
  OrtStatus* (*GetNumCustomOpDomains)(OrtEpFactory*, size_t*);
  OrtStatus* (*GetCustomOpDomains)(OrtEpFactory*, OrtCustomOpDomain**, size_t);
  void* InitGraphicsInterop;
  void* DeinitGraphicsInterop;
};

}  // extern "C"

static_assert(sizeof(OrtEp) == 25 * sizeof(void*) && sizeof(OrtEpFactory) == 20 * sizeof(void*) &&
                  sizeof(OrtAllocator) == 8 * sizeof(void*) && sizeof(OrtKernelImpl) == 5 * sizeof(void*),
              "onnxruntime reads these structures by offset");

namespace ort {

constexpr uint32_t kEpVersion = 27;               // onnxruntime 1.27
constexpr int kCpu = 0, kGpu = 1, kNpu = 2;       // types of hardware
constexpr int kNpuMemory = 3;                     // types of memory: the same, but for this
constexpr int kOnDevice = 0, kHostAccessible = 5;  // kinds of memory
constexpr int kDeviceAllocator = 0;

constexpr Function<Status, const OrtValue*, const OrtMemoryInfo**> GetTensorMemoryInfo{194};
constexpr Function<void, const OrtMemoryInfo*, int*> MemoryInfoGetDeviceType{225};
constexpr Function<Status, const OrtValue*, size_t*> GetTensorSizeInBytes{318};
constexpr Function<void, OrtMemoryInfo*> ReleaseMemoryInfo{94};
constexpr Function<void, OrtCustomOpDomain*> ReleaseCustomOpDomain{101};
constexpr Function<Status, const OrtSessionOptions*, const char*, int*> HasSessionConfigEntry{237};
constexpr Function<Status, const OrtSessionOptions*, const char*, char*, size_t*> GetSessionConfigEntry{238};
constexpr Function<void, OrtKeyValuePairs**> CreateKeyValuePairs{295};
constexpr Function<void, OrtKeyValuePairs*, const char*, const char*> AddKeyValuePair{296};
constexpr Function<void, OrtKeyValuePairs*> ReleaseKeyValuePairs{300};
constexpr Function<int, const OrtHardwareDevice*> HardwareDevice_Type{307};
constexpr Function<uint32_t, const OrtHardwareDevice*> HardwareDevice_VendorId{308};
constexpr Function<void* const*> GetEpApi{317};
constexpr Function<Status, const char*, int, uint32_t, int32_t, int, size_t, int, OrtMemoryInfo**>
    CreateMemoryInfo_V2{320};
constexpr Function<int, const OrtMemoryInfo*> MemoryInfoGetDeviceMemType{321};
constexpr Function<Status, const OrtGraph*, size_t*> Graph_GetNumNodes{344};
constexpr Function<Status, const OrtGraph*, const OrtNode**, size_t> Graph_GetNodes{345};
constexpr Function<const char*, const OrtRunOptions*, const char*> GetRunConfigEntry{373};
constexpr Function<void*, OrtSyncStream*> SyncStream_GetHandle{384};

extern void* const* ep_table;  // OrtEpApi of kEpVersion

template <class Result, class... Arguments>
struct EpFunction {
  int index;
  Result operator()(Arguments... arguments) const {
    return reinterpret_cast<Result (*)(Arguments...)>(ep_table[index])(arguments...);
  }
};

constexpr EpFunction<Status, OrtEpFactory*, const OrtHardwareDevice*, const OrtKeyValuePairs*,
                     const OrtKeyValuePairs*, OrtEpDevice**> CreateEpDevice{0};
constexpr EpFunction<void, OrtEpDevice*> ReleaseEpDevice{1};
constexpr EpFunction<Status, OrtEpGraphSupportInfo*, const OrtNode*> EpGraphSupportInfo_AddSingleNode{3};
constexpr EpFunction<Status, OrtEpDevice*, const OrtMemoryInfo*> EpDevice_AddAllocatorInfo{5};
constexpr EpFunction<int, const OrtMemoryDevice*> MemoryDevice_GetDeviceType{9};
constexpr EpFunction<int, const OrtMemoryDevice*> MemoryDevice_GetMemoryType{10};
constexpr EpFunction<uint32_t, const OrtMemoryDevice*> MemoryDevice_GetVendorId{11};
constexpr EpFunction<Status, OrtKernelRegistry**> CreateKernelRegistry{18};
constexpr EpFunction<void, OrtKernelRegistry*> ReleaseKernelRegistry{19};
constexpr EpFunction<Status, OrtKernelRegistry*, const OrtKernelDef*, OrtKernelCreateFunc, void*>
    KernelRegistry_AddKernel{20};
constexpr EpFunction<Status, OrtKernelDefBuilder**> CreateKernelDefBuilder{21};
constexpr EpFunction<void, OrtKernelDefBuilder*> ReleaseKernelDefBuilder{22};
constexpr EpFunction<Status, OrtKernelDefBuilder*, const char*> KernelDefBuilder_SetOperatorType{23};
constexpr EpFunction<Status, OrtKernelDefBuilder*, const char*> KernelDefBuilder_SetDomain{24};
constexpr EpFunction<Status, OrtKernelDefBuilder*, int, int> KernelDefBuilder_SetSinceVersion{25};
constexpr EpFunction<Status, OrtKernelDefBuilder*, const char*> KernelDefBuilder_SetExecutionProvider{26};
constexpr EpFunction<Status, OrtKernelDefBuilder*, size_t, int> KernelDefBuilder_SetInputMemType{27};
constexpr EpFunction<Status, OrtKernelDefBuilder*, size_t, int> KernelDefBuilder_SetOutputMemType{28};
constexpr EpFunction<Status, OrtKernelDefBuilder*, const int*, const int*, size_t>
    KernelDefBuilder_AddInputOutputMutableAliases{31};
constexpr EpFunction<Status, OrtKernelDefBuilder*, OrtKernelDef**> KernelDefBuilder_Build{32};
constexpr EpFunction<void, OrtKernelDef*> ReleaseKernelDef{33};
constexpr EpFunction<Status, OrtEpGraphSupportInfo*, const OrtNode*, const OrtKernelDef**>
    EpGraphSupportInfo_LookUpKernel{41};

}  // namespace ort
