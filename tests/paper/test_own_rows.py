"""Test rows that are defined outside the package: how they are read, their budget, sweep, cards and table."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from selfcorrect.__main__ import main
from selfcorrect.config.schema import Config
from selfcorrect.config.toml import load_config, make_config, to_toml, with_overrides
from selfcorrect.errors import ConfigError
from selfcorrect.paper.budget import Spent, spent
from selfcorrect.paper.cards import check_cards, write_cards
from selfcorrect.paper.comparable import row_config
from selfcorrect.paper.own_rows import own_rows, read_row
from selfcorrect.paper.plan import digest, plan
from selfcorrect.paper.recipe import Recipe
from selfcorrect.paper.rows import ROWS, Budget, MethodRow, Table, chosen_rows
from selfcorrect.paper.sweep import Grid, already_tried, trials
from selfcorrect.storage.comparison_dir import read_card, write_card, write_trials

SCORE: dict[str, Any] = {
    "task": {"name": "addition"},
    "rollout": {"batch_size": 16, "group_size": 4, "max_tokens": 4},
    "stages": {
        "stage1": {"steps": 1, "reward_weights": [0, 1], "kl_coefs": [{"base": 0.11}, {"base": 0.01}]},
        "score": {"steps": 3, "reward_weights": [1, 1], "bonus": 4, "kl_coefs": [{"base": 0.1}, {"base": 0.02}]},
    },
    "eval": {"problems": 6},
}
"""4 steps of 16 episodes of two attempts: 128 completions and 4 updates."""
MINE = """
[row]
title = "Mine"
description = "one stage"
anchors = [1.0, 0.1]

