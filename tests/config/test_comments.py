"""Test that `selfcorrect config` keeps the comments of a file, and that they change no setting."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from selfcorrect.__main__ import main
from selfcorrect.config.comments import Comments, read_comments, with_comments
from selfcorrect.config.toml import builtin_configs, load_config, read_text, to_toml

FILE = """\
# the head
# of the file

seed = 3  # a prime
[task]  # of the task
name = "a # b"
# above
options = { digits = 6 }  # behind "quotes"
url = 'c # d'
# lost at the end
"""


def test_comments_belong_to_what_they_stand_by() -> None:
    assert read_comments(FILE) == Comments(
        ["# the head", "# of the file"],
        {"seed": ["# a prime"], "task": ["# of the task"], "task.options": ["# above", '# behind "quotes"']},
    )


def test_a_comment_right_above_the_first_setting_is_not_the_files() -> None:
    assert read_comments("# of the seed\nseed = 1\n") == Comments([], {"seed": ["# of the seed"]})


def test_a_table_of_several_parts_has_its_comment_once_and_a_changed_setting_none() -> None:
    resolved = "seed = 4\n[stages.a]\nsteps = 1\n[stages.b]\nsteps = 2"
    comments = read_comments("seed = 3 # a prime\n[stages] # two\n")
    assert with_comments(resolved, comments, {"seed"}) == resolved.replace("[stages.a]", "# two\n[stages.a]")


@pytest.mark.parametrize("name", builtin_configs())
def test_built_in_comments_are_all_printed_and_change_nothing(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", name]) == 0
    out = capsys.readouterr().out
    assert tomllib.loads(out) == tomllib.loads(to_toml(load_config(name)))
    text = read_text(name)[0]
    assert out.count("#") == text.count("#") > 0


def test_a_file_of_ones_own_keeps_its_comments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text("[optimizer]\nlearning_rate = 1e-4  # tried 1e-5\n")
    assert main(["config", str(mine)]) == 0
    assert "# tried 1e-5\nlearning_rate = 0.0001\n" in capsys.readouterr().out
    assert main(["config", str(mine), "--set", "optimizer.learning_rate=1e-3"]) == 0
    assert "tried" not in capsys.readouterr().out
