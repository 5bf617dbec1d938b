"""The completions protocol with token ids, ``POST BASE_URL/completions``: ids in, ids out (vLLM).

The prompt is a list of ids, which the server does not tokenise, and the answer holds the sampled ids. So a later turn
extends the ids themselves, as it does for a model in this process: nothing is decoded and tokenised again.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

from pydantic import BaseModel, Field

from selfcorrect.engines.base import Reply, Sampling
from selfcorrect.engines.transport import MOST_TOKENS, PassingError, RefusedError
from selfcorrect.types import StopReason

FULL_SOFTMAX = {
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
"""Settings that a server would otherwise take from the model's directory."""

USE_CHAT = 'set api = "chat" (--api chat), whose context mode is messages'


class _Choice(BaseModel):
    token_ids: Any = None
    prompt_token_ids: Any = None
    logprobs: Any = None
    finish_reason: Any = None
    stop_reason: Any = None


class CompletionsAnswer(BaseModel):
    """The body of an answer, as far as it is read."""

    choices: list[_Choice] = Field(min_length=1)
    model: Any = None


class CompletionsAPI:
    """The completions protocol on one server; ``end_ids`` end a turn, in addition to those that the server knows."""

    path = "completions"
    answer = CompletionsAnswer

    def __init__(self, end_ids: Collection[int]) -> None:
        self.end_ids = frozenset(end_ids)

    def body(self, prompt: Sequence[int]) -> dict[str, Any]:
        """Return the fields of a request that are the protocol's own."""
        return {
            "prompt": list(prompt),
            "return_token_ids": True,
            "logprobs": 0,  # only the sampled token's
            "stop_token_ids": sorted(self.end_ids),
            "include_stop_str_in_output": True,
            "skip_special_tokens": False,  # stop texts may contain special tokens
            **FULL_SOFTMAX,
        }

    def text_body(self, text: str) -> dict[str, Any]:
        """Return the fields of a request whose prompt the server tokenises, to see whether it does so as expected."""
        return {"prompt": text, "add_special_tokens": False, "return_token_ids": True}

    def reply(self, answer: CompletionsAnswer, prompt: Sequence[int], sampling: Sampling) -> Reply:
        """Return the sampled ids.

        Raises:
            RefusedError: the server returns no ids, or continued another prompt.
            PassingError: the ids are malformed.
        """
        choice = answer.choices[0]
        read = prompt_ids(answer)
        if read is not None and read != tuple(prompt):
            raise RefusedError(
                200,
                f"the server continued another prompt ({len(read)} token ids) than the one that was sent ({len(prompt)}): start "
                f"it without options that change prompts, or {USE_CHAT}.",
            )
        if choice.token_ids is None:
            raise no_ids()
        ids = _ids(choice.token_ids)
        if not 0 < len(ids) <= sampling.max_tokens:
            raise PassingError(
                f"the answer has {len(ids)} sampled token ids, but 1 to {sampling.max_tokens} were to come"
            )
        return Reply(
            "", self._stop(choice, ids, sampling), None, ids=ids, logprobs=_logprobs(choice.logprobs, len(ids))
        )

    def _stop(self, choice: _Choice, ids: Sequence[int], sampling: Sampling) -> StopReason:
        if ids[-1] in self.end_ids:
            return StopReason.END
        if choice.finish_reason == "length":
            return StopReason.LENGTH
        return StopReason.STOP if choice.stop_reason in sampling.stop else StopReason.END


def prompt_ids(answer: CompletionsAnswer) -> tuple[int, ...] | None:
    """Return the ids of the prompt as the server read it; None if it does not say.

    Raises:
        PassingError: they are malformed.
    """
    found = answer.choices[0].prompt_token_ids
    return None if found is None else _ids(found)


def no_ids() -> RefusedError:
    """Return the failure of a server that returns no token ids."""
    return RefusedError(
        200,
        "the server's completions hold no token ids (it ignores return_token_ids, which vLLM 0.10.2 and later know), so a "
        f"second turn cannot extend the first one's ids: {USE_CHAT}.",
    )


def _ids(found: Any) -> tuple[int, ...]:
    if not isinstance(found, list) or not all(type(i) is int and 0 <= i < MOST_TOKENS for i in found):
        raise PassingError("the answer's token ids are not a list of whole numbers of 0 or more")
    return tuple(found)


def _logprobs(found: Any, length: int) -> tuple[float, ...]:
    """Return the log-probability of every sampled id; zeros if the server sends none (an evaluation never reads them)."""
    values = found.get("token_logprobs") if isinstance(found, dict) else None
    if not isinstance(values, list) or len(values) != length:
        return (0.0,) * length
    return tuple(float(value) if _is_finite(value) else 0.0 for value in values)


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < MOST_TOKENS and math.isfinite(value)
