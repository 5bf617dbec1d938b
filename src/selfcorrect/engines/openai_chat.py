"""Replies of an OpenAI-compatible chat server, over HTTP: ``POST BASE_URL/chat/completions``.

A request that fails in passing (no connection, a time-out, 408, 425, 429, 5xx, an answer that is none) is made again,
with growing waits and never sooner than the server's ``Retry-After``. Anything else that a server refuses, it would
refuse again. The key stands in one header and nowhere else: not in a message of an error either, even if the server
repeats it.
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import logging
import math
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Any, Self, TypeVar

from pydantic import BaseModel, Field, ValidationError

from selfcorrect.engines.base import Message, Reply, Sampling
from selfcorrect.errors import ConfigError, EndpointError, ModelError
from selfcorrect.extras import require
from selfcorrect.types import StopReason

log = logging.getLogger(__name__)

KEY_ENV = "OPENAI_API_KEY"
"""The environment variable that holds the key, unless another is named."""
CONNECT_S = 10.0
"""Seconds in which a connection must stand."""
LONGEST_WAIT_S = 600.0
"""A server that asks to be left alone for longer is given up."""
SHOWN = 300
"""Characters of a server's own message that an error repeats."""
BUSY = {408, 425, 429}


def is_url(text: object) -> bool:
    """Whether a model's name is the address of a server.

    >>> is_url("http://localhost:8000/v1"), is_url("Qwen/Qwen2.5-1.5B-Instruct")
    (True, False)
    """
    return isinstance(text, str) and text.lower().startswith(("http://", "https://"))


@dataclass(frozen=True, slots=True)
class Server:
    """Where a model is served and how patient to be.

    Args:
        base_url: up to and including the version, as in ``http://localhost:8000/v1``.
        model: the name under which the server knows the model.
        key: sent as a bearer token; None sends none.
        key_env: where the key comes from, for messages.
        timeout_s: for one request, from its start to the last byte of the answer.
        retries: how often a request that failed in passing is made again.
        backoff_s: the first wait before that, about; the next ones are twice as long each.
    """

    base_url: str
    model: str
    key: str | None = field(default=None, repr=False)
    key_env: str = KEY_ENV
    timeout_s: float = 300.0
    retries: int = 6
    backoff_s: float = 0.5


def find_server(
    base_url: str,
    model: str | None,
    *,
    key_env: str | None = None,
    timeout_s: float | None = None,
    retries: int | None = None,
) -> Server:
    """A server by its address; without ``model`` it is asked which one it serves.

    Raises:
        ConfigError: the address or a number is wrong, or the variable named for the key is not set.
        ModelError: no model is named and the server does not serve exactly one.
        EndpointError: the server is asked for its models and does not answer.
    """
    for package in ("httpx", "tenacity"):
        require(package, extra="endpoint", why="a model on a server")
    if timeout_s is not None and not 0 < timeout_s < float("inf"):
        raise ConfigError(f"request_timeout = {timeout_s}: it must be a finite number of seconds above 0.")
    if retries is not None and retries < 0:
        raise ConfigError(f"retries = {retries}: it must be at least 0.")
    given = {"timeout_s": timeout_s, "retries": retries}
    settings: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    found = Server(_address(base_url), model or "", _key(key_env), key_env or KEY_ENV, **settings)
    if model:
        return found
    served = _served(found)
    if len(served) != 1:
        raise ModelError(f"{found.base_url} serves {_listed(served)}: choose one with --base-url URL --model NAME.")
    return Server(found.base_url, served[0], found.key, found.key_env, **settings)


def _address(url: str) -> str:
    """The address without a slash at its end.

    Raises:
        ConfigError: it is none, or holds more than an address. Its secrets, if any, are not repeated.
    """
    import httpx

    try:
        parts = httpx.URL(url)
        whole = parts.scheme in ("http", "https") and bool(parts.host) and " " not in url
    except httpx.InvalidURL:
        whole = False
    if not whole:
        raise ConfigError("base_url is no address of a server: write it like http://localhost:8000/v1.")
    if parts.userinfo or parts.query or parts.fragment:
        raise ConfigError(
            "base_url holds a user, a password, a query or a fragment, which would be recorded with the results: write "
            f"it like http://localhost:8000/v1, and put a key into the environment variable {KEY_ENV}."
        )
    return url.rstrip("/")


def _key(name: str | None) -> str | None:
    value = os.environ.get(name or KEY_ENV, "").strip()
    if name and not value:
        raise ConfigError(f"key_env = {name!r}: there is no such environment variable, or it is empty.")
    if not (value.isascii() and value.isprintable()):
        raise ConfigError(
            f"the key in the environment variable {name or KEY_ENV} has characters that no header can hold."
        )
    return value or None


