"""Replies from an OpenAI-compatible chat server over HTTP: ``POST BASE_URL/chat/completions``.

A request with a transient failure (no connection, a timeout, 408, 425, 429, 5xx, a malformed answer) is retried with
growing waits, never sooner than the server's ``Retry-After``. Any other rejection is final, because the server would
repeat it. The key appears in one header and nowhere else, not even in an error message if the server echoes it.

The server is not trusted: see `selfcorrect.engines.untrusted` for what is done to a body and to a message before use.
"""

from __future__ import annotations

import asyncio
import codecs
import email.utils
import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Any, Self, TypeVar

from pydantic import BaseModel, Field, ValidationError

from selfcorrect.engines.base import Message, Reply, Sampling
from selfcorrect.engines.untrusted import (
    BODY_LIMIT,
    BodyError,
    clean,
    decompressed,
    read_body,
    shown,
    visible_surrogates,
)
from selfcorrect.errors import ConfigError, EndpointError, ModelError
from selfcorrect.extras import require
from selfcorrect.types import StopReason

log = logging.getLogger(__name__)

KEY_ENV = "OPENAI_API_KEY"
"""The environment variable with the key, unless another is named."""
CONNECT_S = 10.0
"""The time limit for a connection, in seconds."""
LONGEST_WAIT_S = 600.0
"""The longest wait, in seconds, that a server may request before the request is given up."""
BUSY = {408, 425, 429}
MOST_TOKENS = 2**31
"""The largest token count that is believed."""


def is_url(text: object) -> bool:
    """Return whether a model's name is the address of a server.

    >>> is_url("http://localhost:8000/v1"), is_url("Qwen/Qwen2.5-1.5B-Instruct")
    (True, False)
    """
    return isinstance(text, str) and text.lower().startswith(("http://", "https://"))


@dataclass(frozen=True, slots=True)
class Server:
    """A model server, with its time limit and retries.

    Args:
        base_url: the address, version included, as in ``http://localhost:8000/v1``.
        model: the server's name for the model.
        key: the bearer token; None sends none.
        key_env: the environment variable that the key comes from, for messages.
        timeout_s: the limit for one request, from its start to the last byte of the answer, in seconds.
        retries: how often a request with a transient failure is retried.
        chat_template_kwargs: options of the chat template (``enable_thinking``), which are sent with every request.
        backoff_s: the approximate first wait before a retry, in seconds; each further wait doubles.
    """

    base_url: str
    model: str
    key: str | None = field(default=None, repr=False)
    key_env: str = KEY_ENV
    timeout_s: float = 300.0
    retries: int = 6
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    backoff_s: float = 0.5


