"""Engines, which sample completions: their protocols, value types and implementations.

An `Engine` takes ids and returns ids with their log-probabilities. It may keep the key-value cache of a
completion under a handle; a later request that names the handle as its parent continues from there.

A `ChatEngine` gets its replies from a server, to messages or to token ids; its model can be measured but not trained.
"""

from selfcorrect.engines.base import (
    ChatEngine,
    Completion,
    Engine,
    EngineKind,
    EngineSettings,
    Message,
    Reply,
    Request,
    Sampling,
)
from selfcorrect.engines.factory import EnginePool, check_engine, computing_models, open_engine, open_second_engine
from selfcorrect.engines.hf import HFEngine
from selfcorrect.engines.vllm import VLLMEngine, check_vllm

__all__ = [
    "ChatEngine",
    "Completion",
    "Engine",
    "EngineKind",
    "EnginePool",
    "EngineSettings",
    "HFEngine",
    "Message",
    "Reply",
    "Request",
    "Sampling",
    "VLLMEngine",
    "check_engine",
    "check_vllm",
    "computing_models",
    "open_engine",
    "open_second_engine",
]
