// What a kernel family sees of the runtime: the row it was planned as, its tensors, memory and threads.
//
// A family defines one Kind per operator in namespace moec::kind; the generated table names rows of those kinds;
// a target's shell makes one onnxruntime operator out of every row. Nothing here throws.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <initializer_list>

namespace moec {

// onnxruntime's numbers
enum Type : int { F32 = 1, U8 = 2, I8 = 3, I32 = 6, I64 = 7, BOOL = 9, F16 = 10, F64 = 11, BF16 = 16 };

constexpr int kMaxInputs = 16, kMaxRank = 8, kMaxScratch = 8;

struct Kind;

// How calls of at most so many tokens are served: what the schedule says to the driver (the kind's entry in
// space.DRIVER_KNOBS) and the functions generated for it.
struct Variant {
  int64_t most;
  const int64_t* knobs;
  void* const* functions;
};

// One planned kernel: its sizes and numbers in the order of Kernel.dims and Kernel.reals. Of its variants, from few
// tokens to many, a Call has the first one that serves it; the last serves any number. A token is rows_per_token
// rows of input 0.
struct Row {
  const char* name;
  const Kind* kind;
  const int64_t* dims;
  const double* reals;
  int64_t rows_per_token;
  const Variant* variants;
  Type half = BF16;                // what its Kind has as BF16
  const int64_t* knobs = nullptr;  // of the variant
  void* const* functions = nullptr;
};

// An input. Alignment is that of its elements, no more. One that is absent has null data and rank 0.
struct Tensor {
  void* data;
  const int64_t* shape;
  int rank;

  template <class T>
  T* as() const { return static_cast<T*>(data); }
  int64_t dim(int axis) const { return shape[axis < 0 ? rank + axis : axis]; }
  // The number of elements in axes first..last-1.
  int64_t size(int first, int last) const {
    int64_t product = 1;
    for (int axis = first; axis < last; ++axis) product *= shape[axis];
    return product;
  }
  int64_t size() const { return size(0, rank); }
  int64_t rows() const { return size(0, rank - 1); }  // of a matrix made of all leading axes and the last
};

struct Counter {
  const char* name;
  const char* kind;
  uint64_t calls;
  uint64_t weight_bytes;
  uint64_t nanoseconds;  // inside compute, by the wall clock
};

// Where a call's tensors and memory come from and where its error goes.
class Host {
 public:
  virtual int inputs() { return 0; }
  // Fills in a tensor and the first kMaxRank sizes of its shape. False after fail().
  virtual bool input(int, Tensor*, int64_t*) { return false; }
  virtual void* output(int, const int64_t*, int) { return nullptr; }
  virtual void* take(size_t) { return nullptr; }
  virtual void give(void*) {}
  virtual void parallel(void (*)(void*, size_t), size_t, void*) {}
  virtual void* stream() { return nullptr; }  // a device's queue
  virtual void fail(const char*) {}
  virtual bool failed() const { return true; }

 protected:
  ~Host() = default;
};

// One execution of one row. A family's compute returns after fail(), and when out() or scratch() give null.
class Call {
 public:
  Call(const Row& row, Counter& counter, Host& host);
  ~Call();
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  Row row;

  int inputs() const { return inputs_; }
  const Tensor& in(int i) const { return tensors_[i]; }

  // Has the row's variant for so many tokens serve this call.
  void choose(int64_t tokens);

  // Memory of output i, uninitialised or (in place) the paired input's. Null if empty or, after a failure, at all.
  void* out(int i, const int64_t* shape, int rank);
  void* out(int i, std::initializer_list<int64_t> shape) { return out(i, shape.begin(), int(shape.size())); }
  template <class T>
  T* out(int i, std::initializer_list<int64_t> shape) { return static_cast<T*>(out(i, shape)); }

  // Memory that lives as long as this call, 64-byte aligned or more; at most kMaxScratch pieces.
  void* scratch(size_t bytes);
  template <class T>
  T* scratch(size_t count) { return static_cast<T*>(scratch(count * sizeof(T))); }

  // f(size_t task) for every task below `tasks`, on the session's threads, the caller among them. Free threads take
  // the next task, so more tasks than threads balance themselves. Returns when all are done.
  template <class F>
  void parallel(size_t tasks, F&& f) {
    if (tasks == 1) return f(size_t{0});
    if (tasks) host_.parallel([](void* data, size_t task) { (*static_cast<F*>(data))(task); }, tasks, &f);
  }

  void count(uint64_t weight_bytes) { __atomic_fetch_add(&counter_.weight_bytes, weight_bytes, __ATOMIC_RELAXED); }

  // Ends the call with an error: a printf format and its arguments, a sentence. The row's name goes in front.
  __attribute__((format(printf, 2, 3))) void fail(const char* format, ...);

  bool failed() const { return host_.failed(); }
  Host& host() const { return host_; }

 private:
  bool load();

  Host& host_;
  Counter& counter_;
  int inputs_ = 0;
  int blocks_ = 0;
  void* scratch_[kMaxScratch];
  Tensor tensors_[kMaxInputs] = {};
  int64_t shapes_[kMaxInputs][kMaxRank];
};

// Inputs from `required` on may be absent.
struct Kind {
  const char* name;
  int required, inputs, outputs;
  const Type* input_types;
  const Type* output_types;
  void (*compute)(Call&);
  size_t (*in_place)(int** inputs, int** outputs) = nullptr;  // in_place<...> below
};

inline Type input_type(const Row& row, size_t i) {
  const Type type = row.kind->input_types[i];
  return type == BF16 ? row.half : type;
}
inline Type output_type(const Row& row, size_t i) {
  const Type type = row.kind->output_types[i];
  return type == BF16 ? row.half : type;
}

// Input I may share its buffer with output O, and so on: in_place<0, 0> or in_place<4, 0, 5, 1>. When the buffers
// differ after all, the kernel copies.
template <int... pairs>
size_t in_place(int** inputs, int** outputs) {
  constexpr int flat[] = {pairs...};
  constexpr size_t count = sizeof...(pairs) / 2;
  *inputs = static_cast<int*>(malloc(count * sizeof(int)));
  *outputs = static_cast<int*>(malloc(count * sizeof(int)));
  if (!*inputs || !*outputs) return 0;
  for (size_t i = 0; i < count; ++i) {
    (*inputs)[i] = flat[2 * i];
    (*outputs)[i] = flat[2 * i + 1];
  }
  return count;
}

// Given by the generated table.
extern const Row rows[];
extern const size_t row_count;

// Given by the target: why this machine cannot run this library (a sentence in `text`), or false.
bool refuse(char* text, size_t size);

// One for every row, made on first use, never freed: sessions may outlive anything else here. Null without memory.
Counter* counters();

// Runs and counts one call.
void execute(const Row& row, Host& host);

}  // namespace moec

#define EXPORT extern "C" __attribute__((visibility("default")))
