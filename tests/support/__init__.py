"""Helpers that the tests share, one subject a module: `from support.models import tiny_model`."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before any library reads it
