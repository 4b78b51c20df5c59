// Calls that onnxruntime makes.
#pragma once

#include "kernel.h"
#include "ort_abi.h"

namespace moec {

class OrtHost : public Host {
 public:
  explicit OrtHost(OrtKernelContext* context) : context_(context) {}
  OrtHost(const OrtHost&) = delete;
  OrtHost& operator=(const OrtHost&) = delete;

  int inputs() override;
  bool input(int i, Tensor* tensor, int64_t* shape) override;
  void* output(int i, const int64_t* shape, int rank) override;
  void fail(const char* sentence) override { keep(ort::CreateStatus(ort::kInvalid, sentence)); }
  bool failed() const override { return status_; }

  // For the caller to pass on: null, or the first error.
  OrtStatus* status() const { return status_; }

 protected:
  ~OrtHost() = default;
  bool keep(OrtStatus* status);

  OrtKernelContext* context_;

 private:
  OrtStatus* status_ = nullptr;
};

}  // namespace moec
