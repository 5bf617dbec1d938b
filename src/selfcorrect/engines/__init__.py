"""Engines sample completions; the protocols and their nouns.

An `Engine` takes ids and gives ids with their log-probabilities. It may keep the key-value cache of a
completion under a handle; a later request that names the handle as its parent continues from there.

A `ChatEngine` takes messages and gives texts, so it can be measured but not trained.
"""

from selfcorrect.engines.base import ChatEngine, Completion, Engine, Message, Reply, Request, Sampling
from selfcorrect.engines.hf import HFEngine
from selfcorrect.engines.vllm import VLLMEngine, check_vllm

__all__ = [
    "ChatEngine",
    "Completion",
    "Engine",
    "HFEngine",
    "Message",
    "Reply",
    "Request",
    "Sampling",
    "VLLMEngine",
    "check_vllm",
]
