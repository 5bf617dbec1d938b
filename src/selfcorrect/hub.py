"""The model hub's network: where it does not answer, its clients turn to their cache at once instead of after many retries."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

ANSWER_S = 3.0
"""The seconds that the hub has to answer a first, empty request."""
NO_ANSWER = "the hub does not answer, and the local cache does not have it"


def answers() -> bool:
    """Return whether the hub can be asked now."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=ANSWER_S)
    except Exception:  # the boundary to the network: the client raises whatever its HTTP library does
        return False
    return True


@contextmanager
def cache_without_network() -> Iterator[bool]:
    """Yield whether the hub answers; if it does not, its clients are in their offline mode inside the block.

    `datasets` would otherwise ask six times, in half a minute, before it looks into its cache.
    """
    if answers():
        yield True
        return
    from huggingface_hub import constants

    clients: list[Any] = [constants, sys.modules.get("datasets.config")]
    before = [(client, client.HF_HUB_OFFLINE) for client in clients if client is not None]
    try:
        for client, _ in before:
            client.HF_HUB_OFFLINE = True
        yield False
    finally:
        for client, value in before:
            client.HF_HUB_OFFLINE = value
