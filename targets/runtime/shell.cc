// The library's face towards onnxruntime: one operator of domain "moec" for every row of the table.
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <ctime>

#include "kernel.h"
#include "ort_abi.h"
#include "pages.h"

void* const* ort::table = nullptr;

namespace moec {
namespace {

struct Operator : OrtCustomOp {
  const Row* row;
  Counter counter;
};

Operator* operators = nullptr;  // row_count of them, made once, never freed: sessions may outlive anything else here
OrtCustomOpDomain* domain = nullptr;

const Operator& of(const OrtCustomOp* op) { return *static_cast<const Operator*>(op); }
const Kind& kind(const OrtCustomOp* op) { return *of(op).row->kind; }

uint64_t clock_now() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return uint64_t(time.tv_sec) * 1000000000 + uint64_t(time.tv_nsec);
}

OrtStatus* compute(void* kernel, OrtKernelContext* context) {
  auto& op = *static_cast<Operator*>(kernel);
  const uint64_t start = clock_now();
  __atomic_fetch_add(&op.counter.calls, 1, __ATOMIC_RELAXED);
  Call call(*op.row, op.counter, context);
  if (!call.status()) op.row->kind->compute(call);
  __atomic_fetch_add(&op.counter.nanoseconds, clock_now() - start, __ATOMIC_RELAXED);
  return call.status();
}

size_t element_size(Type type) {
  switch (type) {
    case U8: case I8: case BOOL: return 1;
    case F16: case BF16: return 2;
    case F32: case I32: return 4;
    case I64: case F64: return 8;
  }
  return 0;
}

// Has the weights of a kernel mapped. That they are not yet constant, or not at all, is no error: nothing is lost.
void map_weights(const Kind& kind, const OrtKernelInfo* info) {
  for (int i = 0; i < kind.inputs; ++i) {
    int constant = 0;
    const OrtValue* value = nullptr;
    OrtTensorTypeAndShapeInfo* shape = nullptr;
    size_t count = 0;
    void* data = nullptr;
    OrtStatus* status = ort::KernelInfoGetConstantInput_tensor(info, size_t(i), &constant, &value);
    if (!status && constant && value) {
      status = ort::GetTensorTypeAndShape(value, &shape);
      if (!status) status = ort::GetTensorShapeElementCount(shape, &count);
      if (!status) status = ort::GetTensorMutableData(const_cast<OrtValue*>(value), &data);
      if (!status) map_pages(data, count * element_size(kind.input_types[i]));
    }
    if (shape) ort::ReleaseTensorTypeAndShapeInfo(shape);
    if (status) ort::ReleaseStatus(status);
  }
}

size_t nothing(int** inputs, int** outputs) {
  *inputs = *outputs = nullptr;
  return 0;
}

void release(int* inputs, int* outputs) {
  free(inputs);
  free(outputs);
}

Operator describe(const Row& row) {
  using Op = const OrtCustomOp*;
  Operator op{};
  op.row = &row;
  op.counter = {row.name, row.kind->name, 0, 0, 0};
  op.version = ort::kVersion;
  op.GetName = [](Op op) { return of(op).row->name; };
  op.GetExecutionProviderType = [](Op) { return "CPUExecutionProvider"; };
  op.GetInputTypeCount = [](Op op) { return size_t(kind(op).inputs); };
  op.GetInputType = [](Op op, size_t i) { return int(kind(op).input_types[i]); };
  op.GetOutputTypeCount = [](Op op) { return size_t(kind(op).outputs); };
  op.GetOutputType = [](Op op, size_t i) { return int(kind(op).output_types[i]); };
  op.GetInputCharacteristic = [](Op op, size_t i) {
    return int(i) < kind(op).required ? ort::kRequired : ort::kOptional;
  };
  op.GetOutputCharacteristic = [](Op, size_t) { return ort::kRequired; };
  op.GetInputMemoryType = [](Op, size_t) { return 0; };
  op.GetVariadicInputMinArity = op.GetVariadicOutputMinArity = [](Op) { return 1; };
  op.GetVariadicInputHomogeneity = op.GetVariadicOutputHomogeneity = [](Op) { return 1; };
  op.GetStartVersion = [](Op) { return 1; };
  op.GetEndVersion = [](Op) { return INT32_MAX; };
  // A kernel keeps no state, so the operator itself serves as one.
  op.CreateKernel = [](Op op, const void*, const OrtKernelInfo* info) -> void* {
    map_weights(kind(op), info);
    return const_cast<OrtCustomOp*>(op);
  };
  op.CreateKernelV2 = [](Op op, const void*, const OrtKernelInfo* info, void** kernel) -> OrtStatus* {
    map_weights(kind(op), info);
    *kernel = const_cast<OrtCustomOp*>(op);
    return nullptr;
  };
  op.KernelCompute = [](void* kernel, OrtKernelContext* context) { compute(kernel, context); };
  op.KernelComputeV2 = compute;
  op.KernelDestroy = [](void*) {};
  op.GetMayInplace = row.kind->in_place ? row.kind->in_place : nothing;
  op.GetAliasMap = nothing;
  op.ReleaseMayInplace = op.ReleaseAliasMap = release;
  return op;
}

OrtStatus* make_domain() {
  OrtCustomOpDomain* made = nullptr;
  auto described = static_cast<Operator*>(malloc((row_count + !row_count) * sizeof(Operator)));
  if (!described) return ort::CreateStatus(ort::kFail, "moec: out of memory while registering kernels");
  if (OrtStatus* status = ort::CreateCustomOpDomain("moec", &made)) return status;
  for (size_t i = 0; i < row_count; ++i) {
    described[i] = describe(rows[i]);
    if (OrtStatus* status = ort::CustomOpDomain_Add(made, &described[i])) return status;
  }
  domain = made;
  __atomic_store_n(&operators, described, __ATOMIC_RELEASE);  // whole before anyone reads counters
  return nullptr;
}

// Sessions may be opened from several threads at once.
struct Lock {
  static inline bool taken = false;
  Lock() { while (__atomic_test_and_set(&taken, __ATOMIC_ACQUIRE)) {} }
  ~Lock() { __atomic_clear(&taken, __ATOMIC_RELEASE); }
};

// Scratch blocks wait here between calls, since fresh large ones would fault in page after page.
struct alignas(64) Block {
  size_t bytes;
};

Block* idle[32];

void give(Block* block) {
  for (Block*& slot : idle) {
    Block* none = nullptr;
    if (__atomic_compare_exchange_n(&slot, &none, block, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED)) return;
  }
  free(block);
}

Block* take(size_t bytes) {
  for (Block*& slot : idle) {
    Block* block = __atomic_exchange_n(&slot, nullptr, __ATOMIC_ACQ_REL);
    if (block && block->bytes >= bytes) return block;
    if (block) give(block);
  }
  size_t rounded = 1 << 14;
  while (rounded < bytes + sizeof(Block)) rounded *= 2;
  auto block = static_cast<Block*>(aligned_alloc(alignof(Block), rounded));
  if (block) block->bytes = rounded - sizeof(Block);
  return block;
}

// onnxruntime unloads the library with the last session that uses it.
__attribute__((destructor)) void free_idle() {
  for (Block*& slot : idle) free(__atomic_exchange_n(&slot, nullptr, __ATOMIC_ACQ_REL));
}

}  // namespace

