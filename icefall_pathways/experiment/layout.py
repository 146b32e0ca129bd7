"""Names of all files and folders in an experiment folder.

```
EXP_DIR/
  config.json                    options and command of the training or mask search
  init-from.json                 comparison of the weights of --init-from with the model
  bpe.model, tokens.txt          tokenizer of the model
  features.json                  options of the features that the model was trained on
  masks.safetensors, masks.json  masks, and their description
  masks-start.safetensors, .json initial masks of a training that changes its masks
  epoch-N.pt                     checkpoint at the end of epoch N
  checkpoint-B.pt                checkpoint after B updates
  best-valid-loss.pt             checkpoint with the lowest validation loss
  metrics.jsonl                  training and validation metrics
  .lock                          held by the training that writes to the folder
  log/log-train-DATE[-RANK]      text logs
  tensorboard/                   event files
  bad-model-RANK.pt              weights at the time of a failure
  batch-UUID.pt                  batches with a non-finite loss or gradient
  language_id.json               calibrated language identification (previously language_choice.json)
  METHOD/                        results of decoding whole utterances, such as greedy_search/
  streaming/METHOD/              results of streaming decoding
```

A mask search writes one such folder per language inside its own. Result files are named `KIND-TEST_SET-SUFFIX.txt`,
such as `recogs-mls-french-test-epoch-30-avg-9-greedy_search.txt`. While a decoding run is not complete, the folders
`parts-TEST_SET-SUFFIX/` hold its finished parts.
"""

import re
from datetime import datetime
from pathlib import Path
from typing import Literal
from uuid import uuid4

CONFIG_FILE = "config.json"
INIT_FROM_FILE = "init-from.json"
BPE_MODEL_FILE = "bpe.model"
TOKENS_FILE = "tokens.txt"
FEATURES_FILE = "features.json"
MASKS_FILE = "masks.safetensors"
INITIAL_MASKS_FILE = "masks-start.safetensors"
BEST_CHECKPOINT_FILE = "best-valid-loss.pt"
METRICS_FILE = "metrics.jsonl"
LOCK_FILE = ".lock"
LOG_DIR = "log"
TENSORBOARD_DIR = "tensorboard"
LANGUAGE_ID_FILE = "language_id.json"
PREVIOUS_LANGUAGE_ID_FILE = "language_choice.json"  # its name in previous versions, still read

ResultKind = Literal["recogs", "errs", "wer-summary", "nbest", "language-id", "latency", "parts"]


def batch_checkpoint(exp_dir: Path, update: int) -> Path:
    """Return the path of the checkpoint after `update` updates."""
    return exp_dir / f"checkpoint-{update}.pt"


def epoch_checkpoint(exp_dir: Path, epoch: int) -> Path:
    """Return the path of the checkpoint at the end of `epoch`."""
    return exp_dir / f"epoch-{epoch}.pt"


def batch_checkpoints(exp_dir: Path) -> list[Path]:
    """Return the existing checkpoints that are named after updates, oldest first."""
    return _numbered(exp_dir, "checkpoint")


def epoch_checkpoints(exp_dir: Path) -> list[Path]:
    """Return the existing checkpoints that are named after epochs, oldest first."""
    return _numbered(exp_dir, "epoch")


def has_checkpoints(exp_dir: Path) -> bool:
    """Return True if a training has written a numbered checkpoint to the folder, readable or not."""
    return bool(batch_checkpoints(exp_dir) or epoch_checkpoints(exp_dir))


def checkpoints_up_to(path: Path) -> list[Path]:
    """Return the existing checkpoints named like `path` (after updates or epochs), oldest first and `path` last.

    If `path` is not a numbered checkpoint, it is the only one.
    """
    paths = _numbered(path.parent, path.stem.rsplit("-", 1)[0])
    return paths[: paths.index(path) + 1] if path in paths else [path]


def log_file(exp_dir: Path, start: datetime, rank: int | None = None) -> Path:
    """Return the path of the text log of a training started at `start`; `rank` is None if there is only one."""
    suffix = "" if rank is None else f"-{rank}"
    return exp_dir / LOG_DIR / f"log-train-{start:%Y-%m-%d-%H-%M-%S}{suffix}"


def bad_model_file(exp_dir: Path, rank: int) -> Path:
    """Return the path for the weights that a rank saves when it fails."""
    return exp_dir / f"bad-model-{rank}.pt"


def new_bad_batch_file(exp_dir: Path) -> Path:
    """Return a new, unique path for a batch that is saved for inspection."""
    return exp_dir / f"batch-{uuid4()}.pt"


def language_id_file(exp_dir: Path) -> Path:
    """Return the path of the calibrated language identification; under its previous name if only that exists."""
    path, previous = exp_dir / LANGUAGE_ID_FILE, exp_dir / PREVIOUS_LANGUAGE_ID_FILE
    return previous if previous.exists() and not path.exists() else path


def results_dir(exp_dir: Path, method: str, streaming: bool = False) -> Path:
    """Return the folder for the results of a decoding method."""
    return exp_dir / "streaming" / method if streaming else exp_dir / method


def result_file(folder: Path, kind: ResultKind, test_set: str, suffix: str, extension: str = ".txt") -> Path:
    """Return the path of a result file.

    Args:
      folder: See `results_dir`.
      kind: First part of the name.
      test_set: For example "mls-french-test", or "all-mls-test" for all languages.
      suffix: The decoding settings.
      extension: With its dot.
    """
    return folder / f"{kind}-{test_set}-{suffix}{extension}"


def _numbered(exp_dir: Path, kind: str) -> list[Path]:
    paths = {}
    for path in exp_dir.glob(f"{kind}-*.pt"):
        if match := re.fullmatch(rf"{kind}-(\d+)\.pt", path.name):
            paths[int(match[1])] = path
    return [paths[index] for index in sorted(paths)]
