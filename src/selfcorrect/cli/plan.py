"""The command `plan`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from selfcorrect.cli.console import COMMON, Flags, counted, echo, echo_json
from selfcorrect.cli.options import Set

if TYPE_CHECKING:
    from selfcorrect.config.schema import Config
    from selfcorrect.runs.estimate import Cluster, Estimate, Lengths, ModelShape

app = typer.Typer()


@app.command(epilog=COMMON)
def plan(
    context: typer.Context,
    *,
    config: Annotated[str, typer.Argument(help="A TOML file or the name of a built-in config.")],
    gpus: Annotated[int, typer.Option(min=1, max=65_536, help="Number of GPUs, one process each.")] = 1,
    gpu_gib: Annotated[float, typer.Option(min=1, max=65_536, help="Memory of a GPU, in GiB.")] = 80,
    tflops: Annotated[
        float, typer.Option(min=0.001, max=1e6, help="Peak bfloat16 products of a GPU, in TFLOP/s. Default: an H100.")
    ] = 790,
    bandwidth: Annotated[
        float, typer.Option(min=0.001, max=1e6, help="Memory bandwidth of a GPU, in GB/s. Default: an H100.")
    ] = 3350,
    prompt_tokens: Annotated[int, typer.Option(min=1, max=10_000_000, help="Assumed tokens of a prompt.")] = 256,
    answer_tokens: Annotated[
        int | None,
        typer.Option(min=1, max=10_000_000, help="Assumed tokens of an answer. Unset: rollout.max_tokens."),
    ] = None,
    changes: Set = None,
) -> None:
    """Estimate the GPU memory and the step time of a run.

    Reads the model's configuration, not its weights. Everything printed is an estimate by formula (docs/scale.md), and
    nothing was measured on a GPU.
    """
    flags: Flags = context.obj
    from selfcorrect.config.toml import load_config
    from selfcorrect.runs.estimate import Cluster, Lengths, ModelShape, estimate, most_rows

    settings = load_config(config, changes or [])
    cluster = Cluster(gpus, gpu_gib, tflops, bandwidth)
    lengths = Lengths(prompt_tokens, answer_tokens or settings.rollout.max_tokens)
    shape = ModelShape.of(settings)
    found = estimate(settings, shape, cluster, lengths)
    rows = most_rows(settings, shape, cluster, lengths)
    if flags.json:
        about = {"model": asdict(shape), "cluster": asdict(cluster), "lengths": asdict(lengths)}
        what = {"needed_gib": found.needed, "fits": found.fits(cluster), "largest_max_num_seqs": rows}
        echo_json({**about, "estimate": asdict(found), **what})
    else:
        echo(_text(settings, shape, cluster, lengths, found, rows))


def _text(config: Config, shape: ModelShape, cluster: Cluster, lengths: Lengths, found: Estimate, rows: int) -> str:
    trained = f"{shape.trained / 1e6:,.1f} M trained"
    lines = [
        f"Estimates for {counted(cluster.gpus, 'GPU')} of {cluster.gib:g} GiB; nothing here was measured.",
        f"{config.model.source} ({shape.name}): {shape.parameters / 1e9:.3g} B parameters in {config.model.dtype}, {trained}; "
        f"prompts of {lengths.prompt:,} tokens, answers of {lengths.answer:,}.",
        "",
    ]
    phases = {"learning": found.learning, "sampling": found.sampling}
    lines.append(f"  {'GiB on each GPU':36}" + "".join(f"{name:>10}" for name in phases))
    for name in dict.fromkeys(name for phase in phases.values() for name in phase):
        cells = [f"{phase[name]:.1f}" if name in phase else "" for phase in phases.values()]
        lines.append(f"  {name:36}" + "".join(f"{cell:>10}" for cell in cells))
    sums = [f"{sum(phase.values()):.1f}" for phase in phases.values()]
    lines += [f"  {'in all':36}" + "".join(f"{cell:>10}" for cell in sums), ""]
    lines.append(_verdict(config, cluster, found, rows))
    lines.append(
        f"A step of {config.rollout.batch_size:,} episodes: {_seconds(found.sample_s)} of sampling with the engine "
        f"{config.rollout.engine!r}, {_seconds(found.learn_s)} of learning, without verifiers."
    )
    return "\n".join(lines)


def _verdict(config: Config, cluster: Cluster, found: Estimate, rows: int) -> str:
    if found.fits(cluster):
        return (
            f"It fits: {found.needed:.0f} of {cluster.gib:g} GiB. Sampling fits up to rollout.max_num_seqs = {rows:,}."
        )
    changes = []
    if sum(found.sampling.values()) > cluster.gib and rows:
        changes.append(f"rollout.max_num_seqs = {rows}")
    if sum(found.learning.values()) > cluster.gib:
        if not config.model.gradient_checkpointing:
            changes.append("model.gradient_checkpointing = true")
        changes.append("a smaller optimizer.micro_batch_tokens")
        changes += [] if config.model.lora is not None else ["model.lora"]
    if cluster.gpus > 1 and not config.distributed.shard:
        changes.append("distributed.shard = true")
    hint = f" Try {', '.join(changes)}." if changes else ""
    return f"It does not fit: {found.needed:.0f} of {cluster.gib:g} GiB.{hint}"


def _seconds(value: float) -> str:
    return f"{value:.2g} s" if value < 10 else f"{value:,.0f} s"
