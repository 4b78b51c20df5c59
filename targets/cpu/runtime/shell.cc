// The library's face towards onnxruntime: operators that the CPU runs, registered with a session's options.
#include <cstdio>

#include "lock.h"
#include "operators.h"
#include "ort_host.h"
#include "pages.h"

namespace moec {
namespace {

OrtCustomOpDomain* domain = nullptr;  // made once, never freed
bool registering = false;             // sessions may be opened from several threads at once

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

// Scratch blocks wait here between calls, since fresh large ones would fault in page after page.
struct alignas(64) Block {
  size_t bytes;
};

Block* idle[32];

void give_block(Block* block) {
  for (Block*& slot : idle) {
    Block* none = nullptr;
    if (__atomic_compare_exchange_n(&slot, &none, block, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED)) return;
  }
  free(block);
}

Block* take_block(size_t bytes) {
  for (Block*& slot : idle) {
    Block* block = __atomic_exchange_n(&slot, nullptr, __ATOMIC_ACQ_REL);
    if (block && block->bytes >= bytes) return block;
    if (block) give_block(block);
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

struct CpuHost final : OrtHost {
  using OrtHost::OrtHost;

  void* take(size_t bytes) override {
    Block* block = take_block(bytes);
    return block ? block + 1 : nullptr;
  }
  void give(void* block) override { give_block(static_cast<Block*>(block) - 1); }
  // As many batches as tasks: each is handed out on its own.
  void parallel(void (*body)(void*, size_t), size_t tasks, void* data) override {
    keep(ort::KernelContext_ParallelFor(context_, body, tasks, tasks, data));
  }
};

OrtStatus* compute(void* kernel, OrtKernelContext* context) {
  CpuHost host(context);
  execute(*static_cast<Operator*>(kernel)->row, host);
  return host.status();
}

void complete(Operator& op) {
  using Op = const OrtCustomOp*;
  op.GetExecutionProviderType = [](Op) { return "CPUExecutionProvider"; };
  // A kernel keeps no state, so the operator itself serves as one.
  op.CreateKernel = [](Op op, const void*, const OrtKernelInfo* info) -> void* {
    map_weights(*static_cast<const Operator*>(op)->row->kind, info);
    return const_cast<OrtCustomOp*>(op);
  };
  op.CreateKernelV2 = [](Op op, const void*, const OrtKernelInfo* info, void** kernel) -> OrtStatus* {
    map_weights(*static_cast<const Operator*>(op)->row->kind, info);
    *kernel = const_cast<OrtCustomOp*>(op);
    return nullptr;
  };
  op.KernelCompute = [](void* kernel, OrtKernelContext* context) { compute(kernel, context); };
  op.KernelComputeV2 = compute;
  if (op.row->kind->in_place) op.GetMayInplace = op.row->kind->in_place;
}

}  // namespace
}  // namespace moec

EXPORT OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  char text[512];
  moec::Lock lock(moec::registering);
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
    if (OrtStatus* status = moec::make_domain(moec::complete, &moec::domain)) return status;
  return ort::AddCustomOpDomain(options, moec::domain);
}
