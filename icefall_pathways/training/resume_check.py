"""Check that a resumed run is compatible with its checkpoint."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from icefall_pathways.experiment.checkpoints import CheckpointError
from icefall_pathways.languages import normalize_languages

#: Properties of a run that its checkpoints store: options, masks, ranks, tokens; see `describe_run`.
Description = Mapping[str, Any]


def _masks_property(name: str) -> Callable[[Description], Any]:
    def value_of(run: Description) -> Any:
        value = run["masks_header"].get(name)
        return list(value) if isinstance(value, tuple) else value

    return value_of


def _join(languages: str | list[str]) -> str:
    return " ".join(normalize_languages(languages))  # older checkpoints store what the user typed


# Properties that must not change: otherwise masks or the position in the data would be wrong.
_FIXED_PROPERTIES: dict[str, Callable[[Description], Any]] = {
    "vocab_size": lambda run: run["vocab_size"],
    "hash of --bpe-model": lambda run: run.get("tokens"),
    "languages": lambda run: _join(run["config"]["data"]["languages"]),
    "masked": lambda run: bool(run["masks_header"]),
    "optimizer": lambda run: run["config"]["training"].get("optimizer", "adamw"),
    "freeze_languages": lambda run: " ".join(
        normalize_languages(run["config"]["training"].get("freeze_languages", ""))
    ),
    "level_norm": lambda run: run["config"]["data"].get("level_norm", "none"),
    "prune_method": lambda run: run["config"]["pruning"]["prune_method"],
    **{
        f"masks' {name}": _masks_property(name)
        for name in ("languages", "roots", "granularity", "allocation", "layer_sparsity", "target_sparsity")
    },
}

# Values of options in runs of versions that did not have these options, if they are not the present defaults.
_PREVIOUS_VALUES = {
    "volume_perturb": False,
    "shift_perturb": 0.0,
    "silence_perturb": 0.0,
    "join_perturb": 0.0,
    "level_norm": "none",
}

# Options that can change without an effect on the weights, or that are compared in another way.
_IGNORED_OPTIONS = (
    *("accum_grad", "index_dir", "allow_new_batch_size"),
    *("exp_dir", "bpe_model", "manifest_dir", "masks", "languages", "world_size", "master_port", "num_workers"),
    *("freeze_languages", "start_epoch", "start_batch", "init_key", "reinit_vocab", "init_partial", "init_avg"),
    *("valid_interval", "valid_wer_cuts", "log_interval", "tensorboard"),
    *("save_every_n", "keep_last_k", "keep_last_epochs"),
    *("max_bad_batches", "scan_batch_sizes", "inf_check", "print_diagnostics"),
)


def check_resumable(
    current: Description,
    stored: Description,
    weights: Mapping[str, Tensor],
    stored_weights: Mapping[str, Tensor],
    folder: Path,
    allow_new_batch_size: bool = False,
) -> list[str]:
    """Check that a run can resume from a checkpoint.

    Args:
      current: Properties of the run.
      stored: Properties of the run that wrote the checkpoint.
      weights: Weights of the model.
      stored_weights: Weights in the checkpoint.
      folder: The experiment folder, for messages.
      allow_new_batch_size: Allow updates of another batch size.

    Returns:
      The differences that are allowed but change the result of the run, each as "--option value (was value)".

    Raises:
      CheckpointError: A difference is not allowed.
    """
    for name, value_of in _FIXED_PROPERTIES.items():
        value, stored_value = value_of(current), value_of(stored)
        if stored_value is not None and value != stored_value:
            raise CheckpointError(
                f"{folder} holds a run with {name}={stored_value}, this one has {name}={value}: use the same options, "
                "or another --exp-dir (--exp-root of run.sh)"
            )
    _check_batch_size(current, stored, folder, allow_new_batch_size)
    changes = list(_changed_options(current["config"], stored["config"]))
    shapes = {name: value.shape for name, value in weights.items()}
    if shapes != {name: value.shape for name, value in stored_weights.items()}:
        raise CheckpointError(
            f"{folder} holds a run of another architecture ({', '.join(changes)}): use the same options, or another "
            "--exp-dir (--exp-root of run.sh)"
        )
    (batches, _), (stored_batches, _) = batch_size(current), batch_size(stored)
    if batches != stored_batches:
        changes.append(f"{batches} batches per update (were {stored_batches})")
    if "pass_lengths" in stored:  # the state of the sampler of a previous version
        changes.append(
            "training cuts from here on in the order of the current version (were in that of an earlier one)"
        )
    updates, stored_updates = current["updates_per_epoch"], stored.get("updates_per_epoch")
    if stored_updates is not None and updates != stored_updates:
        changes.append(f"{updates} updates per epoch (were {stored_updates})")
    return changes


def batch_size(run: Description) -> tuple[int, float]:
    """Return the number of batches per update, over all ranks, and the seconds of a batch.

    Runs with the same values process the same batches in each update, however they are distributed over ranks and
    accumulation steps.
    """
    return run["world_size"] * run["accum_grad"], run["config"]["data"]["max_duration"]


def _check_batch_size(current: Description, stored: Description, folder: Path, may_change: bool) -> None:
    (batches, seconds), (stored_batches, stored_seconds) = batch_size(current), batch_size(stored)
    if (batches, seconds) == (stored_batches, stored_seconds):
        return
    if not may_change:
        accum_grad, rest = divmod(stored_batches, current["world_size"])
        advice = f"another --world-size, {stored_batches} or a divisor of it," if rest else f"--accum-grad {accum_grad}"
        raise CheckpointError(
            f"{folder} holds a run with {stored_batches} batches (--world-size times --accum-grad) of --max-duration "
            f"{stored_seconds:g} per update, this one has {batches} of {seconds:g}: use {advice} and --max-duration "
            f"{stored_seconds:g} to continue with the same batches, or --allow-new-batch-size 1 to continue with others"
        )
    if current["config"]["pruning"]["prune_method"] != "none" and not current["config"]["training"]["num_updates"]:
        raise CheckpointError(
            f"{folder} holds a run that changes masks at updates given by --num-epochs, and with another batch size an "
            "epoch has another number of updates: specify --num-updates"
        )


def _changed_options(current: Mapping[str, Any], stored: Mapping[str, Any]) -> Iterator[str]:
    for group, options in current.items():
        for name, value in options.items():
            stored_value = stored.get(group, {}).get(name, _PREVIOUS_VALUES.get(name, value))
            if name not in _IGNORED_OPTIONS and value != stored_value:
                yield f"--{name.replace('_', '-')} {value} (was {stored_value})"
