"""Answer completions of token ids as `vllm serve` 0.32 does (bodies and status codes are taken from it), with a model here."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

from selfcorrect.engines import HFEngine, Request, Sampling
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.types import StopReason
from support.chat_server import Answer, fails
from support.episodes import sample_key


def completes(model: LanguageModel, *, name: str = "m", ids: bool = True) -> Callable[[dict[str, Any]], Answer]:
    """Return a server's function: the greedy continuation of a prompt; without ``ids``, of a server that returns text only."""
    engine, lock = HFEngine(model), threading.Lock()

    def answer(body: dict[str, Any]) -> Answer:
        if body["model"] != name:
            return fails(404, f"The model `{body['model']}` does not exist.")
        prompt = body["prompt"]
        if isinstance(prompt, str):
            prompt = model.tokenizer(prompt, add_special_tokens=body["add_special_tokens"])["input_ids"]
        with lock:
            sampling = Sampling(0.0, body["max_tokens"], tuple(body.get("stop", ())))
            (done,) = engine.generate([Request(tuple(prompt), sample_key())], sampling)
        return of_ids(model.tokenizer, prompt, done.ids, done.stop, done.logprobs, body.get("stop", ()), ids=ids)

    return answer


def of_ids(
    tokenizer: Any,
    prompt: Any,
    sampled: Any,
    stop: StopReason,
    scores: Any = None,
    stops: Any = (),
    *,
    ids: bool = True,
    **choice: Any,
) -> Answer:
    """Return a completion; ``choice`` replaces fields of its choice."""
    text = tokenizer.decode(sampled)
    found = {
        "index": 0,
        "text": text,
        "logprobs": {"token_logprobs": list(scores), "tokens": [], "text_offset": []} if scores else None,
        "finish_reason": "length" if stop is StopReason.LENGTH else "stop",
        "stop_reason": next((one for one in stops if stop is StopReason.STOP and one in text), None),
        "token_ids": list(sampled) if ids else None,
        "prompt_token_ids": list(prompt) if ids else None,
        **choice,
    }
    usage = {"prompt_tokens": len(prompt), "completion_tokens": len(sampled)}
    return Answer(json.dumps({"object": "text_completion", "model": "m", "choices": [found], "usage": usage}).encode())
