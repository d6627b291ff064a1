"""Triton kernels of fused gates; each module names the reference implementation that it must match."""
