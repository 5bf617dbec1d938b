"""Define settings and fixtures for every test; helpers that tests import are in `support`."""

from __future__ import annotations

import gc
import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from support import needs
from support.models import tiny_model
from support.verifiers import lenient_additions

from selfcorrect.engines import kv_cache as cache
from selfcorrect.models.forward import GeneralForward
from selfcorrect.models.language_model import LanguageModel

os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start, too: one thread adds in one order
torch.set_num_threads(1)
# The same examples every time, and no deadline: a loaded machine must not fail a test.
hypothesis.settings.register_profile("tests", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("tests")


def pytest_collection_finish() -> None:
    """Keep what imports made out of every later collection of garbage, which would walk through all of it again."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    needs.skip_without(item)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, Any, Any]:
    report = yield
    needs.forbid_skip(report)
    # Captured texts may hold names that are no UTF-8, which xdist cannot send.
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, Any, Any]:
    report = yield
    needs.forbid_skip(report)
    return report


@pytest.fixture(params=["fast forward pass", "fast, shared prefixes", "general forward pass"])
def either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run models of Llama's shape with the fast forward pass, prompts copied or shared, and with the general one."""
    monkeypatch.setattr(cache, "SHARED_FROM", -(2**60) if request.param == "fast, shared prefixes" else 2**60)
    if request.param == "general forward pass":
        monkeypatch.setattr(LanguageModel, "forward_pass", property(GeneralForward))


@pytest.fixture(scope="module")
def lenient() -> Iterator[None]:
    """Use `lenient_additions` for a whole module: where runs are compared bit by bit, their weights must move."""
    with lenient_additions():
        yield


@pytest.fixture(scope="session")
def policy64() -> LanguageModel:
    """Return a float64 model for tests that only read it."""
    return tiny_model(0)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a float32 model, which tests only read."""
    folder = tmp_path_factory.mktemp("model")
    tiny_model(3, dtype=torch.float32).save(folder)
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty directory, and return it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
