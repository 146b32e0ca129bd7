"""Costs of systems, read from experiment folders."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from icefall_pathways.experiment import checkpoints, layout
from icefall_pathways.models.config import ModelConfig
from icefall_pathways.models.multiply_adds import decoding_per_second, forward_per_second, model_to_count
from icefall_pathways.options import to_dict
from icefall_pathways.pathways.masks import PathwayMasks
from icefall_pathways.reporting.costs import Costs, TrainingLength, format_count, join_languages, mean_costs, read_costs
from icefall_pathways.training.config import ExperimentConfig, TrainingConfig

MODEL = ModelConfig(
    num_encoder_layers="1", encoder_dim="16", nhead=2, dim_feedforward=16, subsampling_channels="2,4", ctc_head=True
)
VOCAB_SIZE = 20
LANGUAGES = ("en", "fr")
SUMMARY = "streaming/modified_beam_search/wer-summary-all-mls-test-epoch-1-modified_beam_search-beam-size-4.json"


def write_training(root: Path, folder: str, updates: int, seconds: float, **options: object) -> Path:
    """Write options, metrics and a checkpoint of a training that ran in `root` with relative paths."""
    exp_dir = root / folder
    exp_dir.mkdir(parents=True)
    config = to_dict(ExperimentConfig(TrainingConfig(exp_dir=Path(folder), **options), model=MODEL))
    (exp_dir / layout.CONFIG_FILE).write_text(json.dumps(config))
    write_metrics(exp_dir, updates, seconds)
    plain = {"update": updates, "epoch": 1, "vocab_size": VOCAB_SIZE, "config": config}
    tensors = {"model": {}, "model_avg": {}, "optimizer": {}, "masks": {}}
    checkpoints.save(tensors | plain, layout.batch_checkpoint(exp_dir, updates))
    return exp_dir


def write_metrics(folder: Path, updates: int, seconds: float) -> None:
    """Write records of two languages at two updates that sum to `seconds`, and a record of validation."""
    folder.mkdir(parents=True, exist_ok=True)
    records = [
        {"kind": "train", "update": update, "language": language, "audio_seconds": seconds / 4}
        for update in (updates // 2, updates)
        for language in LANGUAGES
    ]
    records.append({"kind": "valid", "update": updates, "language": "en", "audio_seconds": 1e9})
    (folder / layout.METRICS_FILE).write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture
def experiments(tmp_path: Path) -> Path:
    root = tmp_path / "made-here"
    write_training(root, "exp/dense", 30, 300.0)
    for language, seconds in (("en", 40.0), ("fr", 60.0)):
        write_metrics(root / "exp/masks" / language, 8, seconds)
    masks = Path("exp/masks/masks.safetensors")
    write_training(root, "exp/pathways", 20, 200.0, init_from=Path("exp/dense"), masks=masks)
    write_training(root, "exp/more", 10, 100.0, init_from=Path("exp/pathways"), masks=masks)
    return root.rename(tmp_path / "moved")


def costs_of(exp_dir: Path, masks: PathwayMasks | None = None, summary: str = SUMMARY) -> Costs:
    return read_costs(exp_dir, exp_dir / summary, LANGUAGES, masks)


def test_search_and_initial_model_are_found_after_a_move(experiments):
    dense, pathways = costs_of(experiments / "exp/dense"), costs_of(experiments / "exp/pathways")
    assert (dense.initial, dense.search, dense.training) == (
        TrainingLength(),
        TrainingLength(),
        TrainingLength(30, 300),
    )
    assert (pathways.initial, pathways.search) == (TrainingLength(30, 300), TrainingLength(16, 100)), (
        "both languages' searches"
    )
    assert pathways.training == TrainingLength(20, 200)


def test_the_initial_model_includes_what_was_before_it(experiments):
    more = costs_of(experiments / "exp/more")
    assert more.initial == TrainingLength(30 + 16 + 20, 300 + 100 + 200) and more.search == TrainingLength(16, 100)


def test_lengths_that_are_not_recorded_are_unknown(experiments):
    (experiments / "exp/dense").rename(experiments / "elsewhere")
    cells = costs_of(experiments / "exp/pathways").cells()
    assert cells[0] == "unknown + 16 + 20" and cells[2] == "unknown" and cells[1] != "unknown"


def test_random_masks_have_no_search(experiments):
    folder = experiments / "exp/masks"
    shutil.rmtree(folder)
    masks = PathwayMasks.dense(model_to_count(MODEL, VOCAB_SIZE), LANGUAGES)
    for method, search in (("random", "0"), ("imp", "unknown")):
        masks.header = replace(masks.header, method=method)
        masks.save(folder / layout.MASKS_FILE)
        assert costs_of(experiments / "exp/pathways").cells()[:2] == [f"30 + {search} + 20", search]


def test_an_update_takes_three_forward_passes(experiments):
    costs = costs_of(experiments / "exp/pathways")
    forward = forward_per_second(model_to_count(MODEL, VOCAB_SIZE)).total()
    assert costs.cells()[1:3] == [format_count(3 * forward * 100), format_count(3 * forward * (300 + 200))]


def test_pruned_weights_are_executed_but_not_active(experiments):
    model = model_to_count(MODEL, VOCAB_SIZE)
    masks = PathwayMasks.dense(model, LANGUAGES, ["encoder", "decoder"])
    name = "encoder.emformer_layers.0.pos_ff.1.weight"
    keep = torch.ones_like(masks.codes[name], dtype=torch.bool)
    keep[:4] = False  # a quarter
    masks.set_mask(name, "fr", keep)
    costs = costs_of(experiments / "exp/pathways", masks)
    counts = decoding_per_second(model, num_hypotheses=4)
    assert costs.executed == costs.active["en"] == counts.total()
    assert costs.active["fr"] == counts.total() - counts[name] / 4


def test_the_search_follows_from_the_path_of_the_results(experiments):
    model, exp_dir = model_to_count(MODEL, VOCAB_SIZE), experiments / "exp/pathways"
    greedy = costs_of(exp_dir, summary="greedy_search/wer-summary-all-mls-test-epoch-1-greedy_search.json")
    assert greedy.executed == decoding_per_second(model, num_hypotheses=1, streaming=False).total()
    assert costs_of(exp_dir).executed == decoding_per_second(model, num_hypotheses=4).total()


def test_models_of_single_languages_share_search_and_initial_model():
    def model(language: str, updates: int, active: float) -> Costs:
        return Costs(
            TrainingLength(30, 300),
            TrainingLength(16, 100),
            TrainingLength(updates, 10.0),
            1.0,
            9.0,
            {language: active},
        )

    joined = join_languages([model("en", 5, 3.0), model("fr", 6, 4.0)])
    assert joined == Costs(
        TrainingLength(30, 300), TrainingLength(16, 100), TrainingLength(11, 20.0), 1.0, 9.0, {"en": 3.0, "fr": 4.0}
    )


def test_costs_of_seeds_are_averaged():
    runs = [
        Costs(TrainingLength(30, s), TrainingLength(), TrainingLength(20, 2 * s), 1.0, 9.0, {"en": s})
        for s in (100.0, 300.0)
    ]
    assert mean_costs(runs) == Costs(
        TrainingLength(30, 200), TrainingLength(), TrainingLength(20, 400), 1.0, 9.0, {"en": 200.0}
    )


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.00 k"),
        (9995, "10.0 k"),
        (99_950, "100 k"),
        (999_499, "999 k"),
        (999_500, "1.00 M"),
        (1.84e12, "1.84 T"),
        (math.nan, "unknown"),
    ],
)
def test_counts_have_three_significant_digits(count, text):
    assert format_count(count) == text


def test_an_experiment_without_checkpoint_is_an_error(tmp_path):
    with pytest.raises(checkpoints.CheckpointError, match="no checkpoint in"):
        costs_of(tmp_path)
    (tmp_path / "epoch-1.pt").write_bytes(b"PK")
    with pytest.raises(checkpoints.CheckpointError, match=r"epoch-1\.pt.* is damaged"):
        costs_of(tmp_path)
