"""Reproduce "Sparsity May Be All You Need: Sparse Random Parameter Adaptation"."""

__version__ = "0.1.0"
