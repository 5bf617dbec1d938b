"""Test that an evaluation by inspect_ai holds the same conversations and counts the same as this package's own."""

from __future__ import annotations

import asyncio
import json
import re
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from support.chat_server import Answer, says, serving

from selfcorrect import evaluate
from selfcorrect.config.evaluation import make_eval_settings
from selfcorrect.engines import Message, Reply
from selfcorrect.errors import DataError, ModelError
from selfcorrect.evaluation.evaluate import plan_of
from selfcorrect.evaluation.flat_metrics import flat_metrics
from selfcorrect.evaluation.inspect_conversations import (
    Conversations,
    Interview,
    Measurement,
    evaluation_of_problems,
    restored,
    stored,
)
from selfcorrect.evaluation.problem_set import ProblemSet
from selfcorrect.rollout.chat_rollout import Written
from selfcorrect.storage.episode_log import StoredEpisode
from selfcorrect.tasks.verifier import Verifier
from selfcorrect.types import Part, Role, StopReason

PLAN = {"limit": 6, "controls": True, "samples": 2, "temperature": 0.0, "seed": 3}


def answer_to(said: Sequence[str], temperature: float, seed: int) -> str:
    """Return an answer to a sum or a product that depends on all that was said, and on the seed where it is sampled."""
    a, sign, b = re.findall(r"(\d+) ([+*]) (\d+)", said[1])[0]
    right = int(a) + int(b) if sign == "+" else int(a) * int(b)
    if len(said) == 2:
        return str(right + (int(a) % 2) + (seed % 3 if temperature else 0))
    return str(right) if said[2] == str(right + 1) else said[2] or f"{int(b) % 3} perhaps"


def measurement(**changes: Any) -> Measurement:
    settings = make_eval_settings({**PLAN, **changes})
    problem_set = ProblemSet.of("arithmetic", None, settings, None)
    return Measurement(problem_set, plan_of(settings, None), Verifier(problem_set.task))


def test_conversations_come_back_from_a_log_as_they_were() -> None:
    own = Reply("7", StopReason.LENGTH, 2, reasoning="hm", ids=(3, 4), logprobs=(-0.5, -1.0))
    first = [Written(Reply("", StopReason.END, None), Role.ATTEMPT, online=False), Written(own, Role.ATTEMPT, (1, 2))]
    conversations = {Part.EMPTY: [first], Part.ATTEMPTS: [first[1:], first[1:]]}
    assert restored(json.loads(json.dumps(stored(conversations)))) == conversations


class Asked:
    """A model that counts what it is asked."""

    def __init__(
        self, rejects: Callable[[Sequence[str]], bool] = lambda said: False, error: type[Exception] = ModelError
    ) -> None:
        self.questions: list[tuple[str, ...]] = []
        self.rejects, self.error = rejects, error

    async def __call__(self, messages: Sequence[Message], temperature: float | None, seed: int) -> Reply:
        said = tuple(message.content for message in messages)
        self.questions.append(said)
        await asyncio.sleep(0)
        if self.rejects(said):
            raise self.error("no")
        return Reply(answer_to(said, temperature or 0.0, seed), StopReason.END, 3)


def interviewed(
    what: Measurement,
    ask: Asked,
    fatal: tuple[type[Exception], ...] = (),
    epochs: int = 1,
    together: bool = True,
) -> list[tuple[int, int, Conversations]]:
    """Return each problem's place, the number of its first sample, and its conversations."""
    interview = Interview(what, fatal)
    places = [(place, e * what.plan.samples) for place in range(len(what.problem_set.problems)) for e in range(epochs)]

    async def everybody() -> list[Conversations]:
        if not together:
            return [await interview.about(*place, ask) for place in reversed(places)]
        return list(await asyncio.gather(*(interview.about(*place, ask) for place in reversed(places))))

    return [(*place, found) for place, found in zip(places, asyncio.run(everybody())[::-1], strict=True)]


def counted(what: Measurement, found: Sequence[tuple[int, int, Conversations]]) -> dict[str, Any]:
    problems = []
    for place, first, conversations in found:
        judged = what.judge(place, first, restored(stored(conversations)))
        problems.append(
            {
                part: [StoredEpisode.of(e, stage="", step=0).to_json() for e in several]
                for part, several in judged.items()
            }
        )
    return evaluation_of_problems(problems, seed=what.plan.seed).to_json()


def test_problem_by_problem_is_what_part_by_part_is() -> None:
    """Sampled as inspect_ai does, all problems at once and the last first; every figure is that of `evaluate`."""

    def answer(body: dict[str, Any]) -> Answer:
        return says(answer_to([m["content"] for m in body["messages"]], body["temperature"], body.get("seed", 0)))

    with serving(answer) as server:
        own = evaluate("m", "arithmetic", base_url=server.url, **PLAN).to_json()
    what = measurement()
    found = counted(what, interviewed(what, Asked()))
    assert found == own
    assert own["delta"] > 0 and own["controls"]["draft_swap"]["difference"] < 0  # nothing is trivially equal
    assert own["sampled"]["acc_t1"] not in (own["acc_t1"], 0.0)


def test_a_first_attempt_is_sampled_once_for_its_own_conversation_and_as_another_ones_draft() -> None:
    what, ask = measurement(sampled=False, samples=1), Asked()
    interviewed(what, ask)
    opened = [said for said in ask.questions if len(said) == 2]
    assert len(opened) == len(set(opened)) == 6
    assert len(ask.questions) == 6 * (2 + 3)  # and a second attempt at each of three blind drafts