[stages.only]
steps = 4
reward_weights = [1, 3]
kl_coefs = [{ base = 0.2 }, { base = 0.02 }]
"""
ROWS_OF_FUNCTIONS = '''
from selfcorrect.paper.rows import Budget, MethodRow, Table

def half_bonus(recipe):
    """SCoRe with half of its bonus.

    And more.
    """
    return recipe.changed(second={"bonus": recipe.stage2.bonus / 2})

def fails(recipe):
    return recipe.nothing

def forgets(recipe):
    recipe.changed()

LONG = MethodRow("long", "Twice as long", Table.METHODS, "all steps twice",
    lambda r: r.changed({"steps": 2}, {"steps": 6}), judged_by="acc_t1", anchors=[1.0, 0.5], budget=Budget.OWN)
NUMBER = 3
'''


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the current directory one with a row's file and a module of rows."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text(MINE)
    (tmp_path / "rows_of_functions.py").write_text(ROWS_OF_FUNCTIONS)
    (tmp_path / "score.toml").write_text(to_toml(score()))
    sys.modules.pop("rows_of_functions", None)
    return tmp_path


def score(**changes: Any) -> Config:
    return make_config({**SCORE, **changes})


def mine(text: str = MINE, name: str = "mine.toml") -> MethodRow:
    Path(name).write_text(text)
    return read_row(name)


def offer(folder: Path, monkeypatch: pytest.MonkeyPatch, **places: str) -> None:
    """Install a package that offers rows."""
    metadata = folder / "site/theirs-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    lines = "".join(f"{name} = {place}\n" for name, place in places.items())
    (metadata / "entry_points.txt").write_text(f"[selfcorrect.rows]\n{lines}")
    monkeypatch.syspath_prepend(str(folder / "site"))
    monkeypatch.syspath_prepend(str(folder))


# ---------------------------------------------------------------- what a row is


def test_a_file_is_scores_configuration_with_its_stages_and_settings_in_place() -> None:
    text = MINE + "\n[task]\nrevise = 'Again.'\n[optimizer]\nclip_norm = 3.0\n"  # a former name
    row = mine(text)
    assert (row.key, row.title, row.description, row.table) == ("mine", "Mine", "one stage", Table.VARIANTS)
    assert (row.judged_by, row.anchors, row.budget) == ("acc_t2", (1.0, 0.1), Budget.EQUAL)
    stage = {"steps": 4, "reward_weights": [1, 3], "kl_coefs": [{"base": 0.2}, {"base": 0.02}]}
    expected = score(
        task={"name": "addition", "revise": "Again."}, optimizer={"max_grad_norm": 3.0}, stages={"only": stage},
        eval={"problems": 6, "turns": 2},
    )  # fmt: skip
    assert row_config(row, score()) == expected


def test_a_file_may_have_more_turns_and_no_table() -> None:
    text = "stages.three = { steps = 4, batch_size = 16, reward_weights = [1, 1, 1], kl_coefs = [{}, {}, {}] }"
    row = mine(f"row.budget = 'own'\n{text}", "three.toml")
    made = row_config(row, score())
    assert (row.key, row.title, made.turns) == ("three", "three", 3)
    assert row_config(mine("stages = {}", "nothing.toml"), score()) == score(
        stages={}, eval={"problems": 6, "turns": 2}
    )


def test_a_function_makes_a_row_as_a_built_in_one() -> None:
    row = read_row("rows_of_functions:half_bonus")
    assert (row.key, row.title, row.description) == ("half-bonus", "half-bonus", "SCoRe with half of its bonus")
    assert row_config(row, score()).stages["score"].bonus == 2
    assert row_config(row, score(), ["stages.score.bonus=6"]).stages["score"].bonus == 3
    long = read_row("rows_of_functions:LONG")
    assert (long.key, long.title, long.table, long.judged_by) == ("long", "Twice as long", "methods", "acc_t1")
    assert long.anchors == (1.0, 0.5) and hash(long)


def test_an_installed_package_offers_rows_that_a_comparison_takes_only_by_name(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    offer(here, monkeypatch, theirs="rows_of_functions:LONG", score="rows_of_functions:LONG", broken="nowhere:row")
    assert [row.key for row in own_rows([])] == [] and [row.key for row in own_rows([], ["theirs"])] == ["theirs"]
    assert [row.key for row in own_rows(["theirs"], ["theirs", "score"])] == ["theirs"]
    assert main(["paper", "--list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == [*(row.key for row in ROWS), "theirs", "broken", "score"]
    assert "cannot be used: row 'broken' cannot be imported" in listed[-2]
    assert "'score' is the key of the built-in row 'SCoRe'" in listed[-1]
    assert main(["paper", "--list", "--only", "theirs,base", "--json"]) == 0
    assert [line["row"] for line in json.loads(capsys.readouterr().out)] == ["base", "theirs"]
    assert main(["paper", "score.toml", "--print", "theirs"]) == 0
    (here / "printed.toml").write_text(capsys.readouterr().out)
    assert [stage.steps for stage in load_config(here / "printed.toml").stages.values()] == [2, 6]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("score.toml", MINE, "'score' is the key of the built-in row 'SCoRe'"),
        ("further.toml", MINE, "key 'further' cannot name the row's directory"),
        ("Mine.toml", MINE, "key 'Mine' cannot name"),
        ("x.toml", MINE.replace("[row]", "[row]\nkey = '../x'"), "key '../x' cannot name"),
        ("x.toml", MINE.replace("description", "what"), "row.* of x.toml is rejected:\n  - what: no such setting"),
        ("x.toml", MINE.replace("anchors = [1.0, 0.1]", "anchors = [0]"), "anchors"),
        ("x.toml", MINE.replace("anchors", "judged_by = 'acc'\nanchors"), "judged_by = 'acc'"),
        ("x.toml", "row = 3\nstages = {}", "row = 3 must be a table"),
        ("x.toml", "[row]\n[stage.only]\nsteps = 4\n", "x.toml has no stages: write them out"),
        ("x.toml", "[row\n", "is not valid TOML"),
    ],
)
def test_a_file_that_is_no_row_is_rejected(name: str, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        mine(text, name)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("nothing.toml", "row nothing.toml cannot be read"),
        ("nothing", "is no TOML file here, no module:function, and no row of an installed package"),
        ("rows_of_functions:nothing", "row 'rows_of_functions:nothing' cannot be imported"),
        ("rows_of_functions:NUMBER", "is a int: it must be a function"),
    ],
)
def test_what_is_no_row_is_rejected(given: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_row(given)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("rows_of_functions:fails", "cannot be made from this configuration \\(AttributeError: .*nothing"),
        ("rows_of_functions:forgets", "returned a NoneType: it must return a Config"),
    ],
)
def test_a_function_that_makes_no_configuration_is_rejected(row: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        row_config(read_row(row), score())


def test_settings_that_a_file_has_wrong_are_named_with_the_row() -> None:
    with pytest.raises(ConfigError, match=r"row 'mine', mine.toml: the configuration .*\n.*stages.only.bonos: no such"):
        row_config(mine(MINE + "bonos = 3\n"), score())


def test_two_rows_have_two_keys_and_two_titles() -> None:
    mine()
    Path("other.toml").write_text(MINE.replace("[row]", "[row]\nkey = 'mine'").replace('"Mine"', '"Other"'))
    with pytest.raises(ConfigError, match=r"two rows have the key 'mine' \(mine.toml, other.toml\)"):
        own_rows(["mine.toml", "other.toml"])
    Path("other.toml").write_text(MINE.replace('"Mine"', '"score"'))
    with pytest.raises(ConfigError, match=r"two rows have the title 'SCoRe' \(other.toml and a built-in row\)"):
        own_rows(["other.toml"])


# ---------------------------------------------------------------- one budget


@pytest.mark.parametrize(
    "key", [row.key for row in ROWS if row.budget is Budget.EQUAL and row.key not in ("base", "self-refine")]
)
def test_what_a_configuration_will_spend_is_counted_as_the_metrics_count_it(key: str) -> None:
    """The comparison's own tests hold the metrics of such rows to the same 128 completions and 4 updates."""
    (row,) = chosen_rows([key])
    assert spent(row_config(row, score())) == Spent(128, 4)


