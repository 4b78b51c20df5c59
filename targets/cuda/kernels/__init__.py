"""Kernels in TileLang, one file a family: each gives the steps of its kinds (see program.py)."""
