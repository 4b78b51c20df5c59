"""Huawei Ascend: Triton kernels, through Huawei's own compiler."""
