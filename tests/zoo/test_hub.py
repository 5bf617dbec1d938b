"""Test the messages about models that are nowhere."""

from __future__ import annotations

from typing import Any

import huggingface_hub
import pytest

from selfcorrect.errors import ModelError
from selfcorrect.zoo.hub import hub_model


@pytest.mark.parametrize(
    ("name", "bundled"),
    [("smollm2", "smollm2-135m"), ("adition-base", "addition-base"), ("nothing-like-it-at-all", None)],
)
def test_a_name_like_a_bundled_models_is_told(name: str, bundled: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: Any, **__: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", gone)
    with pytest.raises(ModelError, match="the hub cannot be reached") as error:
        hub_model(name)
    assert (f"(did you mean the bundled {bundled!r}?)" in str(error.value)) == (bundled is not None)
    assert ("did you mean" in str(error.value)) == (bundled is not None)
