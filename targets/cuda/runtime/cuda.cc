// Opening the CUDA driver and the first GPU.
#include "cuda_abi.h"

#include <dlfcn.h>

#include <cstdio>

#include "launch.h"
#include "lock.h"

namespace moec {

bool refuse(char* text, size_t size) {
  const char* why = cuda::open();
  if (why) snprintf(text, size, "%s", why);
  return why;
}

namespace cuda {

Driver driver;

namespace {

Context context = nullptr;  // of the first GPU, once it is open
char reason[512];
bool opening = false;

bool needs(const char* what) {
  snprintf(reason, sizeof reason,
           "moec: these kernels need an NVIDIA GPU of compute capability %d.%d (%s); this machine has %s", sm_major,
           sm_minor, sm_name, what);
  return false;
}

bool load() {
  char what[300];
  void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    snprintf(what, sizeof what, "no NVIDIA driver (%s)", dlerror());
    return needs(what);
  }
  const char* missing = nullptr;
  auto find = [&](const char* symbol) {
    void* found = dlsym(library, symbol);
    if (!found && !missing) missing = symbol;
    return found;
  };
#define F(name, symbol, ...) driver.name = reinterpret_cast<Result (*)(__VA_ARGS__)>(find(symbol));
  MOEC_CUDA_FUNCTIONS(F)
#undef F
  if (!missing) return true;
  snprintf(what, sizeof what, "an NVIDIA driver without %s: install one of release 535 or later", missing);
  return needs(what);
}

bool choose() {
  char what[300];
  int count = 0, device = 0, major = 0, minor = 0;
  Result result = driver.init(0);
  if (!result) result = driver.device_count(&count);
  if (!result && !count) return needs("none");
  if (!result) result = driver.device(&device, 0);
  if (!result) result = driver.device_attribute(&major, kMajor, device);
  if (!result) result = driver.device_attribute(&minor, kMinor, device);
  if (result) {
    snprintf(what, sizeof what, "none that can be used (%s)", words(result));
    return needs(what);
  }
  if (major != sm_major || minor != sm_minor) {
    snprintf(what, sizeof what, "one of %d.%d; compile again on this machine", major, minor);
    return needs(what);
  }
  result = driver.retain_context(&context, device);
  if (!result) return true;
  snprintf(reason, sizeof reason, "moec: the GPU cannot be opened: %s", words(result));
  return false;
}

}  // namespace

const char* open() {
  Lock lock(opening);
  return context || (load() && choose()) ? nullptr : reason;
}

const char* words(Result result) {
  const char* text = nullptr;
  return driver.error_string(result, &text) || !text ? "an unknown error" : text;
}

Current::Current() {
  changed_ = context && !driver.current_context(&before_) && before_ != context && !driver.set_context(context);
}

Current::~Current() {
  if (changed_) driver.set_context(before_);
}

}  // namespace cuda
}  // namespace moec
