"""Triton functions. Only the Ascend toolchain's own Python loads them: it has a Triton of its own."""
