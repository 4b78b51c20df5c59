"""How kernels are made of Triton functions: builders and spaces by kind, for this process, without Triton."""