def is_empty_draft(said: Sequence[str]) -> bool:
    return "" in said


@pytest.mark.parametrize("together", [True, False])
def test_a_provider_that_rejects_empty_messages_is_measured_with_the_other_drafts(together: bool) -> None:
    what, ask = measurement(), Asked(rejects=is_empty_draft)
    found = counted(what, interviewed(what, ask, together=together))
    assert sorted(found["controls"]) == ["draft_swap", "independent_resample", "shuffled_draft"]
    assert sum(map(is_empty_draft, ask.questions)) == (6 if together else 1)


def test_a_problem_without_an_empty_draft_leaves_the_control_out() -> None:
    what = measurement()
    fourth = what.problem_set.problems[3].prompt
    found = interviewed(what, Asked(rejects=lambda said: is_empty_draft(said) and fourth in said[1]), together=False)
    assert [Part.EMPTY in conversations for _, _, conversations in found] == [False] * 4 + [True] * 2
    assert "empty_draft" not in counted(what, found)["controls"]


def test_other_failures_and_limits_are_not_taken_for_that() -> None:
    what = measurement(sampled=False, samples=1)
    firsts = {p.prompt: answer_to(["", p.prompt], 0.0, 0) for p in what.problem_set.problems}
    with pytest.raises(ModelError):  # only where the draft is another one's, or shuffled
        interviewed(what, Asked(rejects=lambda said: len(said) > 2 and said[2] not in ("", firsts[said[1]])))
    with pytest.raises(ZeroDivisionError):
        interviewed(what, Asked(rejects=is_empty_draft, error=ZeroDivisionError), fatal=(ZeroDivisionError,))


def test_another_logs_problems_are_named() -> None:
    with pytest.raises(DataError, match="problem 'x' is not among the 6 problems of task 'arithmetic'"):
        measurement().place("x")


def test_figures_have_one_name_each() -> None:
    what = measurement()
    results = counted(what, interviewed(what, Asked()))
    found = flat_metrics(results)
    assert found["delta"].value == results["delta"] and list(found["delta"].ci95 or ()) == results["delta_ci95"]
    blind = results["decomposition"]["blind"]
    assert found["repair_swapped"].value == blind["draft_swap"]["repair"]
    assert found["reading_empty"].value == blind["empty_draft"]["reading"]
    assert found["sampled_acc_t1"].value == results["sampled"]["acc_t1"]
    assert found["acc_resampled"].value == results["controls"]["independent_resample"]["acc_resampled"]
    rates = results["decomposition"]["detection"]
    assert found["changed_if_incorrect"].value == rates["changed_if_incorrect"]
    assert "youden" not in found and rates["youden"] is None, "too few answers"


@pytest.mark.slow
def test_inspect_ai_reports_our_figures(tmp_path: Any) -> None:
    inspect_ai = pytest.importorskip("inspect_ai")
    from inspect_ai.model import ModelOutput, ModelUsage, get_model

    from selfcorrect.evaluation.inspect_task import self_correction

    def answers(messages: Any, tools: Any, choice: Any, config: Any) -> Any:
        text = answer_to([message.text for message in messages], config.temperature, config.seed)
        output = ModelOutput.from_content("m", text)
        output.usage = ModelUsage(input_tokens=1, output_tokens=3, total_tokens=4)
        return output

    model = get_model("mockllm/model", custom_outputs=answers)
    task = self_correction("arithmetic", **PLAN)
    (log,) = inspect_ai.eval(task, model=model, epochs=2, display="none", log_dir=str(tmp_path))
    assert log.status == "success", log.error
    metrics = {name: metric.value for name, metric in log.results.scores[0].metrics.items()}
    what = measurement()
    own = flat_metrics(counted(what, interviewed(what, Asked(), epochs=2)))
    ends = {f"{name}_{end}": f.ci95[i] for name, f in own.items() if f.ci95 for i, end in enumerate(("low", "high"))}
    assert metrics == pytest.approx({"n": 6, **{name: figure.value for name, figure in own.items()}, **ends})
    sample = log.samples[0]
    assert [m.role for m in sample.messages] == ["system", "user", "assistant", "user", "assistant"]
    assert sample.output.completion == sample.messages[-1].text
    assert set(sample.scores["verdicts"].value) == {"t1", "t2"}
    assert Part.SHUFFLED in sample.scores["verdicts"].metadata["episodes"]


def test_texts_cut_at_commas_by_the_command_line_are_joined_and_lists_stay() -> None:
    pytest.importorskip("inspect_ai")
    from selfcorrect.evaluation.inspect_task import _with_commas

    given = {"test_path": "a.jsonl", "template": ["{a}", " {b}"], "options_field": ["a", "b"], "shares": [80, 10, 10]}
    assert _with_commas("dataset", given) == {**given, "template": "{a}, {b}"}


def test_inspect_ai_finds_the_task_by_its_entry_point() -> None:
    pytest.importorskip("inspect_ai")
    from inspect_ai._util.registry import registry_info

    from selfcorrect.evaluation import inspect_task

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["inspect_ai"] == {"selfcorrect": inspect_task.__name__}
    for name in ("self_correction", "conversations", "verdicts", "figures"):
        assert registry_info(getattr(inspect_task, name)).name.rpartition("/")[2] == name
