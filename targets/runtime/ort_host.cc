// Tensors of a call as onnxruntime has them.
#include "ort_host.h"

void* const* ort::table = nullptr;

namespace moec {

bool OrtHost::keep(OrtStatus* status) {
  if (!status) return true;
  if (status_) ort::ReleaseStatus(status);
  else status_ = status;
  return false;
}

int OrtHost::inputs() {
  size_t given = 0;
  return keep(ort::KernelContext_GetInputCount(context_, &given)) ? int(given) : 0;
}

bool OrtHost::input(int i, Tensor* tensor, int64_t* shape) {
  const OrtValue* value = nullptr;
  OrtTensorTypeAndShapeInfo* info = nullptr;
  if (!keep(ort::KernelContext_GetInput(context_, size_t(i), &value))) return false;
  if (!value) return true;
  if (!keep(ort::GetTensorTypeAndShape(value, &info))) return false;
  size_t rank = 0;
  bool good = keep(ort::GetDimensionsCount(info, &rank));
  good = good && keep(ort::GetDimensions(info, shape, rank < kMaxRank ? rank : kMaxRank));
  ort::ReleaseTensorTypeAndShapeInfo(info);
  tensor->rank = int(rank);
  return good && keep(ort::GetTensorMutableData(const_cast<OrtValue*>(value), &tensor->data));
}

void* OrtHost::output(int i, const int64_t* shape, int rank) {
  OrtValue* value = nullptr;
  void* data = nullptr;
  if (!keep(ort::KernelContext_GetOutput(context_, size_t(i), shape, size_t(rank), &value))) return nullptr;
  return keep(ort::GetTensorMutableData(value, &data)) ? data : nullptr;
}

}  // namespace moec