@pytest.mark.parametrize("key", ["pag", "s2r"])
def test_attempts_under_a_condition_may_sample_less_but_not_more(key: str) -> None:
    """Eight episodes of up to three completions in each of four steps."""
    (row,) = chosen_rows([key])
    assert spent(row_config(row, score())) == Spent(4 * 8 * 3, 4)
    greedy = replace(row, make=lambda recipe: with_overrides(row.make(recipe), [f"stages.{key}.batch_size=12"]))
    with pytest.raises(
        ConfigError, match=rf"row '{key}' samples 144 completions and takes 4 updates in .* SCoRe 128 and 4"
    ):
        row_config(greedy, score())


def test_verifications_that_are_written_cost_no_completions() -> None:
    """A step of 16 episodes of up to two completions, and three of 8 episodes of up to three."""
    (row,) = chosen_rows(["self-rewarding"])
    assert spent(row_config(row, score())) == Spent(16 * 2 + 3 * 8 * 3, 4)


def test_revisions_feedback_and_iterations_are_counted() -> None:
    tree = {"t": {"steps": 5, "batch_size": 24, "reward_weights": [1, 1], "kl_coefs": [{}, {}], "revisions": 3}}
    made = score(stages=tree, rollout={"batch_size": 24, "group_size": 6}, optimizer={"num_iterations": 2})
    assert spent(made) == Spent(5 * (8 + 24), 10)  # 8 first attempts and 24 second ones a step
    feedback = [{"text": "Any error?", "role": "feedback"}, "Again."]
    assert spent(score(task={"name": "addition", "revise": feedback})) == Spent(4 * 16 * 3, 4)


def test_steps_that_alternate_sample_first_attempts_and_what_follows_them() -> None:
    """Three steps of 16 first attempts, two of 16 times feedback and a second attempt."""
    twice = {"t": {"method": "thinktwice", "steps": 5, "reward_weights": [1, 1], "kl_coefs": [{}, {}]}}
    assert spent(score(stages=twice)) == Spent(5 * 16, 5)
    assert spent(score(stages=twice, task=WITH_FEEDBACK)) == Spent(3 * 16 + 2 * 16 * 2, 5)


def test_verifications_of_drafts_are_as_many_as_episodes() -> None:
    """Five steps of 16 episodes of one attempt, or of two, and of 16 verifications."""
    stage = {"method": "self_verification", "steps": 5, "reward_weights": [1], "kl_coefs": [{}]}
    assert spent(score(stages={"v": stage})) == Spent(5 * 16 * 2, 5)
    assert spent(score(stages={"v": {**stage, "reward_weights": [1, 1], "kl_coefs": [{}, {}]}})) == Spent(5 * 16 * 3, 5)


