"""The names of engines; `selfcorrect.engines.factory` opens the engine."""

from __future__ import annotations

from selfcorrect.config.plugins import Plugins

HF, VLLM = "hf", "vllm"
ENGINES = Plugins(
    "engine",
    "selfcorrect.engines",
    {HF: "selfcorrect.engines.hf:HF_KIND", VLLM: "selfcorrect.engines.vllm:VLLM_KIND"},
)
"""The kinds of engines. A new built-in one takes its file and a line here."""
