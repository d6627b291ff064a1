"""Kernels for the CPU, compiled by numba and run by torch's own threads."""
