"""Notes that stand for shards come from a file, so they are checked."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from selfcorrect.distributed.state_tree import MARK, joined_again, note, parted


def empty(shape: Any, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype)


def test_a_note_becomes_a_tensor_to_fill_and_all_else_stays() -> None:
    weight = torch.ones(2, 3, dtype=torch.bfloat16)
    value = {"step": 3, "moments": [note("a.b", weight), (1.5, None)], 7: weight}
    whole, missing = joined_again(value, empty)
    assert list(missing) == ["a.b"] and whole["moments"][0] is missing["a.b"]
    assert missing["a.b"].shape == (2, 3) and missing["a.b"].dtype == torch.bfloat16
    assert whole["step"] == 3 and whole["moments"][1] == (1.5, None) and whole[7] is weight
    assert parted(value, "state") == (value, {}), "without shards, nothing is taken out"


@pytest.mark.parametrize("damage", [{"dtype": "load"}, {"dtype": "no"}, {"shape": [-1]}, {"shape": ["2"]}])
def test_a_damaged_note_is_refused(damage: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="cannot be right"):
        joined_again([{MARK: "a", "shape": [2], "dtype": "float32", **damage}], empty)
