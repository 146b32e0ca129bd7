"""Whether a run that goes on from a checkpoint is the one that wrote it."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from icefall_pathways.experiment.checkpoints import CheckpointError
from icefall_pathways.languages import codes_of

#: What a checkpoint says of its run: options, masks, ranks, tokens; see `Trainer._description`.
Description = Mapping[str, Any]


def _masks(name: str) -> Callable[[Description], Any]:
    def value(run: Description) -> Any:
        found = run["masks_header"].get(name)
        return list(found) if isinstance(found, tuple) else found

    return value


# What must not change: a run that went on would mix up masks, lose its place in the data, or fail.
_DECISIVE: dict[str, Callable[[Description], Any]] = {
    "world_size": lambda run: run["world_size"],
    "accum_grad": lambda run: run["accum_grad"],
    "vocab_size": lambda run: run["vocab_size"],
    "hash of --bpe-model": lambda run: run.get("tokens"),
    "languages": lambda run: " ".join(codes_of(run["config"]["data"]["languages"])),
    "masked": lambda run: bool(run["masks_header"]),
    "optimizer": lambda run: run["config"]["training"].get("optimizer", "adamw"),
    "freeze_languages": lambda run: run["config"]["training"].get("freeze_languages", ""),
    "prune_method": lambda run: run["config"]["pruning"]["prune_method"],
    **{
        f"masks' {name}": _masks(name)
        for name in ("languages", "roots", "granularity", "allocation", "layer_sparsity", "target_sparsity")
    },
}

# Options that may change without changing what is computed, or whose effect is compared in another way.
_FREE = (
    *("exp_dir", "bpe_model", "manifest_dir", "masks", "languages", "world_size", "master_port", "num_workers"),
    *("start_epoch", "start_batch", "init_key", "reinit_vocab", "init_partial", "init_avg"),
    *("valid_interval", "valid_wer_cuts", "log_interval", "save_every_n", "keep_last_k", "tensorboard"),
    *("max_bad_batches", "scan_batch_sizes", "inf_check", "print_diagnostics"),
)


def check_same_run(
    here: Description,
    there: Description,
    weights: Mapping[str, Tensor],
    their_weights: Mapping[str, Tensor],
    folder: Path,
) -> list[str]:
    """Check that a run may go on from the checkpoint of another start of it.

    Args:
      here: The run that is to go on.
      there: What the checkpoint says of its run.
      weights: The model's.
      their_weights: The checkpoint's.
      folder: Where the checkpoint is.

    Returns:
      What has changed and may, though the run will not end as it would have, each as "--option value (was value)".

    Raises:
      CheckpointError: Something has changed that must not.
    """
    for key, value_of in _DECISIVE.items():
        now, then = value_of(here), value_of(there)
        if then is not None and now != then:
            raise CheckpointError(
                f"{folder} holds a run with {key}={then}, this one has {key}={now}: use the same options, or another "
                "--exp-dir"
            )
    changed = list(_changed_options(here["config"], there["config"]))
    if {name: value.shape for name, value in weights.items()} != {n: value.shape for n, value in their_weights.items()}:
        raise CheckpointError(
            f"{folder} holds a run of another architecture ({', '.join(changed)}): use the same options, or another "
            "--exp-dir"
        )
    now, then = here["updates_per_epoch"], there.get("updates_per_epoch")
    if then is not None and now != then:
        changed.append(f"{now} updates per epoch (were {then})")
    return changed


def _changed_options(here: Mapping[str, Any], there: Mapping[str, Any]) -> Iterator[str]:
    for part, options in here.items():
        for name, value in options.items():
            then = there.get(part, {}).get(name, value)
            if name not in _FREE and value != then:
                yield f"--{name.replace('_', '-')} {value} (was {then})"