class _Message(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None
    stop_reason: str | int | None = None


class _Usage(BaseModel):
    completion_tokens: int | None = None


class _Answer(BaseModel):
    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage | None = None


class _Served(BaseModel):
    class Model(BaseModel):
        id: str

    data: list[Model]


Wanted = TypeVar("Wanted", bound=BaseModel)


class _PassingError(Exception):
    """A failure that may be over at the next attempt; ``busy``: the server is there and says so itself."""

    def __init__(self, message: str, *, busy: bool = False, wait_s: float = 0.0) -> None:
        super().__init__(message)
        self.busy, self.wait_s = busy, wait_s


class _RefusedError(Exception):
    """A failure that will stay one."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class EndpointEngine:
    """A `ChatEngine` on a server; use within ``async with``."""

    def __init__(self, server: Server) -> None:
        self.server = server
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
        """See `ChatEngine`. Newer servers of OpenAI call the token limit otherwise; that is found out here.

        Raises:
            ModelError: the server refuses the model, the key or a setting.
            EndpointError: nobody answers, or no chat server.
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
        """See `ChatEngine`.

        Raises:
            ModelError: the server refuses the request.
            EndpointError: it failed in passing, again and again.
        """
        try:
            return await self._patiently(messages, sampling, seed)
        except _RefusedError as error:
            raise ModelError(f"{self.server.base_url} refuses the request: {error}") from None
        except _PassingError as error:
            tried = self.server.retries + 1
            times = "once" if tried == 1 else f"{tried} times, with waits"
            raise EndpointError(f"{self.server.base_url} was asked {times}; at last: {error}.") from None

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
            return asked + growing(state)  # spread, so that those who were refused together do not return together

        def tell(state: RetryCallState) -> None:
            error = state.outcome.exception() if state.outcome else None
            log.info("a request failed (%s); again in %.1f s", error, state.upcoming_sleep)

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
        try:
            async with asyncio.timeout(self.server.timeout_s):  # httpx's own limits are for each byte anew
                response = await self._client.post(f"{self.server.base_url}/chat/completions", json=body)
        except (TimeoutError, httpx.TimeoutException):
            raise _PassingError(f"no answer within {self.server.timeout_s:g} s") from None
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise _PassingError(f"cannot be reached ({error or type(error).__name__})") from None
        return _reply(_json(response, self.server, _Answer), sampling)

    def _body(self, messages: Sequence[Message], sampling: Sampling, seed: int) -> dict[str, Any]:
        body: dict[str, Any] = {"model": self.server.model, "messages": [asdict(message) for message in messages]}
        body |= {self._limit: sampling.max_tokens, "temperature": sampling.temperature}
        if sampling.temperature > 0:
            # The whole softmax, whatever the model's own generation settings are; the seed is a wish.
            body |= {"top_p": 1.0, "seed": seed}
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        return body

    async def _explained(self, error: _RefusedError) -> str:
        """Why the server refused the first question, with what may help."""
        server, text = self.server, f"{self.server.base_url} refuses the first request: {error}"
        if error.status in (401, 403):
            how = "The key in" if server.key else "No key was sent: there is none in"
            return f"{text} {how} the environment variable {server.key_env}{' is not taken.' if server.key else '.'}"
        try:
            served = await asyncio.to_thread(_served, server)
        except EndpointError:
            hint = "" if server.base_url.endswith("/v1") else " Base URLs mostly end in /v1."
            return f"{text} (The model asked for was {server.model!r}.){hint if error.status in (404, 405) else ''}"
        return text if server.model in served else f"{text} It serves {_listed(served)}, not {server.model!r}."


def _headers(server: Server) -> dict[str, str]:
    return {} if server.key is None else {"Authorization": f"Bearer {server.key}"}


def _served(server: Server) -> list[str]:
    """The names of the models a server offers."""
    import httpx

    try:
        response = httpx.get(f"{server.base_url}/models", headers=_headers(server), timeout=CONNECT_S)
        return [model.id for model in _json(response, server, _Served).data]
    except (httpx.HTTPError, _PassingError, _RefusedError) as error:
        raise EndpointError(f"{server.base_url} does not say which models it serves: {error}.") from None


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return (", ".join(names[:10]) or "no model") + more


def _json(response: Any, server: Server, wanted: type[Wanted]) -> Wanted:
    """The body of an answer.

    Raises:
        _PassingError, _RefusedError: it is not what was asked for.
    """
    status, shown = response.status_code, _shown(response.text, server.key)
    if status in BUSY or status >= 500:
        wait_s = _retry_after(response.headers.get("retry-after"))
        raise _PassingError(f"status {status}: {shown}", busy=True, wait_s=wait_s)
    if not response.is_success:
        raise _RefusedError(status, f"status {status}: {shown}")
    try:
        return wanted.model_validate_json(response.content)
    except ValidationError:
        raise _PassingError(f"the answer is not that of an OpenAI-compatible server: {shown}") from None


def _shown(text: str, key: str | None) -> str:
    """A server's message in one line, not too long, and without the key."""
    line = " ".join(_message_in(text).split())
    if key:
        line = line.replace(key, "***")
    return f"{line[:SHOWN]}..." if len(line) > SHOWN else line or "(nothing)"


def _message_in(text: str) -> str:
    """The words for people in the body of an error: ``{"error": {"message": ..}}``, or ``{"detail": ..}``, or all."""
    try:
        found = json.loads(text)
    except ValueError:
        return text
    for name in ("error", "message", "detail"):
        found = found.get(name, found) if isinstance(found, dict) else found
    return found if isinstance(found, str) else text


def _retry_after(value: str | None) -> float:
    """Seconds to wait, from a number of them or a date; 0 where it is neither.

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


def _reply(answer: _Answer, sampling: Sampling) -> Reply:
    choice = answer.choices[0]
    stop = StopReason.END
    if choice.finish_reason == "length":
        stop = StopReason.LENGTH
    elif choice.stop_reason in sampling.stop:  # vLLM says which text ended the turn; others do not
        stop = StopReason.STOP
    counted = answer.usage.completion_tokens if answer.usage else None
    return Reply((choice.message.content or "").strip(), stop, counted)
