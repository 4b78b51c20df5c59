// Kernels without onnxruntime: for checks and timings.
#include <cstdarg>
#include <cstdio>
#include <cstring>

#include "lock.h"
#include "provider.h"

extern "C" {

struct MoecTensor {
  void* data;
  int32_t rank;
  int32_t type;  // onnxruntime's number
  int64_t shape[8];
};

}  // extern "C"

namespace moec {
namespace {

thread_local char text[600];

// Memory stays here between calls, which all go to one stream at a time.
Pool* scratch = nullptr;
bool making = false;

device::Event first = nullptr, last = nullptr;
bool marking = false;

class DirectHost final : public Host {
 public:
  DirectHost(const Row& row, const MoecTensor* x, size_t inputs, const MoecTensor* y, size_t outputs, void* stream)
      : row_(row), x_(x), y_(y), inputs_(int(inputs)), outputs_(int(outputs)), stream_(stream) {}

  int inputs() override { return inputs_; }
  bool input(int i, Tensor* tensor, int64_t* shape) override {
    const MoecTensor& given = x_[i];
    if (!given.data && !given.rank) return true;
    if (i >= row_.kind->inputs || given.rank < 0 || given.rank > kMaxRank)
      return say("input %d of rank %d is more than the kernel takes", i, given.rank), false;
    if (given.type != input_type(row_, size_t(i)))
      return say("input %d is of type %d; %d was expected", i, given.type, input_type(row_, size_t(i))), false;
    memcpy(shape, given.shape, size_t(given.rank) * sizeof *shape);
    tensor->rank = given.rank;
    tensor->data = given.data;
    return true;
  }
  void* output(int i, const int64_t* shape, int rank) override {
    if (i >= outputs_) return say("output %d is missing", i), nullptr;
    const MoecTensor& given = y_[i];
    int64_t wanted = 1, there = 1;
    for (int axis = 0; axis < rank; ++axis) wanted *= shape[axis];
    for (int axis = 0; axis < given.rank && axis < kMaxRank; ++axis) there *= given.shape[axis];
    if (given.type != output_type(row_, size_t(i)))
      return say("output %d is of type %d; %d was expected", i, given.type, output_type(row_, size_t(i))), nullptr;
    if (wanted != there)
      return say("output %d holds %lld elements; %lld were expected", i, (long long)there, (long long)wanted), nullptr;
    return given.data;
  }
  void* take(size_t bytes) override { return scratch->take(bytes); }
  void give(void* data) override { scratch->give(data); }
  void* stream() override { return stream_; }
  void fail(const char* sentence) override {
    if (!failed_) snprintf(text, sizeof text, "%s", sentence);
    failed_ = true;
  }
  bool failed() const override { return failed_; }

 private:
  __attribute__((format(printf, 2, 3))) void say(const char* format, ...) {
    char sentence[300];
    const int used = snprintf(sentence, sizeof sentence, "%.200s: ", row_.name);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(sentence + used, sizeof sentence - size_t(used), format, arguments);
    va_end(arguments);
    fail(sentence);
  }

  const Row& row_;
  const MoecTensor *x_, *y_;
  int inputs_, outputs_;
  void* stream_;
  bool failed_ = false;
};

bool has_events() {
  if (!first) device::driver.create_event(&first, device::kTimed);
  if (!last) device::driver.create_event(&last, device::kTimed);
  return first && last;
}

}  // namespace

void release_direct() {
  if (scratch) scratch->release();
  if (first) device::driver.destroy_event(first);
  if (last) device::driver.destroy_event(last);
  scratch = nullptr;
  first = last = nullptr;
}

void mark_start(device::Stream stream) {
  Lock lock(marking);
  if (has_events()) device::driver.record(first, stream);
}

void mark_stop(device::Stream stream) {
  Lock lock(marking);
  if (has_events()) device::driver.record(last, stream);
}

float elapsed_us() {
  Lock lock(marking);
  device::Current current;
  float ms = 0;
  if (!first || !last || device::driver.wait_host(last) || device::driver.elapsed(&ms, first, last)) return -1;
  return ms * 1000;
}

}  // namespace moec

// Runs kernel `row` of the table on a stream of the first device; asynchronous. Null, or a sentence that holds until
// this thread's next call.
EXPORT const char* moec_launch(size_t row, size_t inputs, const MoecTensor* x, size_t outputs, const MoecTensor* y,
                               void* stream) {
  using namespace moec;
  if (refuse(text, sizeof text)) return text;
  if (row >= row_count) {
    snprintf(text, sizeof text, "moec: there are %zu kernels, so none is number %zu", row_count, row);
    return text;
  }
  {
    Lock lock(making);
    if (!scratch) scratch = Pool::make(false);
    if (!scratch) return "moec: out of memory";
  }
  device::Current current;
  DirectHost host(rows[row], x, inputs, y, outputs, stream);
  execute(rows[row], host);
  return host.failed() ? text : nullptr;
}

// What the device took for the last run or replay of a session, in microseconds; waits for it. -1 when there was none,
// or where a device is simulated.
EXPORT float moec_elapsed_us() { return moec::elapsed_us(); }
