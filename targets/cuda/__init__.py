"""NVIDIA GPUs: kernels in TileLang, launched by an onnxruntime execution provider of our own."""
