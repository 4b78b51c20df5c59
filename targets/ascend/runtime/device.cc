// Choosing what kernels run on.
#include "device.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "acl_abi.h"
#include "launch.h"
#include "lock.h"

namespace moec {

bool refuse(char* text, size_t size) {
  const char* why = ascend::open();
  if (why) snprintf(text, size, "%s", why);
  return why;
}

namespace ascend {

Driver driver;

namespace {

enum State { kClosed, kNpu, kCpu } state = kClosed;
char reason[512];
bool opening = false;

const char* needs(const char* what) {
  snprintf(reason, sizeof reason, "moec: these kernels need an Ascend NPU (%s); this machine has %s", soc_name, what);
  return reason;
}

const char* choose() {
  const char* wish = getenv("MOEC_SIMULATE");
  bool found = false;
  const char* missing = wish && !strcmp(wish, "1") ? "none that is wanted" : acl::load(&found);
  if (missing && !found && !(wish && !strcmp(wish, "0"))) {
    fprintf(stderr,
            "moec: %s: kernels are simulated on this CPU from the vendor compiler's input; times mean nothing\n",
            wish ? "MOEC_SIMULATE is 1" : "no NPU here (libascendcl.so is not found)");
    driver = of_cpu;
    state = kCpu;
    return nullptr;
  }
  if (!missing) missing = acl::open();
  if (missing) return needs(missing);
  driver = of_npu;
  state = kNpu;
  return nullptr;
}

}  // namespace

const char* open() {
  Lock lock(opening);
  return state == kClosed ? choose() : nullptr;
}

bool simulated() { return state == kCpu; }

const char* words(Result result) { return simulated() ? "out of memory" : acl::words(result); }

void describe(OrtKeyValuePairs* facts) { ort::AddKeyValuePair(facts, "simulated", simulated() ? "1" : "0"); }

}  // namespace ascend
}  // namespace moec

// 1 where kernels are simulated on this CPU, 0 where an NPU runs them, -1 where neither does.
EXPORT int moec_simulated() {
  return moec::ascend::open() ? -1 : moec::ascend::simulated();
}
