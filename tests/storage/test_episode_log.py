"""What an episode log holds, is read back, and is written again to the byte."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.stored_runs import record, write_lines

from selfcorrect.errors import DataError
from selfcorrect.storage.episode_log import (
    StoredEpisode,
    StoredTurn,
    episodes_file,
    length_text,
    read_episodes,
    stored_rules,
)
from selfcorrect.storage.files import json_line, json_page
from selfcorrect.types import Check, Episode, Outcome, Part, Problem, Role, StopReason, Turn, Verdict

RESULTS = Path(__file__).parents[2] / "results"
PROBLEM = Problem("p", "1+2", "3", "level 1")

LINE = (
    '{"schema":1,"stage":"score","step":4,"problem_id":"p","sample":1,"prompt":"1+2","reference":"3","difficulty":"level 1",'
    '"turns":[{"text":"4 é","tokens":[5,1],"verdict":"incorrect","extracted":"4","detail":"no","stop":"end","online":false},'
    '{"text":"3","tokens":[6],"verdict":"correct","extracted":"3","detail":"","by_rule":{"strict":"no_answer","lax":"correct"},'
    '"checks":[{"label":"f(1) == 1","outcome":"passed","detail":""}],"stop":"length","online":true,'
    '"asides":[{"text":"no","tokens":[7,1],"stop":"end"},{"text":"really","tokens":[],"token_count":9,"stop":"stop"}]}]}\n'
)
"""A line with everything that a line may hold."""

OLD_LINE = LINE.replace('"incorrect"', '"wrong"').replace('"correct"', '"right"').replace('"by_rule"', '"readings"')
"""The same as earlier versions wrote it."""


def played() -> Episode:
    """The episode of `LINE`."""
    read = {"strict": Outcome.NO_ANSWER, "lax": Outcome.CORRECT}
    right = Verdict(Outcome.CORRECT, "3", "", read, (Check("f(1) == 1", "passed"),))
    wrong = Verdict(Outcome.INCORRECT, "4", "no")
    return Episode(
        PROBLEM,
        1,
        (
            Turn((1,), (5, 1), (-0.5, 0.0), "4 é", StopReason.END, wrong, online=False),
            Turn((2,), (7, 1), (-0.5, 0.0), "no", StopReason.END, None, role=Role.FEEDBACK),
            Turn((2,), (), (), "really", StopReason.STOP, None, role=Role.FEEDBACK, counted=9),
            Turn((2,), (6,), (-0.1,), "3", StopReason.LENGTH, right),
        ),
    )


@pytest.mark.parametrize("line", [LINE, OLD_LINE])
def test_an_episode_is_stored_and_read(line: str) -> None:
    stored = StoredEpisode.of(played(), stage="score", step=4)
    assert json_line(stored.to_json()) == LINE
    assert StoredEpisode.from_json(json.loads(line)) == stored


SURROGATES = st.integers(0xD800, 0xDFFF).map(chr)
ANYTHING = st.lists(st.one_of(SURROGATES, st.text(), st.sampled_from('\\u"\0\x1b\u2028'))).map("".join)


@given(ANYTHING, ANYTHING)
def test_whatever_a_model_or_a_program_says_can_be_stored(said: str, told: str) -> None:
    verdict = Verdict(Outcome.INCORRECT, said, told, {told: Outcome.CORRECT}, (Check(told, "failed", said),))
    turn = Turn((1,), (5, 1), (-0.5, 0.0), said, StopReason.END, verdict)
    record = StoredEpisode.of(Episode(PROBLEM, 0, (turn,)), stage="score", step=4).to_json()
    for written in (json_line(record), json_page(record)):
        read = StoredEpisode.from_json(json.loads(written.encode()))
        assert read.attempts[0].text == visible(said)
        assert read.attempts[0].judged.checks == (Check(visible(told), "failed", visible(said)),)
        assert json_line(read.to_json()) == json_line(record), "what was stored is stored the same again"


def visible(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def test_turns_stand_in_order_with_their_roles() -> None:
    stored = StoredEpisode.from_json(json.loads(LINE))
    assert [turn.text for turn in stored.turns] == ["4 é", "no", "really", "3"]
    assert [turn.text for turn in stored.attempts] == ["4 é", "3"]
    assert [turn.role for turn in stored.turns] == [Role.ATTEMPT, Role.FEEDBACK, Role.FEEDBACK, Role.ATTEMPT]
    assert [turn.length for turn in stored.turns] == [2, 2, 9, 1]
    assert length_text(StoredTurn("", (), StopReason.END, None, Role.FEEDBACK)) == "length unknown"


def test_what_the_metrics_need_of_an_attempt() -> None:
    stored = StoredEpisode.from_json(json.loads(LINE))
    one, two = stored.graded()
    assert (one.correct, one.extracted, one.truncated) == (False, "4", False)
    assert (two.correct, two.text, two.truncated) == (True, "3", True)
    assert stored_rules([stored]) == ("strict", "lax")
    first, second = stored.graded("strict")
    assert (first.outcome, second.outcome) == (Outcome.INCORRECT, Outcome.NO_ANSWER), "no reading: the one outcome"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "schema 2; this version reads schema 1"),
        ({"problem_id": ...}, "malformed: it has no 'problem_id'"),
        ({"turns": None}, "malformed"),
        ({"turns": ["7"]}, "malformed"),
        ({"turns": [{"text": "7"}]}, "'p0' is malformed: it has no "),
        ({"turns": [{**record(0, ["7"])["turns"][0], "verdict": "perhaps"}]}, "'perhaps' is not a valid Outcome"),
        ({"turns": [{**record(0, ["7"])["turns"][0], "stop": "late"}]}, "'late' is not a valid StopReason"),
        ({"turns": [{**record(0, ["7"])["turns"][0], "checks": [{"label": "x"}]}]}, "malformed: it has no 'outcome'"),
        ({"turns": [{**record(0, ["7"])["turns"][0], "asides": [{"text": "x"}]}]}, "malformed: it has no 'tokens'"),
    ],
)
def test_a_malformed_line_is_named_with_its_file(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    made = {**record(0, ["7"]), **change}
    write_lines(tmp_path / "log.jsonl", [record(1, ["7"]), {k: v for k, v in made.items() if v is not ...}])
    lines = read_episodes(tmp_path / "log.jsonl")
    assert next(lines).problem_id == "p1"
    with pytest.raises(DataError, match=rf"log\.jsonl, line 2: .*{message}"):
        next(lines)


def test_a_line_that_is_no_object_is_named(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text("[1]\n")
    with pytest.raises(DataError, match=r"log\.jsonl, line 1, is damaged: it holds a list, not a JSON object"):
        list(read_episodes(tmp_path / "log.jsonl"))


def test_feedback_that_no_attempt_follows_is_not_lost_in_silence() -> None:
    stored = StoredEpisode.of(Episode(PROBLEM, 0, played().turns[:2]), stage="score", step=4)
    with pytest.raises(DataError, match="ends in feedback"):
        stored.to_json()


# ---------------------------------------------------------------- what is kept in the repository

needs_results = pytest.mark.skipif(not RESULTS.is_dir(), reason="a source distribution has no results/")
KEPT = sorted(
    file
    for file in RESULTS.rglob("*.jsonl*")
    if not file.name.startswith(("metrics.", "timings.", "trials.", "bases."))
)


def lines_of(file: Path, count: int) -> Iterator[str]:
    with gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else file.open(encoding="utf-8") as lines:
        yield from islice(lines, count)


OTHER_ORDERS = (
    ["text", "tokens", "verdict", "extracted", "stop", "detail", "online"],
    ["text", "tokens", "verdict", "extracted", "detail", "stop", "online", "checks"],
)
"""Keys of a turn as the first version wrote them, and as verifying again once did; neither is written any more."""


@needs_results
def test_every_kept_episode_log_is_read_and_written_again() -> None:
    """A few lines of each, to the byte but for the order of the keys in logs of `OTHER_ORDERS`."""
    assert len(KEPT) > 200
    same = 0
    for file in KEPT:
        for line in lines_of(file, 3):
            stored = json.loads(line)
            again = json_line(StoredEpisode.from_json(stored).to_json())
            as_before = again
            if not any(name in line for name in ('"incorrect"', '"correct"', '"by_rule"')):  # from before these names
                as_before = again.replace('"incorrect"', '"wrong"').replace('"correct"', '"right"')
                as_before = as_before.replace('"by_rule"', '"readings"').replace('"flexible"', '"lenient"')
            assert json.loads(as_before) == stored, file
            if not any(list(turn) in OTHER_ORDERS for turn in stored["turns"]):
                assert as_before == line, file
                same += 1
    assert same > 500


@needs_results
def test_episodes_of_a_packed_directory_are_found(tmp_path: Path) -> None:
    for folder in (RESULTS / "paper/score/seed-0", *sorted((RESULTS / "paper/further").glob("*/*"))[:1]):
        episode = next(read_episodes(episodes_file(folder)))
        assert len(episode.attempts) >= 2, folder
    with pytest.raises(DataError, match="no episodes of part 'swap'; so far it has eval-score-attempts"):
        episodes_file(RESULTS / "paper/score/seed-0", part=Part.SWAP)
