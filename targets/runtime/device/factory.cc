// What onnxruntime finds when it loads the library: a factory of providers for the first device.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "operators.h"
#include "provider.h"
#include "session.h"

void* const* ort::ep_table = nullptr;

namespace moec {
namespace {

struct Factory : OrtEpFactory {
  char name[200];  // that the library was registered under
  OrtMemoryInfo *device_info, *host_info;
  Pool *device, *host;  // of values that belong to no session
  OrtCustomOpDomain* domain;
};

Factory& of(OrtEpFactory* factory) { return *static_cast<Factory*>(factory); }

OrtStatus* make_infos(Factory& f) {
  if (f.device_info) return nullptr;
  if (OrtStatus* status = ort::CreateMemoryInfo_V2(device::kMemory, device::kMemoryType, device::kVendor, 0,
                                                   ort::kOnDevice, 256, ort::kDeviceAllocator, &f.device_info))
    return status;
  return ort::CreateMemoryInfo_V2(device::kHostMemory, device::kMemoryType, device::kVendor, 0, ort::kHostAccessible,
                                  256, ort::kDeviceAllocator, &f.host_info);
}

// Where onnxruntime sees no device, as in many containers, the CPU's place is taken: the memory is the device's all
// the same.
const OrtHardwareDevice* choose(const OrtHardwareDevice* const* devices, size_t count) {
  const OrtHardwareDevice* cpu = nullptr;
  for (size_t i = 0; i < count; ++i) {
    const int type = ort::HardwareDevice_Type(devices[i]);
    if (type == device::kHardware && ort::HardwareDevice_VendorId(devices[i]) == device::kVendor) return devices[i];
    if (type == ort::kCpu) cpu = devices[i];
  }
  return cpu;
}

OrtStatus* get_devices(OrtEpFactory* factory, const OrtHardwareDevice* const* devices, size_t count,
                       OrtEpDevice** found, size_t most, size_t* written) {
  Factory& f = of(factory);
  *written = 0;
  const OrtHardwareDevice* hardware = choose(devices, count);
  if (!hardware || !most) return nullptr;
  if (OrtStatus* status = make_infos(f)) return status;
  OrtKeyValuePairs* facts = nullptr;
  ort::CreateKeyValuePairs(&facts);
  ort::AddKeyValuePair(facts, "registration", f.name);
  device::describe(facts);
  OrtEpDevice* device = nullptr;
  OrtStatus* status = ort::CreateEpDevice(factory, hardware, facts, nullptr, &device);
  ort::ReleaseKeyValuePairs(facts);
  if (!status) status = ort::EpDevice_AddAllocatorInfo(device, f.device_info);
  if (!status) status = ort::EpDevice_AddAllocatorInfo(device, f.host_info);
  if (!status) found[(*written)++] = device;
  else if (device) ort::ReleaseEpDevice(device);
  return status;
}

// Whether a session asks this provider for something with "1".
OrtStatus* option(const OrtSessionOptions* options, const char* name, bool* on) {
  int has = 0;
  char key[100], value[16] = "";
  size_t size = sizeof value;
  snprintf(key, sizeof key, "%s%s", device::kOptions, name);
  if (OrtStatus* status = ort::HasSessionConfigEntry(options, key, &has)) return status;
  if (!has) return nullptr;
  if (OrtStatus* status = ort::GetSessionConfigEntry(options, key, value, &size)) return status;
  *on = !strcmp(value, "1");
  return nullptr;
}

OrtStatus* create(OrtEpFactory*, const OrtHardwareDevice* const*, const OrtKeyValuePairs* const*, size_t,
                  const OrtSessionOptions* options, const OrtLogger*, OrtEp** made) {
  bool graphs = false, clocked = false;
  if (OrtStatus* status = option(options, "graph", &graphs)) return status;
  if (OrtStatus* status = option(options, "clock", &clocked)) return status;
  return make_provider(device::kRecords && graphs && !clocked, clocked, made);
}

OrtStatus* create_stream(OrtEpFactory*, const OrtMemoryDevice*, const OrtKeyValuePairs*, OrtSyncStreamImpl** made) {
  device::Current current;
  device::Stream stream = nullptr;
  if (OrtStatus* status = said(device::driver.create_stream(&stream, device::kNonBlocking), "a stream cannot be made"))
    return status;
  OrtStatus* status = make_stream(stream, nullptr, made);
  if (status) device::driver.destroy_stream(stream);
  return status;
}

OrtStatus* get_domains(OrtEpFactory* factory, OrtCustomOpDomain** domains, size_t) {
  Factory& f = of(factory);
  if (!f.domain)
    if (OrtStatus* status = make_domain([](Operator&) {}, &f.domain)) return status;
  domains[0] = f.domain;
  return nullptr;
}

void describe(Factory& f) {
  f.version = ort::kEpVersion;
  f.GetName = [](const OrtEpFactory*) { return device::kProvider; };
  f.GetVendor = [](const OrtEpFactory*) { return "moec"; };
  f.GetVendorId = [](const OrtEpFactory*) { return device::kVendor; };
  f.GetVersion = [](const OrtEpFactory*) { return "1.0.0"; };
  f.GetSupportedDevices = get_devices;
  f.CreateEp = create;
  f.ReleaseEp = [](OrtEpFactory*, OrtEp* ep) { release_provider(ep); };
  f.CreateAllocator = [](OrtEpFactory* factory, const OrtMemoryInfo* info, const OrtKeyValuePairs*,
                         OrtAllocator** made) {
    const bool on_host = ort::MemoryInfoGetDeviceMemType(info) == ort::kHostAccessible;
    return make_allocator(on_host ? of(factory).host : of(factory).device, info, made);
  };
  f.ReleaseAllocator = [](OrtEpFactory*, OrtAllocator* allocator) { release_allocator(allocator); };
  f.CreateDataTransfer = [](OrtEpFactory*, OrtDataTransferImpl** made) { return make_transfer(made); };
  f.IsStreamAware = [](const OrtEpFactory*) { return true; };
  f.CreateSyncStreamForDevice = create_stream;
  f.GetNumCustomOpDomains = [](OrtEpFactory*, size_t* count) -> OrtStatus* { return *count = 1, nullptr; };
  f.GetCustomOpDomains = get_domains;
}

void release(Factory* f) {
  if (f->device) f->device->release();
  if (f->host) f->host->release();
  if (f->device_info) ort::ReleaseMemoryInfo(f->device_info);
  if (f->host_info) ort::ReleaseMemoryInfo(f->host_info);
  if (f->domain) ort::ReleaseCustomOpDomain(f->domain);
  free(f);
}

}  // namespace
}  // namespace moec

