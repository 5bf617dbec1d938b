"""Test that the tutorials work: their files are written, their commands are run, and these print what the pages show.

Numbers may differ from the page's, and the training is shortened; everything else that a page shows must be printed.
"""

from __future__ import annotations

import html
import json
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from support.chat_server import Answer, says, serving
from support.models import tiny_model

from selfcorrect.__main__ import main
from selfcorrect.config.toml import load_config
from selfcorrect.tasks import get_task
from selfcorrect.tasks.math.task import final_answer
from selfcorrect.types import Split

PAGES = Path(__file__).parents[2] / "docs/tutorials"
SERVER = "http://localhost:8000/v1"
SHORT = ["stages.stage1.steps=2", "stages.score.steps=2", "eval.problems=20", "eval.dev_every=0"]
BLOCK = re.compile(r"(?:`(?P<file>[\w./-]+)`:\n\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)
NOT_OURS = ("pip ", "make ", ". ")


def shape(text: str) -> list[str]:
    """Return the lines without their numbers, signs and widths."""
    lines = (re.sub(r"[-+±−]*\d[\d.,]*", "#", line) for line in text.splitlines())
    return [found for line in lines if (found := " ".join(line.split()))]


def missing(shown: str, printed: str) -> list[str]:
    """Return the shown lines that were not printed in this order; a line of three dots stands for any others."""
    left, lost = iter(shape(printed)), []
    for line in shape(shown):
        if line != "..." and line not in left:
            lost.append(line)
    return lost


def test_what_a_page_shows_must_be_printed_in_order() -> None:
    assert missing("a  1.5\n...\nb -2", "x\na 17\nb +3.0\n") == []
    assert missing("b 1\na 1", "a 1\nb 1") == ["a #"]
    assert missing("a 1\nc", "a 1\nb 1") == ["c"]


@dataclass
class Reader:
    """Someone who follows a tutorial to the letter in the current directory, with a server of their own at ``server``."""

    capsys: pytest.CaptureFixture[str]
    server: str = SERVER
    printed: str = ""
    commands: list[list[str]] = field(default_factory=list)

    def follow(self, page: str) -> None:
        whole = (PAGES / page).read_text("utf-8")
        blocks = [*BLOCK.finditer(whole)]
        assert 2 * len(blocks) == len(re.findall(r"^ *```", whole, re.MULTILINE)), (
            f"{page} has a block that nobody runs"
        )
        for block in blocks:
            language, text = block["language"], block["text"]
            if block["file"]:
                Path(block["file"]).write_text(text, "utf-8")
            elif language == "sh":
                self.printed = "".join(self.run(line) for line in text.replace("\\\n", " ").splitlines())
            elif language == "text":
                assert missing(text, self.printed) == [], (
                    f"{page} shows lines that were not printed in:\n{self.printed}"
                )
            else:
                assert language == "python", f"{page} has a block of {language} that nobody runs"
                exec(compile(text, page, "exec"), {})
                self.printed = self.capsys.readouterr().out

    def run(self, line: str) -> str:
        words = shlex.split(line.replace(SERVER, self.server), comments=True)
        file = None
        if words[-2:-1] == [">"]:
            *words, _, name = words
            file = Path(name)
        if not words or line.startswith(NOT_OURS):
            return ""
        assert words[0] == "selfcorrect", f"this command is not run: {line}"
        arguments = words[1:]
        if arguments[0] == "train" and not any("steps=" in word for word in arguments):
            arguments += [word for setting in SHORT for word in ("--set", setting)]
        self.commands.append(arguments)
        status = main(arguments)
        printed = self.capsys.readouterr()
        assert status == 0, f"{line}\n{printed.err}"
        if file is not None:
            file.write_text(printed.out, "utf-8")
        return printed.out


@dataclass(frozen=True)
class Pupil:
    """A model that solves two thirds of the problems at once. After a wrong draft of its own it solves half of the others."""

    problems: Sequence[tuple[str, str]]
    wrong: str
    form: Callable[[str], str] = str

    def __call__(self, body: dict[str, Any]) -> Answer:
        question, *later = (message["content"] for message in body["messages"])
        place, reference = next((i, known) for i, (text, known) in enumerate(self.problems) if text in question)
        right, wrong = self.form(reference), self.form(self.wrong)
        solved = place % 3 > 0 or (later[:1] == [wrong] and place % 2 == 0)
        spoilt = later[:1] == [right] and place % 20 == 1
        return says(right if solved and not spoilt else wrong)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("COLUMNS", "160")
    yield tmp_path


@pytest.mark.slow
def test_a_served_model_is_evaluated(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    problems = get_task("gsm_symbolic").problems(Split.TEST, seed=0, limit=60)
    pupil = Pupil([(problem.prompt, problem.reference) for problem in problems], "17", final_answer)
    with serving(pupil, models=["my-model"]) as server:
        Reader(capsys, server.url).follow("served-model.md")


@pytest.mark.slow
def test_own_data_are_checked_and_evaluated(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = re.findall(r"^([A-Z].*?),(\w+),\w+$", (PAGES / "own-data.md").read_text("utf-8"), re.MULTILINE)
    pytest.importorskip("peft")
    # What the page asks its reader for: more questions; and in place of the hub's model a tiny one of the same name.
    more = [f"What is the capital of country {n}?,City {n},Nowhere" for n in range(300)]
    (here / "questions.csv").write_text("\n".join(["question,capital,continent", *more, ""]))
    for name in ("Qwen/Qwen2.5-0.5B-Instruct", "HuggingFaceTB/SmolLM2-135M-Instruct"):
        tiny_model(0, dtype=torch.float32, max_position_embeddings=2048).save(here / name)
    with serving(Pupil(rows, "Paris"), models=["my-model"]) as server:
        Reader(capsys, server.url).follow("own-data.md")
    steps = [json.loads(line) for line in (here / "runs/capitals/metrics.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["step"]) for line in steps] == [
        ("stage1", 1), ("stage1", 2), ("score", 1), ("score", 2),
    ]  # fmt: skip
    laptop = load_config(here / "runs/laptop/config.toml")
    assert (laptop.model.dtype, laptop.rollout.batch_size, laptop.task.train_problems) == ("float32", 16, 20_000)
    stored = load_config(here / "runs/capitals/config.toml")
    assert stored.model.lora is not None and stored.task.options["path"] == "questions.csv"


@pytest.mark.nightly
def test_a_model_is_trained_with_lora_and_its_report_has_what_the_tutorial_names(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reader = Reader(capsys)
    reader.follow("lora.md")
    assert (here / "merged/model.safetensors").exists()
    reader.follow("report.md")
    page = html.unescape((here / "report.html").read_text("utf-8"))
    named = re.findall(r"\*\*(.+?)\*\*", (PAGES / "report.md").read_text("utf-8"))
    assert len(named) > 8
    assert [name for name in named if name not in page] == []