Call::Call(const Row& row, Counter& counter, OrtKernelContext* context)
    : row(row), context_(context), counter_(counter) {
  if (load()) choose();
}

Call::~Call() {
  while (blocks_) give(static_cast<Block*>(scratch_[--blocks_]) - 1);
}

bool Call::keep(OrtStatus* status) {
  if (!status_) status_ = status;
  return !status;
}

bool Call::load() {
  size_t given = 0;
  if (!keep(ort::KernelContext_GetInputCount(context_, &given))) return false;
  for (size_t i = 0; i < given && i < kMaxInputs; ++i) {
    Tensor& tensor = tensors_[inputs_++];
    tensor = {nullptr, shapes_[i], 0};
    const OrtValue* value = nullptr;
    OrtTensorTypeAndShapeInfo* info = nullptr;
    if (!keep(ort::KernelContext_GetInput(context_, i, &value))) return false;
    if (!value) continue;
    if (!keep(ort::GetTensorTypeAndShape(value, &info))) return false;
    size_t rank = 0;
    bool good = keep(ort::GetDimensionsCount(info, &rank));
    if (good && rank > kMaxRank) fail("input %zu has rank %zu; kernels take at most %d", i, rank, kMaxRank), good = false;
    if (good) good = keep(ort::GetDimensions(info, shapes_[i], rank));
    ort::ReleaseTensorTypeAndShapeInfo(info);
    if (!good || !keep(ort::GetTensorMutableData(const_cast<OrtValue*>(value), &tensor.data))) return false;
    tensor.rank = int(rank);
  }
  return true;
}

