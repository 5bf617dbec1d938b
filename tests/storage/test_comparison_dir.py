"""The cards and the trials of a comparison's directory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from selfcorrect.errors import DataError
from selfcorrect.storage.comparison_dir import (
    copy_card,
    copy_trials,
    read_card,
    read_trials,
    write_card,
    write_trials,
)

RESULTS = Path(__file__).parents[2] / "results"


def test_a_card_is_read_as_written(tmp_path: Path) -> None:
    assert read_card(tmp_path / "row") == {}
    write_card(tmp_path / "row", {"key": "row", "title": "Méthode", "table": "main", "place": 3})
    assert (tmp_path / "row/method.json").read_text(
        "utf-8"
    ) == '{\n "key": "row",\n "title": "Méthode",\n "table": "main",\n "place": 3\n}\n'
    assert read_card(tmp_path / "row") == {"key": "row", "title": "Méthode", "table": "main", "place": 3}


def test_trials_are_read_as_written_and_copied_to_the_byte(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert read_trials(tmp_path) == {} and copy_trials(tmp_path, tmp_path / "out") == []
    write_trials(tmp_path, {"seed": 7, "rows": {}})
    write_card(tmp_path, {"key": "x"})
    assert copy_trials(tmp_path, tmp_path / "out") == [tmp_path / "out/trials.json"]
    assert copy_card(tmp_path, tmp_path / "out") == [tmp_path / "out/method.json"]
    for name in ("trials.json", "method.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / name).read_bytes()


@pytest.mark.parametrize(("read", "name"), [(read_card, "method.json"), (read_trials, "trials.json")])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is damaged: not JSON"),
        ("[]", "holds a list"),
        ('{"key": [], "titles": []}', "is damaged: (key|titles): it is"),
    ],
)
def test_a_damaged_file_is_named(
    tmp_path: Path, read: Callable[[Path], dict[str, Any]], name: str, text: str, message: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=f"{name} {message}"):
        read(tmp_path)


@pytest.mark.skipif(not RESULTS.is_dir(), reason="a source distribution has no results/")
def test_what_is_kept_is_in_the_form_that_is_written(tmp_path: Path) -> None:
    for comparison in (RESULTS / "paper", RESULTS / "paper-worked_sums"):
        write_trials(tmp_path, read_trials(comparison))
        assert json.loads((tmp_path / "trials.json").read_text("utf-8")) == read_trials(comparison) != {}
        for file in comparison.glob("*/method.json"):
            write_card(tmp_path, read_card(file.parent))
            assert (tmp_path / "method.json").read_bytes() == file.read_bytes()
