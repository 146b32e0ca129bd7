"""Training metrics: log file, metrics.jsonl, TensorBoard, progress bar."""

import json
import logging
import os
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

from icefall_pathways.experiment import layout
from icefall_pathways.files import atomic_write, write_errors
from icefall_pathways.launch.ranks import Rank

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from icefall_pathways.pathways.plots import Figure

logger = logging.getLogger("icefall_pathways")

LOSSES = ("loss", "simple_loss", "pruned_loss", "ctc_loss")


class LossSums:
    """Sums of losses by language, kept on the device so that the host does not wait when adding.

    Args:
      languages: Language codes.
      device: The device of the losses.
    """

    def __init__(self, languages: Sequence[str], device: torch.device) -> None:
        self._index = {language: i for i, language in enumerate(languages)}
        self._sums = torch.zeros(len(languages), len(LOSSES) + 2, dtype=torch.float64, device=device)
        self._norms = torch.zeros(len(languages), 2, dtype=torch.float64, device=device)  # sum, count

    def add(self, language: str, losses: Mapping[str, Tensor], tokens: int, seconds: float) -> None:
        """Add a batch.

        Args:
          language: Language code of the batch.
          losses: Losses by name, summed over the tokens of the batch, 0-dim; names not in `LOSSES` are ignored.
          tokens: Number of tokens.
          seconds: Seconds of audio.
        """
        row = self._sums[self._index[language]]
        for i, name in enumerate(LOSSES):
            if name in losses:
                row[i] += losses[name].detach()
        row[-2] += tokens
        row[-1] += seconds

    def add_update(self, language: str, norm: Tensor) -> None:
        """Add the gradient norm of an update, the same on all ranks."""
        row = self._norms[self._index[language]]
        row[0] += norm
        row[1] += 1

    def flush(self, rank: Rank) -> dict[str, dict[str, float]]:
        """Return mean losses per token, seconds of audio and mean gradient norm since the last flush, by language.

        The sums are over all ranks, which must call this together.
        """
        sums = rank.sum(self._sums.clone()).tolist()
        norms = self._norms.tolist()
        self._sums.zero_()
        self._norms.zero_()
        return {
            language: {name: sums[i][k] / sums[i][-2] for k, name in enumerate(LOSSES)}
            | {"audio_seconds": sums[i][-1]}
            | ({"grad_norm": norms[i][0] / norms[i][1]} if norms[i][1] else {})
            for language, i in self._index.items()
            if sums[i][-2] > 0
        }


