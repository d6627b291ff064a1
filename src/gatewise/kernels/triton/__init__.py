"""The gates that are fused in Triton; each module says which definition it must match."""
