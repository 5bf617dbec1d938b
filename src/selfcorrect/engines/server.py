"""A model server: its address, its key, and what every request to it carries."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from selfcorrect.errors import ConfigError

KEY_ENV = "OPENAI_API_KEY"
"""The environment variable with the key, unless another is named."""
FROM_ENV = "env:"
"""The beginning of a header's value that names an environment variable."""
OWN_FIELDS = frozenset(
    (
        *("model", "messages", "prompt", "max_tokens", "max_completion_tokens", "temperature", "top_p", "seed", "stop"),
        *("stop_token_ids", "chat_template_kwargs", "return_token_ids", "add_special_tokens", "skip_special_tokens"),
        *("include_stop_str_in_output", "logprobs", "n", "best_of", "echo", "stream", "stream_options"),
    )
)
"""Fields of a request that the package sets itself, or that would change the form of the answer."""
SECRET = 8
"""The shortest value of a header that counts as a secret."""
DROPPABLE = ("temperature", "top_p", "seed")
"""The fields that may be left out of every request; models that only reason reject some of them."""
OWN_HEADERS = frozenset(
    ("accept-encoding", "connection", "content-encoding", "content-length", "content-type", "host", "transfer-encoding")
)
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


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
        chat_template_kwargs: options of the chat template (``enable_thinking``), which are sent with every chat request.
        extra_body: further fields of every request.
        extra_headers: further headers of every request; their values count as secrets.
        drop_fields: fields that are left out of every request.
        backoff_s: the approximate first wait before a retry, in seconds; each further wait doubles.
    """

    base_url: str
    model: str
    key: str | None = field(default=None, repr=False)
    key_env: str = KEY_ENV
    timeout_s: float = 300.0
    retries: int = 6
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    extra_headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    drop_fields: Sequence[str] = ()
    backoff_s: float = 0.5

    @property
    def headers(self) -> dict[str, str]:
        """Return the headers of every request. An ``Authorization`` of the user's own takes the place of the key's."""
        plain = {"Accept-Encoding": "identity"}  # nothing is decompressed before its size is known
        own = any(name.lower() == "authorization" for name in self.extra_headers)
        key = {} if self.key is None or own else {"Authorization": f"Bearer {self.key}"}
        return {**plain, **key, **self.extra_headers}

    @property
    def secrets(self) -> tuple[str, ...]:
        """Return what no message may repeat: the key, and the values of the user's headers unless they are trifles."""
        return (*([self.key] if self.key else []), *(v for v in self.extra_headers.values() if len(v) >= SECRET))


def address_of(url: str) -> str:
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


def key_of(name: str | None) -> str | None:
    """Return the key in an environment variable; None if there is none.

    Raises:
        ConfigError: a variable was named and is not set, or its value fits no header.
    """
    value = os.environ.get(name or KEY_ENV, "").strip()
    if name and not value:
        raise ConfigError(f"key_env = {name!r}: this environment variable is not set, or is empty.")
    if not (value.isascii() and value.isprintable()):
        raise ConfigError(
            f"the key in the environment variable {name or KEY_ENV} has characters that an HTTP header cannot hold."
        )
    return value or None


def headers_of(given: Mapping[str, str]) -> dict[str, str]:
    """Return headers with the values that environment variables hold (``env:NAME``) in place of their names.

    Raises:
        ConfigError: a header is malformed or the client's own, or its variable is not set. The message repeats no value.
    """
    return {name: _header_value(name, value) for name, value in given.items()}


def _header_value(name: str, value: str) -> str:
    if not _HEADER_NAME.fullmatch(name) or name.lower() in OWN_HEADERS:
        raise ConfigError(
            f"extra_headers sets {name!r}: this is not the name of a header, or of one that the client sets itself."
        )
    source = "the value"
    if value.startswith(FROM_ENV):
        variable = value.removeprefix(FROM_ENV)
        source, value = f"the environment variable {variable}", os.environ.get(variable, "").strip()
        if not value:
            raise ConfigError(f"extra_headers.{name}: the environment variable {variable!r} is not set, or is empty.")
    if not (value.isascii() and value.isprintable()):
        raise ConfigError(f"extra_headers.{name}: {source} has characters that an HTTP header cannot hold.")
    return value


def check_fields(extra_body: Mapping[str, Any], drop_fields: Sequence[str]) -> None:
    """Reject fields of a request that the package sets itself, and fields that cannot be left out.

    Raises:
        ConfigError: there is such a field.
    """
    own = sorted(OWN_FIELDS & extra_body.keys())
    if own:
        raise ConfigError(
            f"extra_body sets {', '.join(own)}, which the package sets itself: use the setting of its name."
        )
    other = sorted(set(drop_fields) - set(DROPPABLE))
    if other:
        raise ConfigError(f"drop_fields names {', '.join(other)}: only {', '.join(DROPPABLE)} can be left out.")
