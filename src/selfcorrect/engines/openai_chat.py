"""Replies from an OpenAI-compatible server over HTTP, in the chat protocol or in the completions protocol with token ids.

`selfcorrect.engines.transport` sends requests and decides which failures are worth a retry. The two protocols are
`selfcorrect.engines.chat_api` and `selfcorrect.engines.completions_api`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar

from selfcorrect.engines.base import Reply, Sampling
from selfcorrect.engines.completions_api import CompletionsAnswer, CompletionsAPI, no_ids, prompt_ids
from selfcorrect.engines.server import (
    DROPPABLE,
    KEY_ENV,
    Server,
    address_of,
    check_fields,
    headers_of,
    is_url,
    key_of,
)
from selfcorrect.engines.transport import PassingError, RefusedError, Transport, listed, served_models
from selfcorrect.engines.untrusted import shown
from selfcorrect.errors import ConfigError, EndpointError, ModelError
from selfcorrect.extras import require

__all__ = ["EndpointEngine", "Server", "check_tokenizer", "find_server", "is_url"]
log = logging.getLogger(__name__)

LIMITS = ("max_tokens", "max_completion_tokens")
"""The token limit by its two names; newer OpenAI servers know only the second."""

Prompt_contra = TypeVar("Prompt_contra", contravariant=True)


def find_server(
    base_url: str,
    model: str | None,
    *,
    key_env: str | None = None,
    extra_headers: Mapping[str, str] | None = None,
    **settings: Any,
) -> Server:
    """Return the server at an address; without ``model``, ask it which model it serves.

    Args:
        settings: further arguments of `Server`; None means the default.

    Raises:
        ConfigError: the address or a setting is invalid, or the named variable for the key is not set.
        ModelError: no model is named and the server does not serve exactly one.
        EndpointError: the server does not answer when it is asked for its models.
    """
    for package in ("httpx", "tenacity"):
        require(package, extra="endpoint", why="a model on a server")
    given = {name: value for name, value in settings.items() if value is not None}
    timeout_s, retries = given.get("timeout_s", 1.0), given.get("retries", 0)
    if not 0 < timeout_s < float("inf"):
        raise ConfigError(f"request_timeout = {timeout_s}: it must be a finite number of seconds above 0.")
    if retries < 0:
        raise ConfigError(f"retries = {retries}: it must be at least 0.")
    check_fields(given.get("extra_body", {}), given.get("drop_fields", ()))
    given["extra_headers"] = headers_of(extra_headers or {})
    found = Server(address_of(base_url), model or "", key_of(key_env), key_env or KEY_ENV, **given)
    if model:
        return found
    served = [*served_models(found)]
    if len(served) != 1:
        raise ModelError(f"{found.base_url} serves {listed(served)}: choose one with --base-url URL --model NAME.")
    return replace(found, model=served[0])


class WireProtocol(Protocol[Prompt_contra]):
    """A protocol: where requests go, what they hold, and how an answer is read."""

    path: str
    answer: Any

    def body(self, prompt: Prompt_contra) -> dict[str, Any]:
        """Return the fields that are the protocol's own."""
        ...

    def reply(self, answer: Any, prompt: Prompt_contra, sampling: Sampling) -> Reply:
        """Return the reply of an answer; raise a PassingError or a RefusedError where there is none."""
        ...


