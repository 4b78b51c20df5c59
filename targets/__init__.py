"""What a machine can run and how its kernels are written; targets never know each other."""