WITH_FEEDBACK = {"name": "addition", "revise": [{"text": "Any error?", "role": "feedback"}, "Again."]}
"""Feedback costs SCoRe a third completion an episode; single-turn RL, which asks for none, takes three times the episodes."""


@pytest.mark.parametrize("row", [row for row in ROWS if row.budget is Budget.EQUAL and row.key != "tree-alone"])
def test_built_in_rows_spend_what_feedback_costs_score(row: MethodRow) -> None:
    made = row_config(row, score(task=WITH_FEEDBACK))
    assert not made.stages or spent(made) == Spent(4 * 16 * 3, 4)
    assert row.key != "single-turn" or [stage.batch_size for stage in made.stages.values()] == [48]


def test_trees_that_cannot_spend_what_feedback_costs_score_are_rejected() -> None:
    (row,) = chosen_rows(["tree-alone"])
    with pytest.raises(ConfigError, match="trees cannot spend the 12 completions of a group of 4 episodes"):
        row_config(row, score(task=WITH_FEEDBACK))


def test_another_budget_is_an_error_with_both_numbers_unless_the_row_says_so() -> None:
    short = MINE.replace("steps = 4", "steps = 3")
    with pytest.raises(
        ConfigError,
        match=r"row 'mine' samples 96 completions and takes 3 updates in training, SCoRe 128 and 4: .*"
        r"'only': 3 steps of 32 completions.*budget = 'own'",
    ):
        row_config(mine(short), score())
    assert spent(row_config(mine(short.replace("[row]", "[row]\nbudget = 'own'")), score())) == Spent(96, 3)
    assert spent(row_config(read_row("rows_of_functions:LONG"), score())) == Spent(256, 8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[eval]\nproblems = 7", "eval.problems = 7 instead of 6"),
        ("[eval]\nturns = 1", "eval.turns = 1 instead of 2 or more"),
        ("[task]\noptions = { digits = 2 }", "task.options.digits = 2 instead of unset"),
        ("[model]\nsource = 'micro-code-base'", "model.source = micro-code-base instead of addition-base"),
    ],
)
def test_all_rows_are_measured_alike(text: str, message: str) -> None:
    single = MINE.replace("[1, 3]", "[1]").replace(", { base = 0.02 }", "").replace("steps = 4", "steps = 8")
    with pytest.raises(ConfigError, match=f"row 'mine' has {message}: all rows of a comparison start from one base"):
        row_config(mine((single if "turns" in text else MINE) + text), score())
    with pytest.raises(ConfigError, match="seed = 5 instead of 0"):
        row_config(mine(f"seed = 5\n{MINE}"), score())


# ---------------------------------------------------------------- the sweep


def test_a_sweep_changes_a_files_own_stages_and_anchor(here: Path) -> None:
    row = mine(MINE.replace("kl_coefs", "anchors") + "[optimizer]\nlearning_rate = 9e-3\n")  # a former name
    grid = Grid.of(["optimizer.learning_rate=1e-4,1e-3"], seed=100, problems=7)
    found = trials(score(), [row], grid, here)
    tried = [(t.spec.config.optimizer.learning_rate, t.spec.config.stages["only"].kl_coefs[0]["base"]) for t in found]
    assert tried == [(1e-4, 0.2), (1e-3, 0.2), (1e-4, 0.02), (1e-3, 0.02)]
    assert all(t.spec.config.stages["only"].kl_coefs[1] == {"base": 0.02} for t in found)
    assert {(t.spec.config.seed, t.spec.config.eval.split, t.spec.config.eval.problems) for t in found} == {
        (100, "dev", 7)
    }
    (spec,) = [s for s in plan(score(), [row], [0], here, {"mine": found[3].point}) if s.name == "mine, seed 0"]
    assert spec.config.optimizer.learning_rate == 1e-3 and spec.config.stages["only"].kl_coefs[0] == {"base": 0.02}
    untried = row_config(row, score())
    assert untried.optimizer.learning_rate == 9e-3 and untried.stages["only"].kl_coefs[0] == {"base": 0.2}
    assert not read_card(here / "mine")