def find_server(
    base_url: str,
    model: str | None,
    *,
    key_env: str | None = None,
    timeout_s: float | None = None,
    retries: int | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> Server:
    """Return the server at an address; without ``model``, ask it which model it serves.

    Raises:
        ConfigError: the address or a number is invalid, or the named variable for the key is not set.
        ModelError: no model is named and the server does not serve exactly one.
        EndpointError: the server does not answer when it is asked for its models.
    """
    for package in ("httpx", "tenacity"):
        require(package, extra="endpoint", why="a model on a server")
    if timeout_s is not None and not 0 < timeout_s < float("inf"):
        raise ConfigError(f"request_timeout = {timeout_s}: it must be a finite number of seconds above 0.")
    if retries is not None and retries < 0:
        raise ConfigError(f"retries = {retries}: it must be at least 0.")
    given = {"timeout_s": timeout_s, "retries": retries, "chat_template_kwargs": chat_template_kwargs}
    settings: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    found = Server(_address(base_url), model or "", _key(key_env), key_env or KEY_ENV, **settings)
    if model:
        return found
    served = _served(found)
    if len(served) != 1:
        raise ModelError(f"{found.base_url} serves {_listed(served)}: choose one with --base-url URL --model NAME.")
    return Server(found.base_url, served[0], found.key, found.key_env, **settings)


def _address(url: str) -> str:
    """Return the address without a trailing slash.

    Raises:
        ConfigError: it is not an address, or holds more than one. The message repeats no secret.
    """
    import httpx

    try:
        parts = httpx.URL(url)
        whole = parts.scheme in ("http", "https") and bool(parts.host) and " " not in url
    except httpx.InvalidURL:
        whole = False
    if not whole:
        raise ConfigError("base_url is not the address of a server: write it like http://localhost:8000/v1.")
    if parts.userinfo or parts.query or parts.fragment:
        raise ConfigError(
            "base_url holds a user, a password, a query or a fragment, which would be recorded with the results: write "
            f"it like http://localhost:8000/v1, and put a key into the environment variable {KEY_ENV}."
        )
    return url.rstrip("/")


def _key(name: str | None) -> str | None:
    value = os.environ.get(name or KEY_ENV, "").strip()
    if name and not value:
        raise ConfigError(f"key_env = {name!r}: this environment variable is not set, or is empty.")
    if not (value.isascii() and value.isprintable()):
        raise ConfigError(
            f"the key in the environment variable {name or KEY_ENV} has characters that an HTTP header cannot hold."
        )
    return value or None


class _Message(BaseModel):
    content: str | list[str | dict[str, Any]] | None = None
    refusal: Any = None

    @property
    def text(self) -> str:
        """Return the answer: the content, joined where it is a list of parts, or else the refusal, which is an answer too.

        Parts that are not text (``thinking``, images) and reasoning that the server reports separately are left out.
        """
        if isinstance(self.content, list):
            return "".join(map(_part_text, self.content)).strip()
        return (self.content or (self.refusal if isinstance(self.refusal, str) else "")).strip()


def _part_text(part: str | dict[str, Any]) -> str:
    if isinstance(part, str):
        return part
    text = part.get("text") if part.get("type", "text") in ("text", "output_text") else None
    return text if isinstance(text, str) else ""


class _Choice(BaseModel):
    message: _Message
    finish_reason: Any = None
    stop_reason: Any = None


class _Answer(BaseModel):
    choices: list[_Choice] = Field(min_length=1)
    usage: Any = None
    model: Any = None

    @property
    def counted(self) -> int | None:
        """Return the sampled tokens as reported; None where that is no believable number."""
        count = self.usage.get("completion_tokens") if isinstance(self.usage, dict) else None
        if isinstance(count, float) and count.is_integer():
            count = int(count)
        return count if type(count) is int and 0 <= count <= MOST_TOKENS else None


class _Served(BaseModel):
    class Model(BaseModel):
        id: str

    data: list[Model]


Wanted = TypeVar("Wanted", bound=BaseModel)


class _PassingError(Exception):
    """A transient failure, worth a retry; ``busy`` means that the server itself reported it."""

    def __init__(self, message: str, *, busy: bool = False, wait_s: float = 0.0) -> None:
        super().__init__(message)  # already `clean`
        self.busy, self.wait_s = busy, wait_s


class _RefusedError(Exception):
    """A permanent failure."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class EndpointEngine:
    """A `ChatEngine` on a server; use it within ``async with``.

    Where an answer comes under another name than the requested one, its reply has that name.
    """

    def __init__(self, server: Server) -> None:
        self.server = server
        self._other_models: set[str] = set()
        self._limit = "max_tokens"
        self._client: Any = None

    async def __aenter__(self) -> Self:
        import httpx

        # Requests wait for the rollouter's limit, not for a free connection.
        self._client = httpx.AsyncClient(
            headers=_headers(self.server),
            timeout=httpx.Timeout(self.server.timeout_s, connect=min(CONNECT_S, self.server.timeout_s), pool=None),
            limits=httpx.Limits(max_connections=None),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def check(self, messages: Sequence[Message], sampling: Sampling) -> None:
        """Make sure that the server answers, and find out what it calls the token limit: newer OpenAI servers renamed it.

        Raises:
            ModelError: the server rejects the model, the key or a setting.
            EndpointError: no server answers, or it is not a chat server.
        """
        try:
            try:
                await self._patiently(messages, sampling, 0, only_busy=True)
            except _RefusedError as error:
                if self._limit not in str(error) or "max_completion_tokens" not in str(error):
                    raise
                self._limit = "max_completion_tokens"
                await self._patiently(messages, sampling, 0, only_busy=True)
        except _RefusedError as error:
            raise ModelError(await self._explained(error)) from None
        except _PassingError as error:
            hint = "" if error.busy else " Is it running, and is this its address?"
            raise EndpointError(f"{self.server.base_url}: {error}.{hint}") from None

    async def reply(self, messages: Sequence[Message], sampling: Sampling, seed: int) -> Reply:
        """Return the next message of the chat.

        Raises:
            ModelError: the server rejects the request.
            EndpointError: the request and all its retries failed.
        """
        try:
            return await self._patiently(messages, sampling, seed)
        except _RefusedError as error:
            raise ModelError(f"{self.server.base_url} rejected the request: {error}") from None
        except _PassingError as error:
            tried = self.server.retries + 1
            times = "1 attempt" if tried == 1 else f"{tried} attempts"
            raise EndpointError(f"{self.server.base_url} failed after {times}; the last error: {error}.") from None

    async def _patiently(
        self, messages: Sequence[Message], sampling: Sampling, seed: int, *, only_busy: bool = False
    ) -> Reply:
        from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt
        from tenacity.wait import wait_random_exponential

        def again(error: BaseException) -> bool:
            return isinstance(error, _PassingError) and (error.busy or not only_busy) and error.wait_s <= LONGEST_WAIT_S

        growing = wait_random_exponential(multiplier=self.server.backoff_s, max=60)

        def pause(state: RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            asked = error.wait_s if isinstance(error, _PassingError) else 0.0
            return asked + growing(state)  # random, so that requests rejected together do not return together

        def tell(state: RetryCallState) -> None:
            error = state.outcome.exception() if state.outcome else None
            log.info("a request failed (%s); retrying in %.1f s", error, state.upcoming_sleep)

        retrying = AsyncRetrying(
            retry=retry_if_exception(again),
            wait=pause,
            stop=stop_after_attempt(self.server.retries + 1),
            before_sleep=tell,
            reraise=True,
        )
        return await retrying(self._once, messages, sampling, seed)

    async def _once(self, messages: Sequence[Message], sampling: Sampling, seed: int) -> Reply:
        import httpx

        body = self._body(messages, sampling, seed)
        url, timeout_s = f"{self.server.base_url}/chat/completions", self.server.timeout_s
        try:
            async with (
                asyncio.timeout(timeout_s),  # httpx's own limits restart with each byte
                self._client.stream("POST", url, json=body) as response,
            ):
                content = await read_body(response.aiter_raw(), response.headers.get("content-encoding", ""))
        except (TimeoutError, httpx.TimeoutException):
            raise _PassingError(f"no answer within {timeout_s:g} s") from None
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise _PassingError(f"cannot be reached ({_reason(error, self.server.key)})") from None
        except BodyError as error:
            raise _PassingError(str(error)) from None
        answer = _parsed(response, content, self.server, _Answer)
        return _reply(answer, sampling, self._other_model(answer.model))

    def _other_model(self, model: Any) -> str | None:
        """Return the model's name in an answer if it is not the requested one, and warn once about each such name."""
        if not isinstance(model, str) or model == self.server.model:
            return None
        name = shown(model, self.server.key)
        if name not in self._other_models:
            self._other_models.add(name)
            log.warning("the server answers as model %r; %r was requested", name, self.server.model)
        return name

    def _body(self, messages: Sequence[Message], sampling: Sampling, seed: int) -> dict[str, Any]:
        body: dict[str, Any] = {"model": self.server.model, "messages": [asdict(message) for message in messages]}
        body |= {self._limit: sampling.max_tokens, "temperature": sampling.temperature}
        if sampling.temperature > 0:
            # The full softmax, whatever the model's own generation settings are; servers may ignore the seed.
            body |= {"top_p": 1.0, "seed": seed}
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        if self.server.chat_template_kwargs:
            body["chat_template_kwargs"] = dict(self.server.chat_template_kwargs)
        return body

    async def _explained(self, error: _RefusedError) -> str:
        """Return why the server rejected the first request, with a hint."""
        server, text = self.server, f"{self.server.base_url} rejected the first request: {error}"
        if error.status in (401, 403):
            how = "The key in" if server.key else "No key was sent, because it was not found in"
            return (
                f"{text} {how} the environment variable {server.key_env}{' was not accepted.' if server.key else '.'}"
            )
        try:
            served = await asyncio.to_thread(_served, server)
        except EndpointError:
            hint = "" if server.base_url.endswith("/v1") else " Base URLs usually end in /v1."
            return f"{text} (The requested model was {server.model!r}.){hint if error.status in (404, 405) else ''}"
        return text if server.model in served else f"{text} It serves {_listed(served)}, not {server.model!r}."


def _headers(server: Server) -> dict[str, str]:
    plain = {"Accept-Encoding": "identity"}  # nothing is decompressed before its size is known
    return plain if server.key is None else {**plain, "Authorization": f"Bearer {server.key}"}


def _reason(error: Exception, key: str | None) -> str:
    """Return why a connection failed; some of these errors say nothing, and some repeat what the server sent.

    >>> _reason(ConnectionResetError(), None)
    'ConnectionResetError'
    """
    return shown(str(error).strip() or str(error.__cause__ or "").strip() or type(error).__name__, key)


def _served(server: Server) -> list[str]:
    """Return the names of the models that a server offers."""
    import httpx

    deadline = time.monotonic() + CONNECT_S
    try:
        content = bytearray()
        with httpx.stream("GET", f"{server.base_url}/models", headers=_headers(server), timeout=CONNECT_S) as response:
            for chunk in response.iter_raw():
                content += chunk
                if len(content) > BODY_LIMIT or time.monotonic() > deadline:
                    raise BodyError("the list is too long, or comes too slowly")
        body = decompressed(bytes(content), response.headers.get("content-encoding", ""))
        return [clean(model.id) for model in _parsed(response, body, server, _Served).data]
    except httpx.HTTPError as error:
        raise EndpointError(f"{server.base_url} did not list its models: {_reason(error, server.key)}.") from None
    except (BodyError, _PassingError, _RefusedError) as error:
        raise EndpointError(f"{server.base_url} did not list its models: {error}.") from None


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return (", ".join(names[:10]) or "no model") + more


def _parsed(response: Any, content: bytes, server: Server, wanted: type[Wanted]) -> Wanted:
    """Return the parsed body of an answer.

    Raises:
        _PassingError, _RefusedError: the answer is a failure or malformed.
    """
    status = response.status_code
    if status in BUSY or status >= 500:
        wait_s = _retry_after(response.headers.get("retry-after"))
        raise _PassingError(f"status {status}: {shown(content, server.key)}", busy=True, wait_s=wait_s)
    if not response.is_success:
        raise _RefusedError(status, f"status {status}: {shown(content, server.key)}")
    try:
        return wanted.model_validate_json(visible_surrogates(content.removeprefix(codecs.BOM_UTF8)))
    except ValidationError:
        raise _PassingError(
            f"the answer does not come from an OpenAI-compatible server: {shown(content, server.key)}"
        ) from None


def _retry_after(value: str | None) -> float:
    """Return the seconds to wait, given as a number or a date; 0 where the value is neither.

    >>> _retry_after("3"), _retry_after(None), _retry_after("soon"), _retry_after("Wed, 21 Oct 2015 07:28:00 GMT")
    (3.0, 0.0, 0.0, 0.0)
    """
    if value is None:
        return 0.0
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return 0.0
    return 0.0 if math.isnan(seconds) else max(0.0, seconds)


def _reply(answer: _Answer, sampling: Sampling, other_model: str | None) -> Reply:
    choice = answer.choices[0]
    stop = StopReason.END
    if choice.finish_reason == "length":
        stop = StopReason.LENGTH
    elif choice.stop_reason in sampling.stop:  # vLLM reports which text ended the turn; others do not
        stop = StopReason.STOP
    return Reply(choice.message.text, stop, answer.counted, other_model=other_model)
