"""The command `plan`."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from selfcorrect.cli.console import COMMON, Flags, counted, echo, echo_json
from selfcorrect.cli.options import USAGE_ERROR, Set

if TYPE_CHECKING:
    from selfcorrect.config.schema import Config
    from selfcorrect.paper.gpu_cost import ComparisonCost
    from selfcorrect.runs.estimate import Estimate
    from selfcorrect.runs.model_shape import Cluster, Lengths, ModelShape
    from selfcorrect.runs.time_needed import Times

app = typer.Typer()
CPU_ADVICE = (
    "Times on a CPU may be off by a factor of two, more if other programs use it: a few steps (--set stages.NAME.steps=2) "
    "measure them, in timings.jsonl. Answers that end early take less.",
    "For a GPU: --gpus 1.",
)


@app.command(epilog=COMMON)
def plan(
    context: typer.Context,
    *,
    config: Annotated[str, typer.Argument(help="A TOML file or the name of a built-in config.")],
    cpu: Annotated[
        bool,
        typer.Option("--cpu", help="For this CPU, the default where there is no GPU and no option asks for one."),
    ] = False,
    gpus: Annotated[
        int | None, typer.Option(min=1, max=65_536, help="Number of GPUs, one process each. Unset: 1.")
    ] = None,
    gpu_gib: Annotated[
        float | None, typer.Option(min=1, max=65_536, help="Memory of a GPU, in GiB. Unset: 80.")
    ] = None,
    tflops: Annotated[
        float | None,
        typer.Option(
            min=1e-6, max=1e6, help="Peak products, in TFLOP/s. Unset: an H100's in bfloat16; measured with --cpu."
        ),
    ] = None,
    bandwidth: Annotated[
        float | None,
        typer.Option(min=0.001, max=1e6, help="Memory bandwidth, in GB/s. Unset: an H100's; measured with --cpu."),
    ] = None,
    prompt_tokens: Annotated[int, typer.Option(min=1, max=10_000_000, help="Assumed tokens of a prompt.")] = 256,
    answer_tokens: Annotated[
        int | None,
        typer.Option(min=1, max=10_000_000, help="Assumed tokens of an answer. Unset: rollout.max_tokens."),
    ] = None,
    paper: Annotated[
        bool, typer.Option("--paper", help="Also the cost of all rows of `selfcorrect paper CONFIG` together.")
    ] = False,
    seeds: Annotated[
        str, typer.Option(metavar="N", help="The seeds of --paper, as `selfcorrect paper` takes them.")
    ] = "5",
    changes: Set = None,
) -> None:
    """Estimate the memory and the time of a run.

    For GPUs with --gpus N, else for this machine. Reads the model's configuration, not its weights: a directory with only
    its config.json is enough. Everything printed is an estimate by formula (docs/scale.md), and nothing was measured on a
    GPU. For a CPU, the rates of products and memory are measured in two seconds.
    """
    flags: Flags = context.obj
    from selfcorrect.config.toml import load_config, with_overrides
    from selfcorrect.engines.factory import check_processes, engine_kind
    from selfcorrect.models.dtypes import fast_dtype
    from selfcorrect.runs.checks import missing_here
    from selfcorrect.runs.estimate import check_context, estimate, most_cache, most_rows
    from selfcorrect.runs.model_shape import Cluster, Lengths, ModelShape
    from selfcorrect.tasks.base import checked_task

    settings = load_config(config, changes or [])
    if cpu and (gpus or gpu_gib):
        raise USAGE_ERROR("give --cpu or the GPUs (--gpus, --gpu-gib), not both", ctx=context)
    on_cpu = cpu or not (gpus or gpu_gib or _names_gpu(settings))
    if settings.model.dtype == "auto":
        settings = with_overrides(settings, [f"model.dtype={fast_dtype('cpu') if on_cpu else 'bfloat16'}"])
    check_processes(settings.rollout.engine, engine_kind(settings.rollout.engine), gpus or 1)
    checked_task(settings.task.name, settings.task.options)
    absent = missing_here(settings)
    lengths = Lengths(prompt_tokens, answer_tokens or settings.rollout.max_tokens)
    shape = ModelShape.of(settings)
    check_context(settings, shape, lengths)
    if on_cpu:
        from selfcorrect.runs.cpu_rates import this_cpu

        cluster = this_cpu(settings.model.dtype, tflops=tflops, bandwidth=bandwidth)
    else:
        given: dict[str, Any] = {"gib": gpu_gib, "tflops": tflops, "bandwidth": bandwidth}
        cluster = replace(Cluster(gpus or 1), **{name: value for name, value in given.items() if value is not None})
    found = estimate(settings, shape, cluster, lengths)
    one = estimate(settings, shape, replace(cluster, gpus=1), lengths)
    rows = most_rows(settings, shape, cluster, lengths)
    cache = most_cache(settings, shape, cluster, lengths)
    rows_cost = _paper_cost(settings, seeds, shape, cluster, lengths) if paper else None
    if flags.json:
        about = {"model": asdict(shape), "cluster": asdict(cluster), "lengths": asdict(lengths)}
        what: dict[str, Any] = {"needed_gib": found.needed, "fits": found.fits(cluster), "largest_max_num_seqs": rows}
        what |= {"largest_cache_gib": cache, "speedup": _faster(one.times, found.times)}
        what |= {"run_s": found.times.run_s, "evaluations_s": found.times.evaluations_s, "missing_here": absent}
        if rows_cost is not None:
            what["paper"] = asdict(rows_cost)
        parts = {"learning": found.learning, "sampling": found.sampling, "times": asdict(found.times)}
        echo_json({**about, "estimate": parts, **what})
        return
    lines = [
        *_heading(settings, shape, cluster, lengths),
        *_table(found, cluster),
        _verdict(settings, cluster, found, rows, cache),
        *_duration(settings, found.times),
        *_speedup(settings, cluster, one.times, found.times),
        *(CPU_ADVICE if on_cpu else ()),
        *([] if rows_cost is None else _paper_lines(rows_cost, cluster, lengths)),
        *(f"`train` would be rejected on this machine: {sentence}" for sentence in absent),
    ]
    echo("\n".join(lines))


def _names_gpu(config: Config) -> bool:
    """Return whether a run on this machine would use a GPU, or its settings need one."""
    import torch

    from selfcorrect.config.engine_names import VLLM

    device = config.model.device
    return device.startswith("cuda") or config.rollout.engine == VLLM or (device != "cpu" and torch.cuda.is_available())


def _machine(cluster: Cluster, dtype: str) -> str:
    if not cluster.cpu:
        return f"Estimates for {counted(cluster.gpus, 'GPU')} of {cluster.gib:g} GiB; nothing here was measured."
    import torch

    return (
        f"Estimates for this CPU with {counted(torch.get_num_threads(), 'thread')} and {cluster.gib:.0f} GiB, by formula from "
        f"{cluster.tflops:.2g} TFLOP/s in {dtype} and {cluster.bandwidth:.0f} GB/s."
    )


def _heading(config: Config, shape: ModelShape, cluster: Cluster, lengths: Lengths) -> list[str]:
    trained = f"{shape.trained / 1e6:,.1f} M trained"
    return [
        _machine(cluster, config.model.dtype),
        f"{config.model.source} ({shape.name}): {shape.parameters / 1e9:.3g} B parameters in {config.model.dtype}, {trained}; "
        f"prompts of {lengths.prompt:,} tokens, answers of {lengths.answer:,}.",
        "",
    ]


def _table(found: Estimate, cluster: Cluster) -> list[str]:
    phases = {"learning": found.learning, "sampling": found.sampling}
    lines = [
        f"  {'GiB of memory' if cluster.cpu else 'GiB on each GPU':36}" + "".join(f"{name:>10}" for name in phases)
    ]
    for name in dict.fromkeys(name for phase in phases.values() for name in phase):
        cells = [f"{phase[name]:.1f}" if name in phase else "" for phase in phases.values()]
        lines.append(f"  {name:36}" + "".join(f"{cell:>10}" for cell in cells))
    sums = [f"{sum(phase.values()):.1f}" for phase in phases.values()]
    return [*lines, f"  {'in all':36}" + "".join(f"{cell:>10}" for cell in sums), ""]


def _verdict(config: Config, cluster: Cluster, found: Estimate, rows: int | None, cache: float | None) -> str:
    size = f"{found.needed:{'.1f' if cluster.cpu else '.0f'}} of {cluster.gib:.4g} GiB"
    if found.fits(cluster):
        room = (
            f"vLLM's cache fits up to vllm.cache_gib = {cache:.0f}"
            if rows is None
            else (f"Sampling fits up to rollout.max_num_seqs = {rows:,}")
        )
        return f"It fits: {size}. {room}."
    changes = []
    if cache:
        changes.append(f"vllm.cache_gib = {cache:.2g}")
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
    return f"It does not fit: {size}.{hint}"


def _paper_cost(config: Config, seeds: str, shape: ModelShape, cluster: Cluster, lengths: Lengths) -> ComparisonCost:
    """Return the cost of all built-in rows, as if nothing was there yet."""
    from selfcorrect.paper.extra_evaluations import extra_evaluations
    from selfcorrect.paper.gpu_cost import comparison_cost
    from selfcorrect.paper.plan import plan
    from selfcorrect.paper.rows import ROWS, chosen_seeds

    nowhere = Path("comparison")
    specs = plan(config, ROWS, chosen_seeds(seeds), nowhere)
    return comparison_cost(specs, extra_evaluations(specs, nowhere, planned=True), shape, cluster, lengths)


def _paper_lines(cost: ComparisonCost, cluster: Cluster, lengths: Lengths) -> list[str]:
    where = "this CPU" if cluster.cpu else counted(cluster.gpus, "GPU")
    return [
        f"All rows of the paper's comparison, estimates as above: {counted(cost.runs, 'run')} and "
        f"{counted(cost.extra_evaluations, 'extra evaluation')}, "
        f"at most {cost.completions / 1e6:,.2f} M completions ({cost.trained / 1e6:,.2f} M in training), "
        f"{cost.completions * lengths.answer / 1e9:,.2f} G sampled tokens, {cost.hours:,.0f} h on {where}."
    ]


def _duration(config: Config, times: Times) -> list[str]:
    largest = max(map(config.batch_size, config.stages.values()), default=config.rollout.batch_size)
    sampled = f"{_seconds(times.sample_s)} of sampling with the engine {config.rollout.engine!r}"
    if not times.sample_s:
        sampled = "nothing to sample"
    step = f"A step of {largest:,} episodes: {sampled}, {_seconds(times.learn_s)} of learning, without verifiers."
    return [
        step if config.stages else "No stage: nothing is trained.",
        f"The whole run: {_long(times.run_s)}, of which evaluations {_long(times.evaluations_s)} "
        f"({_long(times.looks_s)} of looks at development problems, {_long(times.final_s)} of final evaluations).",
    ]


def _speedup(config: Config, cluster: Cluster, one: Times, many: Times) -> list[str]:
    """Say how much faster several GPUs are and, if they hardly are, which part does not shrink and what to raise."""
    if cluster.gpus == 1 or not many.step_s:
        return []
    faster = _faster(one, many)
    line = f"{cluster.gpus} GPUs make a step {faster:.1f} times as fast as one"
    if faster > cluster.gpus / 2:
        return [f"{line}."]
    why = "a token waits for the launch of kernels" if many.launching else "every token reads all weights"
    other = ", take rollout.engine = 'vllm'," if many.launching else ""
    return [
        f"{line}: sampling still takes {_seconds(many.sample_s)}, because {why}, however few episodes a GPU has. Raise "
        f"rollout.batch_size, which then costs little time{other} or take fewer GPUs."
    ]


def _faster(one: Times, many: Times) -> float:
    return one.step_s / many.step_s if many.step_s else 1.0


def _seconds(value: float) -> str:
    return f"{value:.2g} s" if value < 10 else f"{value:,.0f} s"


def _long(seconds: float) -> str:
    if seconds < 60:
        return _seconds(seconds)
    return f"{seconds / 60:.2g} min" if seconds < 3600 else f"{seconds / 3600:,.1f} h"