class Speed:
    """Throughput of the training, and the share of time spent waiting for data."""

    def __init__(self) -> None:
        self._update: int | None = None
        self._since = time.monotonic()
        self._waited = 0.0

    def add_wait(self, seconds: float) -> None:
        """Add time spent waiting for data."""
        self._waited += seconds

    def flush(self, update: int, audio_seconds: float) -> dict[str, float]:
        """Return throughput, share of time spent waiting, and peak memory since the last flush, validation included.

        Args:
          update: The current update.
          audio_seconds: Seconds of audio of all ranks since the last flush.
        """
        now = time.monotonic()
        elapsed = max(now - self._since, 1e-9)
        metrics = {
            "audio_seconds_per_second": audio_seconds / elapsed,
            "data_wait_share": self._waited / elapsed,
            "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }
        if torch.cuda.is_available():
            metrics["peak_gpu_mb"] = torch.cuda.max_memory_allocated() / 2**20
        if self._update is not None:
            metrics["updates_per_second"] = (update - self._update) / elapsed
        self._update, self._since, self._waited = update, now, 0.0
        return metrics


class MetricsLog:
    """Write the metrics of a run; ranks other than 0 write the text log only.

    Args:
      exp_dir: The experiment folder.
      rank: This process.
      start_update: Number of completed updates; later records of a killed run are removed.
      num_updates: Updates of the whole run, for the progress bar.
      tensorboard: Whether to write TensorBoard files.
    """

    def __init__(self, exp_dir: Path, rank: Rank, start_update: int, num_updates: int, tensorboard: bool) -> None:
        self._main = rank.is_main
        self._path = exp_dir / layout.METRICS_FILE
        self._log_handler = _open_log(exp_dir, rank)
        if self._main:
            _remove_records_after(self._path, start_update)
        self._file = self._path.open("a", encoding="utf-8") if self._main else None
        self._writer = _open_tensorboard(exp_dir, start_update) if self._main and tensorboard else None
        self._bar = tqdm(
            total=num_updates,
            initial=start_update,
            desc=exp_dir.name,
            unit="update",
            disable=not self._main,
            mininterval=1.0,
            position=bar_position(),
        )
        self._shown: dict[str, str] = {}
        self._audio = 0.0
        self._world_size = rank.world_size
        self._started = time.monotonic()

    def advance(self, language: str, audio_seconds: float) -> None:
        """Advance the progress bar by one update on `audio_seconds` of audio of this rank."""
        self._bar.update()
        self._audio += audio_seconds
        rate = self._audio * self._world_size / (time.monotonic() - self._started)
        self._bar.set_postfix({"language": language, "audio": f"{rate:.0f}s/s"} | self._shown, refresh=False)

    def write(self, kind: str, update: int, language: str, values: Mapping[str, float]) -> None:
        """Write the metrics of one language.

        Args:
          kind: "train", "valid" or "speed".
          update: Number of completed updates.
          language: Language code, or "all".
          values: Metrics by name.
        """
        if self._file is None:
            return
        record = {
            "kind": kind,
            "update": update,
            "language": language,
            "time": time.monotonic() - self._started,
            **values,
        }
        with write_errors(self._path):
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(f"{kind}/{name}/{language}", value, update)
        if "loss" in values:
            self._shown[f"{kind} loss"] = f"{values['loss']:.3f}"
        if "data_wait_share" in values:
            self._shown["data wait"] = f"{100 * values['data_wait_share']:.1f}%"
        logger.info("%s, update %d, %s: %s", kind, update, language, _format(values))

    def draw(self, update: int, figures: Callable[[], "dict[str, Figure]"]) -> None:
        """Write figures to TensorBoard; without TensorBoard, they are not drawn."""
        if self._writer is not None:
            for name, figure in figures().items():
                self._writer.add_figure(name, figure, update)

    def close(self, error: BaseException | None = None) -> None:
        """Close all files; log `error` if one ended the training."""
        if error is not None:
            logger.error("stopped by %s: %s", type(error).__name__, error)
        self._bar.close()
        if self._file is not None:
            self._file.close()
        if self._writer is not None:
            self._writer.close()
        logger.removeHandler(self._log_handler)
        self._log_handler.close()


def bar_position() -> int | None:
    """Return the line of the progress bar if several processes share a terminal (TQDM_POSITION), else None."""
    position = os.environ.get("TQDM_POSITION")
    return int(position) if position else None


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the records of a metrics.jsonl, up to the first incomplete line, which a killed run can leave."""
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records


def _remove_records_after(path: Path, update: int) -> None:
    """Remove the records after `update`, from which the run resumes; a killed run can leave them."""
    if not path.exists():
        return
    kept = [record for record in read_metrics(path) if record["update"] <= update]
    with atomic_write(path) as temporary:
        temporary.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")


def _format(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items())


def _open_tensorboard(exp_dir: Path, start_update: int) -> "SummaryWriter":
    from torch.utils.tensorboard import SummaryWriter  # not at import time: the command line does not need it

    # TensorBoard drops the events of earlier files from `purge_step` (inclusive).
    return SummaryWriter(str(exp_dir / layout.TENSORBOARD_DIR), purge_step=start_update + 1)


def _open_log(exp_dir: Path, rank: Rank) -> logging.Handler:
    path = layout.log_file(exp_dir, datetime.now(), rank.index if rank.world_size > 1 else None)
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    return handler
