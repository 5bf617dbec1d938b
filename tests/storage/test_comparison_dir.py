"""The cards and the trials of a comparison's directory."""

from __future__ import annotations

import itertools
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

CARD = {"key": "x", "title": "X", "table": "main", "place": 3}
TRIALS = {
    "seed": 7,
    "problems": 9,
    "titles": {"x": "X"},
    "rows": {"x": [{"settings": ["a=1"], "acc_t2": 0.5, "chosen": True}]},
}
RESULTS = Path(__file__).parents[2] / "results"


def test_a_card_is_read_as_written(tmp_path: Path) -> None:
    assert read_card(tmp_path / "row") == {}
    write_card(tmp_path / "row", {"key": "row", "title": "Méthode", "table": "main", "place": 3})
    lines = (tmp_path / "row/method.json").read_text("utf-8").splitlines()
    assert lines[:5] == ["{", ' "key": "row",', ' "title": "Méthode",', ' "table": "main",', ' "place": 3,']
    assert lines[5].startswith(' "seal": "') and lines[6:] == ["}"]
    assert read_card(tmp_path / "row") == {"key": "row", "title": "Méthode", "table": "main", "place": 3}


def test_trials_are_read_as_written_and_copied_to_the_byte(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert read_trials(tmp_path) == {} and copy_trials(tmp_path, tmp_path / "out") == []
    write_trials(tmp_path, {"seed": 7, "rows": {}})
    write_card(tmp_path, CARD)
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
        kept = json.loads((comparison / "trials.json").read_text("utf-8"))
        assert read_trials(tmp_path) == read_trials(comparison) == kept != {}
        for file in comparison.glob("*/method.json"):
            write_card(tmp_path, read_card(file.parent))
            assert read_card(tmp_path) == read_card(file.parent) == json.loads(file.read_text("utf-8")) != {}


@pytest.mark.parametrize(
    ("write", "read", "copy", "name", "content"),
    [
        (write_card, read_card, copy_card, "method.json", CARD),
        (write_trials, read_trials, copy_trials, "trials.json", TRIALS),
    ],
)
def test_every_changed_value_is_noticed(
    tmp_path: Path,
    write: Callable[[Path, Any], None],
    read: Callable[[Path], dict[str, Any]],
    copy: Callable[[Path, Path], list[Path]],
    name: str,
    content: dict[str, Any],
) -> None:
    """Flip each bit of the file: it is damaged, or says what it said before."""
    write(tmp_path, content)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / "out").mkdir()
    noticed = 0
    for place, bit in itertools.product(range(len(whole)), range(8)):
        (tmp_path / name).write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
        try:
            said = read(tmp_path)
        except DataError as error:
            assert str(tmp_path / name) in str(error)
            noticed += 1
        else:  # white space, or the name of the seal
            assert {key: value for key, value in said.items() if key in content} == content, (place, bit)
    assert noticed > 0.8 * 8 * len(whole)
    (tmp_path / name).write_bytes(whole.replace(b'"X"', b'"Y"'))
    with pytest.raises(DataError, match=r"differs from its seal.* remove its line with the seal"):
        copy(tmp_path, tmp_path / "out")
    edited = json.loads(whole.replace(b'"X"', b'"Y"'))
    del edited["seal"]
    (tmp_path / name).write_text(json.dumps(edited))
    assert read(tmp_path) == edited
