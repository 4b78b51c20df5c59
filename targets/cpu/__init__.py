"""The CPU: TVM kernels compiled ahead of time for a declared ISA."""
