"""Files of shards: every process writes its own, and any number of processes reads them (`torch.distributed.checkpoint`).

The files are in safetensors' format, in which a tensor's place in the whole stands in the header. So reading them never runs
code, unlike the pickled index of torch's own format.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from safetensors import safe_open
from torch import Tensor

from selfcorrect.distributed.shards import is_shard
from selfcorrect.distributed.world import World

T = TypeVar("T")
STATE = "state"
"""The folder of a checkpoint that holds the shards."""
PIECE_BYTES = 2**28
"""The bytes of a file, which lies in memory a second time while it is written; one larger tensor is a file of its own."""


def write_shards(tensors: Mapping[str, Tensor], folder: Path, world: World) -> list[Path]:
    """Write tensors, of which every process has its shards; return the files that this process wrote.

    The tensors without shards are written once. All processes call it together, and an error of any is raised in all.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    with world.together():
        folder.mkdir(parents=True, exist_ok=True)
    pieces = _pieces(tensors, world)
    writer = HuggingFaceStorageWriter(str(folder), fqn_to_index_mapping=pieces, save_distributed=True)
    _plainly(lambda: save(dict(tensors), storage_writer=writer, process_group=world.control, no_dist=world.size == 1))
    return sorted(folder.glob(f"shard-{world.rank + 1:05d}-*.safetensors"))


def _pieces(tensors: Mapping[str, Tensor], world: World) -> dict[str, int]:
    """Return the number of each tensor's file, from 1, the same in all processes."""
    pieces: dict[str, int] = {}
    number, used = 1, 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size() // (world.size if is_shard(tensor) else 1)
        if used and used + size > PIECE_BYTES:
            number, used = number + 1, 0
        pieces[name], used = number, used + size
    return pieces


def read_shards(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Fill tensors from files, in place and converted to their dtypes: of a shard, only what belongs to this process.

    It exchanges nothing. The files may also be those of a plain model.

    Raises:
        RuntimeError, ValueError: a tensor is missing, or has another shape.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    _plainly(lambda: load(dict(tensors), storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True))


def _plainly(work: Callable[[], T]) -> T:
    """Do work of torch.distributed.checkpoint, whose own error is no `Exception`; raise what it is about instead."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
            return work()
    except CheckpointException as error:
        cause, _ = next(iter(error.failures.values()))
        if isinstance(cause, Exception) and not isinstance(cause, AssertionError):
            raise cause from None
        raise RuntimeError(f"{type(cause).__name__}: {cause}") from None


def staged(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies of the tensors in the host's memory, shards as shards, for a file that is written later."""
    from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

    stager = DefaultStager(StagingOptions(False, False, False, False))
    try:
        copies: dict[str, Tensor] = stager.stage(dict(tensors))  # type: ignore[assignment]
        return copies
    finally:
        stager.close()


def names_in(folder: Path) -> dict[str, list[str]]:
    """Return the names of the tensors in every safetensors file of a folder, by the file's name."""
    found: dict[str, list[str]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            found[file.name] = list(opened.keys())
    return found
