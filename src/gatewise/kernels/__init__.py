"""Fused forms in Triton; each says which definition it must match."""
