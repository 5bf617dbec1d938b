"""Train and measure intrinsic self-correction of language models."""

__version__ = "0.1.0"
