"""Fused kernels; each module names the reference implementation that it must match."""
