"""Engines sample completions of token ids; the protocol and its nouns.

An engine takes ids and gives ids with their log-probabilities. It may keep the key-value cache of a
completion under a handle; a later request that names the handle as its parent continues from there.
"""

from selfcorrect.engines.base import Completion, Engine, Request, Sampling
from selfcorrect.engines.hf import HFEngine
from selfcorrect.engines.vllm import VLLMEngine, check_vllm

__all__ = ["Completion", "Engine", "HFEngine", "Request", "Sampling", "VLLMEngine", "check_vllm"]
