// The kernels of an execution provider: one for every row of the table, and copies from and to the host.
#include <cstdlib>

#include "ort_host.h"
#include "provider.h"
#include "session.h"

namespace moec {
namespace {

class DeviceHost final : public OrtHost {
 public:
  DeviceHost(OrtKernelContext* context, Provider& provider) : OrtHost(context), provider_(provider) {}
  void* take(size_t bytes) override { return provider_.device->take(bytes); }
  void give(void* data) override { provider_.device->give(data); }
  void* stream() override { return provider_.queue.stream; }

 private:
  Provider& provider_;
};

struct KernelImpl : OrtKernelImpl {
  State* state;
};

OrtStatus* copy(Provider& provider, OrtKernelContext* context) {
  const OrtValue* from = nullptr;
  OrtTensorTypeAndShapeInfo* info = nullptr;
  int64_t shape[kMaxRank];
  size_t rank = 0;
  if (OrtStatus* status = ort::KernelContext_GetInput(context, 0, &from)) return status;
  if (OrtStatus* status = ort::GetTensorTypeAndShape(from, &info)) return status;
  OrtStatus* status = ort::GetDimensionsCount(info, &rank);
  if (!status && rank > kMaxRank) status = ort::CreateStatus(ort::kFail, "moec: a tensor of too many axes");
  if (!status) status = ort::GetDimensions(info, shape, rank);
  ort::ReleaseTensorTypeAndShapeInfo(info);
  OrtValue* to = nullptr;
  if (!status) status = ort::KernelContext_GetOutput(context, 0, shape, rank, &to);
  return status ? status : copy_in(provider.queue.stream, from, to);
}

// One kernel by itself. What the device took for it is counted, not what it took to launch it.
void clocked(const Row& row, Host& host, device::Stream stream) {
  Counter* all = counters();
  uint64_t* spent = all ? &all[&row - rows].nanoseconds : nullptr;
  const uint64_t before = spent ? *spent : 0;
  mark_start(stream);
  execute(row, host);
  mark_stop(stream);
  const float us = elapsed_us();
  if (spent && us >= 0) __atomic_store_n(spent, before + uint64_t(us * 1000), __ATOMIC_RELAXED);
}

OrtStatus* compute(OrtKernelImpl* impl, OrtKernelContext* context) {
  const State& state = *static_cast<KernelImpl*>(impl)->state;
  device::Current current;
  if (!state.row) return copy(*state.provider, context);
  DeviceHost host(context, *state.provider);
  if (state.provider->clocked) clocked(*state.row, host, state.provider->queue.stream);
  else execute(*state.row, host);
  ++state.provider->kernels;
  state.provider->failed |= host.failed();
  return host.status();
}

OrtStatus* make_kernel(void* state, const OrtKernelInfo*, OrtKernelImpl** made) {
  auto* kernel = static_cast<KernelImpl*>(calloc(1, sizeof(KernelImpl)));
  if (!kernel) return ort::CreateStatus(ort::kFail, "moec: out of memory");
  kernel->version = ort::kEpVersion;
  kernel->Compute = compute;
  kernel->Release = [](OrtKernelImpl* impl) { free(static_cast<KernelImpl*>(impl)); };
  kernel->state = static_cast<State*>(state);
  *made = kernel;
  return nullptr;
}

// Names and memory types as onnxruntime has them for providers of its own. The kernels that it has for others
// expect the device's memory to be the host's.
constexpr const char *kFromHost = "MemcpyFromHost", *kToHost = "MemcpyToHost";
constexpr int kHostInput = -2, kHostOutput = -1;

OrtStatus* in_place(OrtKernelDefBuilder* builder, const Kind& kind) {
  if (!kind.in_place) return nullptr;
  int *inputs = nullptr, *outputs = nullptr;
  const size_t pairs = kind.in_place(&inputs, &outputs);
  OrtStatus* status = ort::KernelDefBuilder_AddInputOutputMutableAliases(builder, inputs, outputs, pairs);
  free(inputs);
  free(outputs);
  return status;
}

OrtStatus* define(OrtKernelDefBuilder* builder, const char* name, const Row* row) {
  if (OrtStatus* status = ort::KernelDefBuilder_SetOperatorType(builder, name)) return status;
  if (OrtStatus* status = ort::KernelDefBuilder_SetDomain(builder, row ? "moec" : "")) return status;
  if (OrtStatus* status = ort::KernelDefBuilder_SetSinceVersion(builder, 1, row ? 1 : INT32_MAX)) return status;
  if (OrtStatus* status = ort::KernelDefBuilder_SetExecutionProvider(builder, device::kProvider)) return status;
  if (row) return in_place(builder, *row->kind);
  if (name == kFromHost) return ort::KernelDefBuilder_SetInputMemType(builder, 0, kHostInput);
  return ort::KernelDefBuilder_SetOutputMemType(builder, 0, kHostOutput);
}

OrtStatus* add(OrtKernelRegistry* registry, const char* name, State& state) {
  OrtKernelDefBuilder* builder = nullptr;
  OrtKernelDef* definition = nullptr;
  if (OrtStatus* status = ort::CreateKernelDefBuilder(&builder)) return status;
  OrtStatus* status = define(builder, name, state.row);
  if (!status) status = ort::KernelDefBuilder_Build(builder, &definition);
  if (!status) status = ort::KernelRegistry_AddKernel(registry, definition, make_kernel, &state);
  if (definition) ort::ReleaseKernelDef(definition);
  ort::ReleaseKernelDefBuilder(builder);
  return status;
}

}  // namespace

OrtStatus* get_registry(OrtEp* ep, const OrtKernelRegistry** result) {
  Provider& p = of(ep);
  if (!p.registry) {
    if (OrtStatus* status = ort::CreateKernelRegistry(&p.registry)) return status;
    p.states[row_count] = {&p, nullptr};
    for (const char* name : {kFromHost, kToHost})
      if (OrtStatus* status = add(p.registry, name, p.states[row_count])) return status;
    for (size_t i = 0; i < row_count; ++i) {
      p.states[i] = {&p, &rows[i]};
      if (OrtStatus* status = add(p.registry, rows[i].name, p.states[i])) return status;
    }
  }
  *result = p.registry;
  return nullptr;
}

// Takes every node that a row of the table is for.
OrtStatus* get_capability(OrtEp*, const OrtGraph* graph, OrtEpGraphSupportInfo* support) {
  size_t count = 0;
  if (OrtStatus* status = ort::Graph_GetNumNodes(graph, &count)) return status;
  auto nodes = static_cast<const OrtNode**>(calloc(count + 1, sizeof(OrtNode*)));
  if (!nodes) return ort::CreateStatus(ort::kFail, "moec: out of memory");
  OrtStatus* status = ort::Graph_GetNodes(graph, nodes, count);
  for (size_t i = 0; i < count && !status; ++i) {
    const OrtKernelDef* found = nullptr;
    status = ort::EpGraphSupportInfo_LookUpKernel(support, nodes[i], &found);
    if (!status && found) status = ort::EpGraphSupportInfo_AddSingleNode(support, nodes[i]);
  }
  free(nodes);
  return status;
}

}  // namespace moec
