"""The runs of a comparison: one per row and seed, plus the prefixes that several of them share, each trained once.

DIR/ROW/seed-S/       the run of a row; `selfcorrect report DIR` groups them by ROW
DIR/ROW/method.json   the row's card (`paper.cards`)
DIR/.shared/DIGEST/   a prefix (no stage at all, or Stage I), named by the digest of its settings and seed
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from selfcorrect.config.differences import differences
from selfcorrect.config.digest import lasting_settings
from selfcorrect.config.schema import Config
from selfcorrect.config.toml import as_stored, load_config
from selfcorrect.distributed.world import joined
from selfcorrect.errors import ConfigError
from selfcorrect.evaluation.callbacks import Callbacks
from selfcorrect.paper.comparable import row_config
from selfcorrect.paper.rows import MethodRow
from selfcorrect.runs.fork import config_prefix, fork
from selfcorrect.runs.run import resume, train
from selfcorrect.storage.consent import names_of_config
from selfcorrect.storage.files import read_jsonl

SHARED = ".shared"


@dataclass(frozen=True, slots=True)
class RunSpec:
    """One run: its settings, its directory, and the run it forks (``parent``; None: it starts from the model)."""

    name: str
    config: Config
    path: Path
    parent: Path | None

    @property
    def started(self) -> bool:
        return (self.path / "config.toml").is_file()

    @property
    def finished(self) -> bool:
        return (self.path / "summary.json").is_file()

    @property
    def stages(self) -> list[str]:
        """Return the stages that this run trains itself, after those of its parent."""
        return list(self.config.stages)[-1:]

    @property
    def steps(self) -> int:
        """Return the training steps of this run."""
        return sum(self.config.stages[name].length for name in self.stages)

    @property
    def done(self) -> int:
        """Return the training steps taken so far."""
        log = self.path / "metrics.jsonl"
        return sum(line["stage"] in self.stages for line in read_jsonl(log)) if log.exists() else 0

    def finish(self, callbacks: Callbacks) -> None:
        """Train and evaluate what is left of the run, with the other processes if there are some."""
        with joined(timeout_s=self.config.distributed.timeout_s) as world:
            if world.from_first(lambda: self.started):
                allowed = names_of_config(self.config)
                resume(self.path, callbacks=callbacks, allow_code=allowed, world=world)
            elif self.parent is not None:
                fork(self.parent, self.config, self.path, callbacks=callbacks, world=world)
            else:
                train(self.config, self.path, callbacks=callbacks, world=world)


def plan(
    config: Config,
    rows: Sequence[MethodRow],
    seeds: Sequence[int],
    out: Path,
    settled: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> list[RunSpec]:
    """Return all run specs, each after its parent.

    Args:
        settled: overrides (``key.path=value``) of the configuration for some rows, by row key.

    Raises:
        ConfigError: see `row_config`.
    """
    wanted = [
        RunSpec(
            f"{row.key}, seed {seed}",
            row_config(row, config, [f"seed={seed}", *settled.get(row.key, ())]),
            out / row.key / f"seed-{seed}",
            None,
        )
        for seed in seeds
        for row in rows
    ]
    return with_prefixes(wanted, out)


def with_prefixes(wanted: Sequence[RunSpec], out: Path) -> list[RunSpec]:
    """Return the specs, each after the specs of its prefixes; a wanted run that is another's prefix serves as such."""
    places = {digest(spec.config): spec.path for spec in wanted}
    specs: dict[Path, RunSpec] = {}
    for spec in wanted:
        parent = None
        for count in range(len(spec.config.stages)):
            part = config_prefix(spec.config, count)
            path = places.get(digest(part), out / SHARED / digest(part))
            name = f"{' '.join(list(part.stages)[-1:]) or 'base'} of {spec.name}"
            specs.setdefault(path, RunSpec(name, part, path, parent))
            parent = path
        specs.setdefault(spec.path, replace(spec, parent=parent))
    return list(specs.values())


def digest(config: Config) -> str:
    """Return a digest of the settings, the seed included, that stays the same when a later version adds a setting."""
    settings = lasting_settings(as_stored(config_prefix(config, len(config.stages))))
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]


def check_specs(specs: Sequence[RunSpec]) -> None:
    """Check that existing run directories hold these settings.

    Raises:
        ConfigError: a directory holds a run with other settings.
    """
    for spec in specs:
        if not spec.started:
            continue
        there, asked = load_config(spec.path / "config.toml"), as_stored(spec.config)
        if there != asked:
            raise ConfigError(
                f"{spec.path} holds a run whose settings differ from this comparison's: {differences(there, asked)}. "
                "Choose another --out, or remove that directory."
            )
