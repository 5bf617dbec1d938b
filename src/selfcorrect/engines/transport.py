"""Requests to an OpenAI-compatible server: one POST within its time limit, retried while the failure may pass.

A request with a transient failure (no connection, a timeout, 408, 425, 429, 5xx, a malformed answer) is retried with
growing waits, never sooner than the server's ``Retry-After``. Any other rejection is final, because the server would
repeat it. The key and the user's own headers appear in no error message, even if the server echoes them.

The server is not trusted: see `selfcorrect.engines.untrusted` for what is done to a body and to a message before use.
"""

from __future__ import annotations

import asyncio
import codecs
import email.utils
import math
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import count as count_from
from types import TracebackType
from typing import Any, Self, TypeVar

from pydantic import BaseModel, ValidationError

from selfcorrect.engines.outage import Outage
from selfcorrect.engines.server import Server
from selfcorrect.engines.untrusted import (
    BODY_LIMIT,
    BodyError,
    clean,
    decompressed,
    read_body,
    shown,
    visible_surrogates,
)
from selfcorrect.errors import EndpointError

CONNECT_S = 10.0
"""The time limit for a connection, in seconds."""
LONGEST_WAIT_S = 600.0
"""The longest wait, in seconds, that a server may request before the request is given up."""
BUSY = {408, 425, 429}
MOST_TOKENS = 2**31
"""The largest token count that is believed."""

Wanted = TypeVar("Wanted", bound=BaseModel)
Found = TypeVar("Found")


class PassingError(Exception):
    """A transient failure, worth a retry; ``busy`` means that the server itself reported it."""

    def __init__(self, message: str, *, busy: bool = False, wait_s: float = 0.0) -> None:
        super().__init__(message)  # already `clean`
        self.busy, self.wait_s = busy, wait_s


