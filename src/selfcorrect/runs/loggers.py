"""Live curves in TensorBoard and Weights & Biases."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from selfcorrect.config.schema import Config
from selfcorrect.extras import require
from selfcorrect.storage.files import remove_tree
from selfcorrect.storage.run_dir import read_metrics


class MetricLogger:
    """A writer of every step's scalars; rebuilt from ``metrics.jsonl`` on resume, so it never runs ahead of a checkpoint."""

    def __init__(self, folder: Path | None, config: Config) -> None:
        self.folder, self.config = folder, config
        self._writer: Any = None
        self._wandb: Any = None
        self._before: dict[str, int] = {}
        total = 0
        for name, stage in config.stages.items():
            self._before[name] = total
            total += stage.length

    @classmethod
    def open(cls, run: Path, config: Config, *, active: bool = True) -> MetricLogger:
        """Open the logger of a run; one that is not ``active`` writes nothing (another process does).

        Raises:
            ConfigError: Weights & Biases is configured but not installed.
        """
        logger = cls(run / "tensorboard" if active and config.log.tensorboard else None, config)
        if active and config.log.wandb:
            logger._wandb = wandb_package().init(
                project=config.log.wandb, name=run.name, config=config.model_dump(mode="json")
            )
        return logger

    def rewrite(self, metrics: Path) -> None:
        """Rewrite the files from the steps in ``metrics``."""
        if self.folder is None:
            return
        from torch.utils.tensorboard.writer import SummaryWriter

        remove_tree(self.folder)
        self._writer = SummaryWriter(str(self.folder))
        for line in read_metrics(metrics):
            self._write(line)

    def add(self, metrics: Mapping[str, Any]) -> None:
        self._write(metrics)
        if self._wandb is not None:
            self._wandb.log(dict(_scalars(metrics)), step=self._step(metrics))

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        if self._wandb is not None:
            self._wandb.finish()

    def _step(self, metrics: Mapping[str, Any]) -> int:
        return self._before.get(metrics["stage"], 0) + int(metrics["step"])

    def _write(self, metrics: Mapping[str, Any]) -> None:
        if self._writer is not None:
            for name, value in _scalars(metrics):
                self._writer.add_scalar(name, value, self._step(metrics))


def wandb_package() -> Any:
    """Return the package `wandb`.

    Raises:
        ConfigError: it is not installed.
    """
    return require("wandb", extra="wandb", why="log.wandb")


def _scalars(metrics: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            yield from _scalars(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and name != "step":
            yield f"{prefix}{name}", float(value)
