// A lock for what takes no time.
#pragma once

namespace moec {

struct Lock {
  explicit Lock(bool& taken) : taken_(taken) {
    while (__atomic_test_and_set(&taken_, __ATOMIC_ACQUIRE)) {}
  }
  ~Lock() { __atomic_clear(&taken_, __ATOMIC_RELEASE); }
  Lock(const Lock&) = delete;
  Lock& operator=(const Lock&) = delete;

 private:
  bool& taken_;
};

}  // namespace moec
