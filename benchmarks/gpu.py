#!/usr/bin/env python3
r"""Train and decode the demo's models on a GPU in several precisions.

Usage, in egs/mls/ASR, after the data preparation (./run.sh --demo 1 --stop-stage 0):

  ../../../benchmarks/gpu.py --output exp/gpu

For each precision: the dense model, its mask search, the pathways, and decoding of the test set with both models,
whole utterances and streams, by modified beam search. All precisions share the GPU, so their speeds are lower bounds.
Results are written to results.md and results.json, those of finished jobs also if others fail or are stopped.
"""

import json
import statistics
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from icefall_pathways.experiment import layout
from icefall_pathways.files import read_json
from icefall_pathways.options import parse, run_script
from icefall_pathways.recipe import experiments
from icefall_pathways.recipe.jobs import DONE_MARK, Job, Step, run_jobs
from icefall_pathways.recipe.presets import DEMO
from icefall_pathways.recipe.run import RunConfig
from icefall_pathways.reporting.results import newest_summary
from icefall_pathways.training.metrics import read_metrics

PRECISIONS = {"float32": "", "float16": " --use-fp16 1", "bfloat16": " --use-bf16 1"}
SYSTEMS = ("dense", "pathways")
METHODS = {"decode": "modified_beam_search", "streaming_decode": "streaming/modified_beam_search"}


@dataclass(frozen=True)
class GpuConfig:
    """Options of the benchmark."""

    output: Path = Path("exp/gpu")
    """Folder for experiments."""

    results: Path = Path("exp/gpu")
    """Folder for results.md and results.json."""

    data_dir: Path = DEMO.data_dir
    """Folder of the prepared data."""

    precisions: str = "float16 bfloat16"
    """Precisions, separated by spaces: float32, float16, bfloat16."""

    num_updates: int = 3000
    """Updates of the dense model; the other trainings have their usual share of it."""


def recipe(config: GpuConfig, precision: str) -> RunConfig:
    """Return the options of the demo in a precision."""
    share = config.num_updates / 3000
    options = " --rnnt-loss builtin" + PRECISIONS[precision]
    return replace(
        DEMO,
        data_dir=config.data_dir,
        exp_root=config.output / precision,
        mask_updates=round(share * DEMO.mask_updates),
        finetune_updates=round(share * DEMO.finetune_updates),
        train_args=DEMO.train_args.replace("--num-updates 3000", f"--num-updates {config.num_updates}") + options,
        search_args=DEMO.search_args + options,
        finetune_args=DEMO.finetune_args + options,
    )


def jobs_of(run: RunConfig) -> list[Job]:
    """Return the jobs of one precision: a chain of trainings, then decoding."""
    root, precision = run.exp_root, run.exp_root.name
    dense, masks, pathways = (root / name for name in ("dense", "masks", "pathways"))
    masks_file = str(masks / layout.MASKS_FILE)
    commands = {
        dense: experiments.train_dense_command(run, dense),
        masks: experiments.search_command(run, dense, masks, "each-language", run.mask_updates, str(run.sparsity)),
        pathways: experiments.finetune_command(run, dense, pathways, run.finetune_updates, "--masks", masks_file),
    }
    jobs: list[Job] = []
    for folder, command in commands.items():
        folder.mkdir(parents=True, exist_ok=True)
        steps = (Step(command, folder / DONE_MARK, " ".join(command)),)
        after = (jobs[-1].name,) if jobs else ()
        jobs.append(Job(f"{precision}-{folder.name}", steps, after, parallel=True, log=folder / "output.txt"))
    for system in SYSTEMS:
        for script in METHODS:
            command = experiments.decode_command(run, script, root / system, "test")
            name = f"{precision}-{script}-{system}"
            after = (f"{precision}-{system}",)
            jobs.append(Job(name, (Step(command),), after, parallel=True, log=root / f"{script}-{system}.txt"))
    return jobs


def is_trained(folder: Path) -> bool:
    """Return whether the training has written its speed."""
    path = folder / layout.METRICS_FILE
    return path.exists() and any("updates_per_second" in record for record in read_metrics(path))


def row_of(folder: Path) -> dict[str, Any]:
    """Return the results of a system: validation loss, word error rates, speed and memory of its training."""
    records = read_metrics(folder / layout.METRICS_FILE)
    validations = [record for record in records if record["kind"] == "valid"]
    last = [record["loss"] for record in validations if record["update"] == validations[-1]["update"]]
    speeds = [record for record in records if record["kind"] == "speed" and "updates_per_second" in record]
    row: dict[str, Any] = {"precision": folder.parent.name, "system": folder.name, "updates": records[-1]["update"]}
    row["valid loss"] = statistics.mean(last) if last else None
    for script, method in METHODS.items():
        with suppress(ValueError):  # not decoded
            summary = read_json(newest_summary(folder.name, folder / method, "test"))
            row[f"WER (%), {script}"] = summary["average_wer"]
    row["updates/s"] = statistics.median(record["updates_per_second"] for record in speeds)
    row["peak GPU memory (MB)"] = max(record.get("peak_gpu_mb", 0.0) for record in speeds)
    return row


def write_results(folder: Path, systems: Sequence[Path]) -> None:
    """Write and print the results of all systems whose training has started."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    rows = [row_of(system) for system in systems if is_trained(system)]
    report = {"device": device, "torch": torch.__version__, "results": rows}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(report, indent=2) + "\n")
    table = tabulate(rows, headers="keys", tablefmt="pipe", floatfmt=".4g")
    (folder / "results.md").write_text(f"{device}, torch {torch.__version__}\n\n{table}\n")
    print(table)


def main() -> None:
    """Run the trainings and write the results."""
    config = parse(GpuConfig, __doc__)
    runs = [recipe(config, precision) for precision in config.precisions.split()]
    jobs = [job for run in runs for job in jobs_of(run)]
    try:
        run_jobs(jobs, 5 * len(runs), experiments.environment(runs[0]))
    finally:
        write_results(config.results, [run.exp_root / system for run in runs for system in SYSTEMS])


if __name__ == "__main__":
    run_script(main)
