// What onnxruntime is told about the kernels of the table: one operator of domain "moec" for every row.
#pragma once

#include "kernel.h"
#include "ort_abi.h"

namespace moec {

struct Operator : OrtCustomOp {
  const Row* row;
};

// A domain of all rows' operators, each completed by the shell: they have inputs, outputs and their types, and refuse
// to be run. What is made here lives as long as the process.
OrtStatus* make_domain(void (*complete)(Operator&), OrtCustomOpDomain** domain);

}  // namespace moec