def test_points_that_a_row_cannot_tell_apart_are_tried_once(here: Path) -> None:
    row = mine(MINE.replace("anchors = [1.0, 0.1]\n", ""))
    grid = Grid.of(["stages.score.bonus=1,2"], seed=100, problems=7)
    found = trials(score(), [row, *chosen_rows(["score", "pair-sft"])], grid, here)
    assert [trial.row.key for trial in found] == ["mine", "pair-sft", *["score"] * 6]


def test_anchors_need_a_coefficient_to_multiply(here: Path) -> None:
    row = mine(MINE.replace("{ base = 0.2 }", "{}"))
    with pytest.raises(ConfigError, match=r"anchors = \[1.0, 0.1\] multiply the KL coefficient of `base`"):
        trials(score(), [row], Grid.of(["optimizer.learning_rate=1e-4"], seed=100, problems=7), here)


def test_a_choice_by_another_accuracy_does_not_count(here: Path) -> None:
    tried = trials(score(), [mine()], Grid.of(["optimizer.learning_rate=1e-4"], seed=100, problems=7), here)
    done = [{"settings": [], "digest": digest(t.spec.config), "acc_t2": 0.5, "chosen": False} for t in tried]
    for judged_by, same in (("acc_t2", True), ("acc_t1", False)):
        write_trials(here, {"rows": {"mine": done}, "criteria": {"mine": judged_by}})
        assert already_tried(tried, here) is same


# ---------------------------------------------------------------- what the directory remembers


def test_a_changed_row_under_the_same_key_is_rejected(here: Path) -> None:
    out = here / "out"
    write_cards([mine(), *chosen_rows(["score"])], score(), out)
    card = read_card(out / "mine")
    assert (card["key"], card["title"], card["table"], card["what"]) == ("mine", "Mine", "variants", "one stage")
    assert card["definition"] == {
        "stages.only.steps": 4, "stages.only.reward_weights": [1, 3], "stages.only.kl_coefs": [{"base": 0.2}, {"base": 0.02}],
    }  # fmt: skip
    assert card["source"] == "mine.toml" and "definition" not in read_card(out / "score")
    check_cards([mine(MINE.replace('"Mine"', '"Mine, again"'))], score(), out)
    check_cards([mine()], score(optimizer={"learning_rate": 1e-3}), out)  # the comparison changed, the row did not
    for before, after, told in (
        ("[1, 3]", "[1, 4]", r"stages.only.reward_weights = \[1.0, 4.0\] instead of \[1.0, 3.0\]"),
        ("stages.only", "stages.other", "no stage only; stage other added"),
        ("[stages", "[kl]\nwarn_above = 9.0\n[stages", "kl.warn_above = 9.0 instead of unset"),
    ):
        changed = mine(MINE.replace(before, after))
        with pytest.raises(
            ConfigError, match=rf"row 'mine' \(mine.toml\) is not the one that .*method.json.*: {told}\."
        ):
            check_cards([changed], score(), out)
    assert main(["paper", "score.toml", "--row", "mine.toml", "--only", "mine", "--out", str(out), "--dry-run"]) == 2


def test_a_card_without_a_definition_is_no_other_row(here: Path) -> None:
    write_card(here / "out/mine", {"key": "mine", "title": "by hand", "table": "variants", "place": 30})
    check_cards([mine()], score(), here / "out")


def test_functions_are_remembered_by_what_they_make(here: Path) -> None:
    row = read_row("rows_of_functions:half_bonus")
    write_cards([row], score(), here)
    check_cards([row], score(), here)
    quarter = MethodRow(
        "half-bonus",
        "Q",
        Table.VARIANTS,
        "",
        lambda r: r.changed(second={"bonus": 1}),
        source="rows_of_functions:half_bonus",
    )
    with pytest.raises(ConfigError, match=r"stages.score.bonus = 1.0 instead of 2.0"):
        check_cards([quarter], score(), here)


def test_recipes_of_functions_have_the_seed_and_the_evaluation_of_their_run(here: Path) -> None:
    seen: list[Recipe] = []
    row = MethodRow("seen", "S", Table.VARIANTS, "", lambda r: seen.append(r) or r.config, source="test")
    plan(score(), [row], [3, 4], here)
    assert [recipe.config.seed for recipe in seen] == [3, 4]
