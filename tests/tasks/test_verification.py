"""Test the verdicts of verifiers that behave and of verifiers that misbehave."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from selfcorrect.errors import ConfigError, VerifierError
from selfcorrect.script import Script
from selfcorrect.tasks.verifier import Verifier
from selfcorrect.types import Outcome, Problem, Split, Verdict

RIGHT, WRONG, NO_ANSWER = Outcome.CORRECT, Outcome.INCORRECT, Outcome.NO_ANSWER
TIMED_OUT, FAILED = Outcome.TIMED_OUT, Outcome.VERIFIER_FAILED


class OddTask:
    """A task whose verifier does what the answer says."""

    name, version, script = "odd", "1", Script()

    def __init__(self, trusted: bool = False) -> None:
        self.trusted_verifier = trusted

    def problems(self, split: Split, *, seed: int, limit: int | None = None) -> list[Problem]:
        return []

    def corrupt(self, problem: Problem) -> str:
        return problem.reference + "x"

    def verify(self, problem: Problem, text: str) -> Verdict:  # noqa: PLR0911
        match text:
            case "":
                return Verdict(NO_ANSWER)
            case "sleep":
                time.sleep(60)
            case "regex":  # holds the interpreter's lock, so no thread or handler of Python can stop it
                re.match(r"(a+)+$", "a" * 60 + "b")
            case "child":
                child = subprocess.Popen(["sleep", "60"])
                Path(problem.data["file"]).write_text(str(child.pid))
                child.wait()
            case "count":
                with Path(problem.data["file"]).open("a") as file:
                    file.write("x")
                return Verdict(RIGHT, extracted=str(Path(problem.data["file"]).stat().st_size))
            case "raise":
                raise ValueError("odd answer")
            case "exit":
                sys.exit(3)
            case "vanish":
                os._exit(0)
            case "crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "none":
                return None
            case "text":
                return Verdict("right")
            case "unpicklable":
                return Verdict(RIGHT, extracted=threading.Lock())
            case "print":
                print("a line of the verifier")
            case "torch":
                return Verdict(RIGHT, extracted=str("torch" in sys.modules))
            case "pid":
                return Verdict(RIGHT, extracted=str(os.getpid()))
        return Verdict(RIGHT if text == problem.reference else WRONG, extracted=text)


class Unloadable(OddTask):
    def __setstate__(self, state: object) -> None:
        raise OSError("no such weights")

    def __getstate__(self) -> dict[str, int]:
        return {"x": 1}


def problem(number: int = 0, **data: str) -> Problem:
    return Problem(f"p{number}", f"say {number}", str(number), data=data)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until_dead(pid: int, seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.02)
    return not alive(pid)


@pytest.mark.slow
@pytest.mark.pitfall(15)
def test_a_verifier_that_hangs_or_fails_is_told_from_a_wrong_answer() -> None:
    texts = ["0", "1", "", "sleep", "raise", "regex", "exit", "vanish", "crash", "none", "text", "unpicklable", "0"]
    with Verifier(OddTask(), time_limit_s=0.5, workers=2) as verifier:
        verdicts = verifier.verify([(problem(), text) for text in texts])
        assert verifier.counts == {RIGHT: 2, WRONG: 1, NO_ANSWER: 1, TIMED_OUT: 2, FAILED: 7}
    found = dict(zip(texts, verdicts, strict=True))
    assert [v.outcome for v in verdicts[:4]] == [RIGHT, WRONG, NO_ANSWER, TIMED_OUT]
    assert found["sleep"].detail == "no verdict within 0.5 s"
    assert found["regex"].outcome is TIMED_OUT
    assert {t: v.detail for t, v in found.items() if v.outcome is FAILED} == {
        "raise": "ValueError: odd answer",
        "exit": "SystemExit: 3",
        "vanish": "the verifier process ended with exit status 0",
        "crash": "the verifier process ended with signal SIGSEGV",
        "none": "returned None, not a Verdict with an Outcome",
        "text": found["text"].detail,
        "unpicklable": "TypeError: cannot pickle '_thread.lock' object",
    }
    assert "not a Verdict" in found["text"].detail
    assert all(v.reward == 0.0 for v in verdicts if v.outcome is not RIGHT)


@pytest.mark.slow
def test_only_the_guilty_answer_is_lost_whatever_the_order_and_the_workers() -> None:
    texts = [{7: "sleep", 8: "vanish", 40: "raise", 99: "sleep"}.get(i, str(i % 2)) for i in range(100)]
    items = [(problem(i % 2), text) for i, text in enumerate(texts)]
    expected = [{"sleep": TIMED_OUT, "vanish": FAILED, "raise": FAILED}.get(t, RIGHT) for t in texts]
    for workers in (1, 3):
        with Verifier(OddTask(), time_limit_s=0.3, workers=workers) as verifier:
            assert [v.outcome for v in verifier.verify(items)] == expected
            assert [v.outcome for v in verifier.verify(items[::-1])] == expected[::-1]
            assert verifier.verify([]) == []


@pytest.mark.pitfall(15)
def test_what_a_verifier_started_is_killed_with_it(tmp_path: Path) -> None:
    with Verifier(OddTask(), time_limit_s=0.5, workers=1) as verifier:
        [verdict] = verifier.verify([(problem(file=str(tmp_path / "pid")), "child")])
    assert verdict.outcome is TIMED_OUT
    assert wait_until_dead(int((tmp_path / "pid").read_text()))


def test_trusted_verifiers_run_here_and_their_exceptions_are_recorded_too() -> None:
    with Verifier(OddTask(trusted=True)) as verifier:
        verdicts = verifier.verify([(problem(), text) for text in ("pid", "raise", "none", "")])
    assert verdicts[0].extracted == str(os.getpid())
    assert [v.outcome for v in verdicts] == [RIGHT, FAILED, FAILED, NO_ANSWER]
    assert verdicts[1].detail == "ValueError: odd answer"


@pytest.mark.parametrize("trusted", [False, True])
def test_equal_answers_to_one_problem_are_judged_once(trusted: bool, tmp_path: Path) -> None:
    one, other = (problem(file=str(tmp_path / name)) for name in ("one", "other"))
    items = [(one, "count"), (other, "count"), (one, "0"), (one, "count")]
    with Verifier(OddTask(trusted), workers=1) as verifier:
        found = [verdict.extracted for verdict in verifier.verify(items)]
        assert found == ["1", "1", "0", "1"] and verifier.counts == {RIGHT: 4}
        assert verifier.verify(items)[0].extracted == "2", "the next batch is judged from scratch"


def test_workers_are_light_and_other_processes() -> None:
    with Verifier(OddTask(), workers=1) as verifier:
        torch, pid = verifier.verify([(problem(), "torch"), (problem(), "pid")])
    assert torch.extracted == "False"
    assert int(pid.extracted or 0) != os.getpid()


@pytest.mark.parametrize("trusted", [False, True])
@pytest.mark.pitfall(20)
def test_too_many_failures_of_one_batch_stop_the_run(trusted: bool) -> None:
    with Verifier(OddTask(trusted), workers=1) as verifier:
        verifier.verify([(problem(), "0")] * 19 + [(problem(1), "raise")])  # 5 %, the limit itself
        with pytest.raises(VerifierError) as caught:
            verifier.verify([(problem(), "0")] * 18 + [(problem(8), "raise"), (problem(9), "none")])
    message = str(caught.value)
    assert "failed on 2 of 20 answers of this batch" in message
    assert "problem 'p8': ValueError: odd answer" in message
    assert "failure_limit = 0.05" in message
    assert verifier.counts == {RIGHT: 37, FAILED: 3}


@pytest.mark.pitfall(20)
def test_failures_add_up_over_small_batches() -> None:
    verifier = Verifier(OddTask(trusted=True), failure_limit=0.1)
    for _ in range(9):
        verifier.verify([(problem(), "0"), (problem(), "raise")])  # half of them, but 18 answers are too few
    with pytest.raises(VerifierError, match=r"failed on 10 of 20 answers so far"):
        verifier.verify([(problem(), "0"), (problem(), "raise")])
    assert verifier.counts == {RIGHT: 10, FAILED: 10}


@pytest.mark.pitfall(20)
def test_answers_that_time_out_are_counted_and_stop_nothing() -> None:
    with Verifier(OddTask(), time_limit_s=0.1, workers=2, failure_limit=0.0) as verifier:
        verifier.verify([(problem(), "0")] * 18 + [(problem(), "sleep"), (problem(), "sleep")])
        assert verifier.counts == {RIGHT: 18, TIMED_OUT: 2}


def test_an_unpicklable_problem_fails_alone() -> None:
    bad = Problem("bad", "", "0", data={"lock": threading.Lock()})
    with Verifier(OddTask(), workers=1) as verifier:
        verdicts = verifier.verify([(problem(), "0"), (bad, "0"), (problem(), "0")])
    assert [v.outcome for v in verdicts] == [RIGHT, FAILED, RIGHT]
    assert "problem 'bad' cannot be pickled" in verdicts[1].detail


def test_no_process_stays_behind() -> None:
    verifier = Verifier(OddTask(), workers=2, time_limit_s=0.2)
    pids = {int(v.extracted or 0) for v in verifier.verify([(problem(i), "pid") for i in range(40)])}
    assert all(alive(pid) for pid in pids)
    verifier.close()
    verifier.close()
    assert not any(alive(pid) for pid in pids)
    again = verifier.verify([(problem(), "pid")])
    del verifier  # nobody closed it
    assert wait_until_dead(int(again[0].extracted or 0))


def test_an_interrupt_kills_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    verifier = Verifier(OddTask(), workers=1)
    [verdict] = verifier.verify([(problem(), "pid")])

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(verifier._pool, "_listen", interrupt)
    with pytest.raises(KeyboardInterrupt):
        verifier.verify([(problem(), "0")] * 10)
    assert not alive(int(verdict.extracted or 0))


SCRIPT = """
    import os, time
    from selfcorrect.tasks.rows import RowsTask
    from selfcorrect.tasks.verifier import Verifier
    from selfcorrect.types import Outcome, Split, Verdict
    print("started")
    def check(text, reference, row):
        print("noise")
        while text == "hang":
            pass
        return Verdict(Outcome.CORRECT, extracted=str(os.getpid()))
    task = RowsTask(None, check, test_rows=[{"prompt": "a", "answer": "b"}])
    [problem] = task.problems(Split.TEST, seed=0)
    verifier = Verifier(task, time_limit_s=LIMIT, workers=1)
    print(verifier.verify([(problem, "x")])[0].extracted, flush=True)
    LAST
