"""The fast path for CPUs. Private operators of torch are used only in this package."""