class EndpointEngine(Generic[Prompt_contra]):
    """A `ServedEngine` on a server; use it within ``async with``.

    Where an answer comes under another name than the requested one, its reply has that name.
    """

    def __init__(self, server: Server, api: WireProtocol[Prompt_contra]) -> None:
        self.server, self.api = server, api
        self.transport = Transport(server)
        self._other_models: set[str] = set()
        self._limit, self._checked = LIMITS[0], False

    async def __aenter__(self) -> Self:
        await self.transport.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.transport.__aexit__(kind, error, trace)

    async def check(self, prompt: Prompt_contra, sampling: Sampling) -> None:
        """Make sure that the server answers, and find out what it calls the token limit: newer OpenAI servers renamed it.

        Raises:
            ModelError: the server rejects the model, the key or a setting.
            EndpointError: no server answers, or it is not a chat server.
        """
        try:
            try:
                reply = await self._reply(prompt, sampling, 0, only_busy=True)
            except RefusedError as error:
                if not all(name in str(error) for name in LIMITS) or self._limit == LIMITS[1]:
                    raise
                self._limit = LIMITS[1]
                reply = await self._reply(prompt, sampling, 0, only_busy=True)
            if not self._checked and _exceeds(reply, sampling):
                await self._try_other_limit(prompt, sampling)
            self._checked = True
        except RefusedError as error:
            raise ModelError(await explained(self.server, error)) from None
        except PassingError as error:
            raise unanswered(self.server, error) from None

    async def _try_other_limit(self, prompt: Prompt_contra, sampling: Sampling) -> None:
        """Use the token limit's other name if the server heeds that one: some ignore the name that they do not know."""
        before, self._limit = self._limit, LIMITS[1]
        with contextlib.suppress(RefusedError, PassingError):
            if not _exceeds(await self._reply(prompt, sampling, 0, only_busy=True), sampling):
                return
        self._limit = before
        log.warning(
            "%d token was to come in the first reply and more came: the server ignores the token limit (%s), or counts more than "
            "it sampled",
            sampling.max_tokens,
            ", ".join(LIMITS),
        )

    async def reply(self, prompt: Prompt_contra, sampling: Sampling, seed: int) -> Reply:
        """Return the continuation of a prompt.

        Raises:
            ModelError: the server rejects the request.
            EndpointError: the request and all its retries failed.
        """
        try:
            return await self._reply(prompt, sampling, seed)
        except RefusedError as error:
            raise ModelError(f"{self.server.base_url} rejected the request: {error}") from None
        except PassingError as error:
            tried = self.server.retries + 1
            times = "1 attempt" if tried == 1 else f"{tried} attempts"
            raise EndpointError(f"{self.server.base_url} failed after {times}; the last error: {error}.") from None

    async def _reply(self, prompt: Prompt_contra, sampling: Sampling, seed: int, *, only_busy: bool = False) -> Reply:
        body, read = self._body(self.api.body(prompt), sampling, seed), partial(self.read, prompt, sampling)
        return await self.transport.post(self.api.path, body, self.api.answer, read, only_busy=only_busy)

    def read(self, prompt: Prompt_contra, sampling: Sampling, answer: Any) -> Reply:
        """Return the reply of an answer, or raise a PassingError or a RefusedError."""
        return self.api.reply(answer, prompt, sampling).under(self._other_model(answer.model))

    def _other_model(self, model: Any) -> str | None:
        """Return the model's name in an answer if it is not the requested one, and warn once about each such name."""
        if not isinstance(model, str) or model == self.server.model:
            return None
        name = shown(model, *self.server.secrets)
        if name not in self._other_models:
            self._other_models.add(name)
            log.warning("the server answers as model %r; %r was requested", name, self.server.model)
        return name

    def _body(self, own: Mapping[str, Any], sampling: Sampling, seed: int) -> dict[str, Any]:
        body: dict[str, Any] = {"model": self.server.model, **own}
        body |= {self._limit: sampling.max_tokens, "temperature": sampling.temperature}
        if sampling.temperature > 0:
            # The full softmax, whatever the model's own generation settings are; servers may ignore the seed.
            body |= {"top_p": 1.0, "seed": seed}
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        kept = {name: value for name, value in body.items() if name not in self.server.drop_fields}
        return {**kept, **self.server.extra_body}


def _exceeds(reply: Reply, sampling: Sampling) -> bool:
    return reply.counted is not None and reply.counted > sampling.max_tokens


async def check_tokenizer(engine: EndpointEngine[tuple[int, ...]], text: str, ids: Sequence[int]) -> None:
    """Make sure that the server works on token ids, and that it makes the same ids of a text as the tokenizer here.

    Raises:
        ModelError: it does not, or it rejects the model, the key or a setting.
        EndpointError: no server answers.
    """
    server, api = engine.server, engine.api
    assert isinstance(api, CompletionsAPI)

    def read(answer: CompletionsAnswer) -> tuple[int, ...]:
        found = prompt_ids(answer)
        if found is None:
            raise no_ids()
        return found

    body = {"model": server.model, **api.text_body(text), "max_tokens": 1, "temperature": 0.0, **server.extra_body}
    try:
        found = await engine.transport.post(api.path, body, CompletionsAnswer, read, only_busy=True)
    except RefusedError as error:
        raise ModelError(await explained(server, error, ids=True)) from None
    except PassingError as error:
        raise unanswered(server, error) from None
    if found != tuple(ids):
        at = next((i for i, (a, b) in enumerate(zip(found, ids, strict=False)) if a != b), min(len(found), len(ids)))
        raise ModelError(
            f"the tokenizer here is not that of {server.base_url}: of the first question it makes {len(ids)} token ids, the "
            f"server {len(found)}, and number {at + 1} differs. Name the tokenizer of the served model (--tokenizer)."
        )


def unanswered(server: Server, error: PassingError) -> EndpointError:
    """Return the error of a first request that nobody answered."""
    hint = "" if error.busy else " Is it running, and is this its address?"
    return EndpointError(f"{server.base_url}: {error}.{hint}")


async def explained(server: Server, error: RefusedError, *, ids: bool = False) -> str:
    """Return why the server rejected the first request, with a hint; ``ids``: it was one of the completions protocol."""
    text = f"{server.base_url} rejected the first request: {error}"
    if error.status == 200:
        return f"{server.base_url}: {error}"
    if error.status in (401, 403):
        how = "The key in" if server.key else "No key was sent, because it was not found in"
        return f"{text} {how} the environment variable {server.key_env}{' was not accepted.' if server.key else '.'}"
    field = next((name for name in DROPPABLE if name in str(error).replace("'", " ").replace("`", " ").split()), None)
    if field is not None and field not in server.drop_fields:
        text += f" To leave a field out of all requests: --set 'drop_fields=[\"{field}\"]'."
    try:
        served = [*await asyncio.to_thread(served_models, server)]
    except EndpointError:
        hint = "" if server.base_url.endswith("/v1") else " Base URLs usually end in /v1."
        return f"{text} (The requested model was {server.model!r}.){hint if error.status in (404, 405) else ''}"
    if server.model not in served:
        return f"{text} It serves {listed(served)}, not {server.model!r}."
    return f"{text} If it does not offer completions of token ids: --api chat." if ids else text
