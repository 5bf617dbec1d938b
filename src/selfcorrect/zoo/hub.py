"""Check a hub id with one short request, so that a wrong name or a missing network gives a message without a wait."""

from __future__ import annotations

import difflib
from pathlib import Path

from selfcorrect.errors import ModelError
from selfcorrect.zoo.registry import MADE

TIMEOUT_S = 10.0


def cached_settings(source: str) -> str | None:
    """Return the directory in the local cache with a model's ``config.json``; None if the cache does not have it."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(source, "config.json")
    except HFValidationError:
        return None
    return str(Path(found).parent) if isinstance(found, str) else None


def hub_model(source: str) -> str:
    """Return the id if the hub has it; without a network, the model's directory in the local cache.

    Raises:
        ModelError: it is not a hub id, the hub does not have it, or there is neither a network nor a cached copy.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    nothing = f"model {source!r}: there is no such directory or run here{_near(source)}"
    try:
        HfApi().model_info(source, timeout=TIMEOUT_S)
    except HFValidationError as error:
        raise ModelError(f"{nothing}, and it is not a valid hub id.") from error
    except GatedRepoError as error:
        raise ModelError(
            f"model {source!r} is gated on the hub: accept its terms there and log in (`hf auth login`)."
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelError(f"{nothing}, and the hub does not have it (or it is private: `hf auth login`).") from error
    except Exception as error:  # the boundary to the network: the client raises whatever its HTTP library does
        try:
            return str(snapshot_download(source, local_files_only=True))
        except LocalEntryNotFoundError:
            raise ModelError(
                f"{nothing}, the hub cannot be reached ({error}), and the local cache does not have it. Give the directory of a "
                "copy; for `selfcorrect plan`, a directory with only the model's config.json is enough."
            ) from error
    return source


def _near(source: str) -> str:
    """Return the bundled model whose name is like this one, in words."""
    found = [name for name in MADE if name.startswith(source)] or difflib.get_close_matches(source, MADE, n=1)
    return f" (did you mean the bundled {found[0]!r}?)" if found else ""