EXPORT OrtStatus* CreateEpFactories(const char* name, const OrtApiBase* base, const OrtLogger*,
                                    OrtEpFactory** factories, size_t most, size_t* count) {
  using namespace moec;
  char text[600];
  *count = 0;
  const void* api = base->GetApi(ort::kEpVersion);
  ort::table = static_cast<void* const*>(api ? api : base->GetApi(1));
  if (!api) {
    snprintf(text, sizeof text, "moec: these kernels need onnxruntime 1.%u or newer, this is %s", ort::kEpVersion,
             base->GetVersionString());
    return ort::CreateStatus(ort::kFail, text);
  }
  ort::ep_table = ort::GetEpApi();
  if (refuse(text, sizeof text)) return ort::CreateStatus(ort::kFail, text);
  auto* f = static_cast<Factory*>(calloc(1, sizeof(Factory)));
  if (!f || !most) return free(f), ort::CreateStatus(ort::kFail, "moec: out of memory");
  describe(*f);
  snprintf(f->name, sizeof f->name, "%s", name ? name : "");
  f->device = Pool::make(false);
  f->host = Pool::make(true);
  if (!f->device || !f->host) return release(f), ort::CreateStatus(ort::kFail, "moec: out of memory");
  factories[(*count)++] = f;
  return nullptr;
}

EXPORT OrtStatus* ReleaseEpFactory(OrtEpFactory* factory) {
  moec::device::Current current;
  moec::release(static_cast<moec::Factory*>(factory));
  moec::release_direct();
  moec::unload_functions();
  return nullptr;
}