void Call::choose() {
  const int64_t tokens = in(0).rows() / row.rows_per_token;
  const Variant* variant = row.variants;
  while (tokens > variant->most) ++variant;
  row.knobs = variant->knobs;
  row.functions = variant->functions;
}

void* Call::out(int i, const int64_t* shape, int rank) {
  OrtValue* value = nullptr;
  void* data = nullptr;
  if (status_ || !keep(ort::KernelContext_GetOutput(context_, i, shape, rank, &value))) return nullptr;
  if (!keep(ort::GetTensorMutableData(value, &data))) return nullptr;
  for (int axis = 0; axis < rank; ++axis)
    if (!shape[axis]) return nullptr;
  return data;
}

void* Call::scratch(size_t bytes) {
  Block* block = blocks_ < kMaxScratch ? take(bytes) : nullptr;
  if (!block) return fail("no memory for %zu bytes of scratch", bytes), nullptr;
  return scratch_[blocks_++] = block + 1;
}

void Call::run(void (*body)(void*, size_t), size_t tasks, void* data) {
  // As many batches as tasks: each is handed out on its own.
  if (tasks) keep(ort::KernelContext_ParallelFor(context_, body, tasks, tasks, data));
}

void Call::fail(const char* format, ...) {
  char text[512];
  int used = snprintf(text, sizeof text, "%s: ", row.name);
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text + used, used < int(sizeof text) ? sizeof text - used : 0, format, arguments);
  va_end(arguments);
  keep(ort::CreateStatus(ort::kInvalid, text));
}

}  // namespace moec

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  char text[512];
  moec::Lock lock;
  const void* api = base->GetApi(ort::kVersion);
  ort::table = static_cast<void* const*>(api ? api : base->GetApi(1));
  if (!api) {
    snprintf(text, sizeof text, "moec: these kernels need onnxruntime 1.%u or newer, this is %s", ort::kVersion,
             base->GetVersionString());
    return ort::CreateStatus(ort::kFail, text);
  }
  if (moec::refuse(text, sizeof text)) return ort::CreateStatus(ort::kFail, text);
  moec::begin_mapping();
  if (!moec::domain)
    if (OrtStatus* status = moec::make_domain()) return status;
  return ort::AddCustomOpDomain(options, moec::domain);
}

// Fills in up to `most` counters, one per kernel in the order of the table; returns how many kernels there are.
EXPORT size_t moec_counts(moec::Counter* counters, size_t most) {
  const moec::Operator* operators = __atomic_load_n(&moec::operators, __ATOMIC_ACQUIRE);
  if (!operators) return 0;
  for (size_t i = 0; i < moec::row_count && i < most; ++i) {
    const moec::Counter& now = operators[i].counter;  // sessions may be running
    counters[i] = {now.name, now.kind, __atomic_load_n(&now.calls, __ATOMIC_RELAXED),
                   __atomic_load_n(&now.weight_bytes, __ATOMIC_RELAXED),
                   __atomic_load_n(&now.nanoseconds, __ATOMIC_RELAXED)};
  }
  return moec::row_count;
}