"""


def script(limit: float, last: str) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(SCRIPT).replace("LIMIT", str(limit)).replace("LAST", last)]


def test_a_script_without_a_main_guard_may_verify_and_end_without_closing(tmp_path: Path) -> None:
    file = tmp_path / "script.py"
    file.write_text(script(5, "")[2])
    done = subprocess.run([sys.executable, str(file)], capture_output=True, text=True, check=True, timeout=60)
    first, pid = done.stdout.split()  # "started" once, and the verifier's print is not among the results
    assert first == "started"
    assert "noise" in done.stderr
    assert wait_until_dead(int(pid))


def test_a_hung_worker_does_not_outlive_a_killed_parent() -> None:
    with subprocess.Popen(
        script(0.5, 'verifier.verify([(problem, "hang")])'),
        stdout=subprocess.PIPE,
        text=True,
        stderr=subprocess.DEVNULL,
    ) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        pid = int(parent.stdout.readline())
        time.sleep(0.2)
        parent.kill()
    assert wait_until_dead(pid)


def test_a_task_that_a_worker_cannot_load_is_one_clear_error() -> None:
    with Verifier(Unloadable(), workers=2) as verifier:
        with pytest.raises(VerifierError, match=r"'odd' could not start: OSError: no such weights"):
            verifier.verify([(problem(), "0")])
        assert verifier._pool is not None
        assert verifier._pool._workers == []


def test_a_task_that_cannot_be_sent_is_refused() -> None:
    task = OddTask()
    task.lock = threading.Lock()
    with pytest.raises(ConfigError, match=r"cannot be sent to verifier processes \(TypeError"):
        Verifier(task)


@pytest.mark.parametrize(
    "arguments", [{"time_limit_s": 0}, {"time_limit_s": float("inf")}, {"workers": 0}, {"failure_limit": 1.5}]
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(arguments))):
        Verifier(OddTask(), **arguments)
