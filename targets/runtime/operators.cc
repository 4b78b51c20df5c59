#include "operators.h"

namespace moec {
namespace {

const Row& row(const OrtCustomOp* op) { return *static_cast<const Operator*>(op)->row; }
const Kind& kind(const OrtCustomOp* op) { return *row(op).kind; }

size_t nothing(int** inputs, int** outputs) {
  *inputs = *outputs = nullptr;
  return 0;
}

void release(int* inputs, int* outputs) {
  free(inputs);
  free(outputs);
}

OrtStatus* misplaced() {
  return ort::CreateStatus(ort::kFail, "moec: a kernel was not given to the execution provider that runs it");
}

Operator describe(const Row& of) {
  using Op = const OrtCustomOp*;
  Operator op{};
  op.row = &of;
  op.version = ort::kVersion;
  op.GetName = [](Op op) { return row(op).name; };
  op.GetExecutionProviderType = [](Op) -> const char* { return nullptr; };
  op.GetInputTypeCount = [](Op op) { return size_t(kind(op).inputs); };
  op.GetInputType = [](Op op, size_t i) { return int(input_type(row(op), i)); };
  op.GetOutputTypeCount = [](Op op) { return size_t(kind(op).outputs); };
  op.GetOutputType = [](Op op, size_t i) { return int(output_type(row(op), i)); };
  op.GetInputCharacteristic = [](Op op, size_t i) {
    return int(i) < kind(op).required ? ort::kRequired : ort::kOptional;
  };
  op.GetOutputCharacteristic = [](Op, size_t) { return ort::kRequired; };
  op.GetInputMemoryType = [](Op, size_t) { return 0; };
  op.GetVariadicInputMinArity = op.GetVariadicOutputMinArity = [](Op) { return 1; };
  op.GetVariadicInputHomogeneity = op.GetVariadicOutputHomogeneity = [](Op) { return 1; };
  op.GetStartVersion = [](Op) { return 1; };
  op.GetEndVersion = [](Op) { return INT32_MAX; };
  op.CreateKernel = [](Op, const void*, const OrtKernelInfo*) -> void* { return nullptr; };
  op.CreateKernelV2 = [](Op, const void*, const OrtKernelInfo*, void**) { return misplaced(); };
  op.KernelCompute = [](void*, OrtKernelContext*) {};
  op.KernelComputeV2 = [](void*, OrtKernelContext*) { return misplaced(); };
  op.KernelDestroy = [](void*) {};
  op.GetMayInplace = op.GetAliasMap = nothing;
  op.ReleaseMayInplace = op.ReleaseAliasMap = release;
  return op;
}

}  // namespace

OrtStatus* make_domain(void (*complete)(Operator&), OrtCustomOpDomain** domain) {
  OrtCustomOpDomain* made = nullptr;
  auto operators = static_cast<Operator*>(malloc((row_count + !row_count) * sizeof(Operator)));
  if (!operators) return ort::CreateStatus(ort::kFail, "moec: out of memory while registering kernels");
  if (OrtStatus* status = ort::CreateCustomOpDomain("moec", &made)) return status;
  for (size_t i = 0; i < row_count; ++i) {
    operators[i] = describe(rows[i]);
    complete(operators[i]);
    if (OrtStatus* status = ort::CustomOpDomain_Add(made, &operators[i])) return status;
  }
  *domain = made;
  return nullptr;
}

}  // namespace moec