class RefusedError(Exception):
    """A permanent failure; ``status`` 200 means that the answer came and cannot be used."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Transport:
    """A client of one server; use it within ``async with``."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._client: Any = None
        self._outage, self._numbers = Outage(), count_from(1)

    async def __aenter__(self) -> Self:
        import httpx

        # Requests wait for the rollouter's limit, not for a free connection.
        self._client = httpx.AsyncClient(
            headers=self.server.headers,
            timeout=httpx.Timeout(self.server.timeout_s, connect=min(CONNECT_S, self.server.timeout_s), pool=None),
            limits=httpx.Limits(max_connections=None),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def post(
        self,
        path: str,
        body: Mapping[str, Any],
        wanted: type[Wanted],
        read: Callable[[Wanted], Found],
        *,
        only_busy: bool = False,
    ) -> Found:
        """Return what ``read`` makes of the parsed answer to a request.

        Args:
            read: may raise a PassingError, upon which the request is retried, or a RefusedError.
            only_busy: retry only what the server itself calls transient.

        Raises:
            PassingError: the request and all its retries failed.
            RefusedError: the server rejects the request.
        """
        from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt
        from tenacity.wait import wait_random_exponential

        def again(error: BaseException) -> bool:
            return isinstance(error, PassingError) and (error.busy or not only_busy) and error.wait_s <= LONGEST_WAIT_S

        growing = wait_random_exponential(multiplier=self.server.backoff_s, max=60)

        def pause(state: RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            asked = error.wait_s if isinstance(error, PassingError) else 0.0
            return asked + growing(state)  # random, so that requests rejected together do not return together

        request = next(self._numbers)

        def tell(state: RetryCallState) -> None:
            error = state.outcome.exception() if state.outcome else None
            assert isinstance(error, PassingError)  # nothing else is retried
            self._outage.failed(request, error, busy=error.busy, next_s=state.upcoming_sleep)

        retrying = AsyncRetrying(
            retry=retry_if_exception(again),
            wait=pause,
            stop=stop_after_attempt(self.server.retries + 1),
            before_sleep=tell,
            reraise=True,
        )
        answered = False
        try:
            found: Found = await retrying(self._once, path, body, wanted, read)
            answered = True
        finally:
            self._outage.ended(request, answered=answered)
        return found

    async def _once(
        self, path: str, body: Mapping[str, Any], wanted: type[Wanted], read: Callable[[Wanted], Found]
    ) -> Found:
        import httpx

        url, timeout_s = f"{self.server.base_url}/{path}", self.server.timeout_s
        try:
            async with (
                asyncio.timeout(timeout_s),  # httpx's own limits restart with each byte
                self._client.stream("POST", url, json=body) as response,
            ):
                content = await read_body(response.aiter_raw(), response.headers.get("content-encoding", ""))
        except (TimeoutError, httpx.TimeoutException):
            raise PassingError(f"no answer within {timeout_s:g} s") from None
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise PassingError(f"cannot be reached ({reason(error, self.server)})") from None
        except BodyError as error:
            raise PassingError(str(error)) from None
        return read(parsed(response, content, self.server, wanted))


class _Served(BaseModel):
    class Model(BaseModel):
        id: str
        max_model_len: Any = None

    data: list[Model]


def served_models(server: Server) -> dict[str, int | None]:
    """Return the names of the models that a server offers, with the context limit in tokens where it says so.

    Raises:
        EndpointError: the server does not answer with a list.
    """
    import httpx

    deadline = time.monotonic() + CONNECT_S
    try:
        content = bytearray()
        with httpx.stream("GET", f"{server.base_url}/models", headers=server.headers, timeout=CONNECT_S) as response:
            for chunk in response.iter_raw():
                content += chunk
                if len(content) > BODY_LIMIT or time.monotonic() > deadline:
                    raise BodyError("the list is too long, or comes too slowly")
        body = decompressed(bytes(content), response.headers.get("content-encoding", ""))
        return {clean(model.id): count(model.max_model_len) for model in parsed(response, body, server, _Served).data}
    except httpx.HTTPError as error:
        raise EndpointError(f"{server.base_url} did not list its models: {reason(error, server)}.") from None
    except (BodyError, PassingError, RefusedError) as error:
        raise EndpointError(f"{server.base_url} did not list its models: {error}.") from None


def listed(names: Sequence[str]) -> str:
    """Return names for a message, at most ten of them."""
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return (", ".join(names[:10]) or "no model") + more


def count(value: Any) -> int | None:
    """Return a number of tokens that a server reported; None where that is no believable number."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if type(value) is int and 0 <= value <= MOST_TOKENS else None


def parsed(response: Any, content: bytes, server: Server, wanted: type[Wanted]) -> Wanted:
    """Return the parsed body of an answer.

    Raises:
        PassingError, RefusedError: the answer is a failure or malformed.
    """
    status = response.status_code
    if status in BUSY or status >= 500:
        wait_s = retry_after(response.headers.get("retry-after"))
        raise PassingError(f"status {status}: {shown(content, *server.secrets)}", busy=True, wait_s=wait_s)
    if not response.is_success:
        raise RefusedError(status, f"status {status}: {shown(content, *server.secrets)}")
    try:
        return wanted.model_validate_json(visible_surrogates(content.removeprefix(codecs.BOM_UTF8)))
    except ValidationError:
        raise PassingError(
            f"the answer does not come from an OpenAI-compatible server: {shown(content, *server.secrets)}"
        ) from None


def reason(error: Exception, server: Server) -> str:
    """Return why a connection failed; some of these errors say nothing, and some repeat what the server sent.

    >>> reason(ConnectionResetError(), Server("http://localhost:8000/v1", "m"))
    'ConnectionResetError'
    """
    return shown(str(error).strip() or str(error.__cause__ or "").strip() or type(error).__name__, *server.secrets)


def retry_after(value: str | None) -> float:
    """Return the seconds to wait, given as a number or a date; 0 where the value is neither.

    >>> retry_after("3"), retry_after(None), retry_after("soon"), retry_after("Wed, 21 Oct 2015 07:28:00 GMT")
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
