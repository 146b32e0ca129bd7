import json
import os
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_run
import torch
from torch import nn

from icefall_pathways import cli
from icefall_pathways.data.datamodule import SpeechDataModule
from icefall_pathways.data.tokenizer import Tokenizer
from icefall_pathways.experiment import checkpoints, layout
from icefall_pathways.launch.ranks import Rank, launch
from icefall_pathways.models.config import ModelConfig
from icefall_pathways.models.regularizers import Scheduled
from icefall_pathways.models.transducer import build_model
from icefall_pathways.optim.masked_adamw import MaskedAdamW
from icefall_pathways.optim.scaled_adam import ScaledAdam
from icefall_pathways.pathways.masks import PathwayMasks
from icefall_pathways.training import runs
from icefall_pathways.training.config import ExperimentConfig, PruningConfig, TrainingConfig
from icefall_pathways.training.metrics import read_metrics
from icefall_pathways.training.optimization import build_optimizer, with_optimizer
from icefall_pathways.training.train_state import batch_seed
from icefall_pathways.training.trainer import Trainer
from icefall_pathways.training.update import regularizer_position

LANGUAGES = ["en", "fr", "it"]


def final(exp_dir):
    return checkpoints.newest(exp_dir)[1]


def assert_same(a, b):
    for part in ("model", "model_avg", "masks"):
        assert list(a[part]) == list(b[part])
        assert all(torch.equal(a[part][name], b[part][name]) for name in a[part]), part
    for index, state in a["optimizer"].items():
        assert all(torch.equal(value, b["optimizer"][index][key]) for key, value in state.items())
    assert a["update"] == b["update"] and a["best_valid_loss"] == b["best_valid_loss"]


@pytest.fixture(scope="module")
def dense(corpus, tmp_path_factory):
    """Return the folder of a finished dense training."""
    exp_dir = tmp_path_factory.mktemp("exp") / "dense"
    runs.train(tiny_run.config(corpus, exp_dir))
    return exp_dir


@pytest.fixture(scope="module")
def masks_file(dense, tmp_path_factory):
    """Return the path of random masks for the model of the dense training."""
    path = tmp_path_factory.mktemp("masks") / "masks.safetensors"
    random_masks(checkpoints.build(final(dense)), path)
    return path


def random_masks(model, path):
    masks = PathwayMasks.dense(model, LANGUAGES, runs.PRUNE_SCOPES["encoder-predictor"])
    for name in masks.names:
        for language in LANGUAGES:
            masks.set_mask(name, language, torch.rand(masks.codes[name].shape) < 0.4)
    masks.save(path)


ZIPFORMER = ModelConfig(encoder_type="zipformer", zipformer="tiny")


def test_a_resumed_zipformer_training_equals_an_uninterrupted_one(corpus, tmp_path):
    """This includes schedules, random chunks, whitener probabilities and optimizer statistics."""
    random_masks(build_model(ZIPFORMER, 20), tmp_path / "masks.safetensors")
    options = {"ref_duration": 0.01, "masks": tmp_path / "masks.safetensors", "valid_interval": 8}
    uninterrupted = replace(tiny_run.config(corpus, tmp_path / "uninterrupted", "en fr", **options), model=ZIPFORMER)
    runs.train(uninterrupted)
    killed = replace(uninterrupted, training=replace(uninterrupted.training, exp_dir=tmp_path / "killed"))
    tiny_run.train_until(killed, 6)
    runs.train(killed)
    assert_same(final(tmp_path / "uninterrupted"), final(tmp_path / "killed"))
    (probabilities,) = final(tmp_path / "uninterrupted")["regularizers"]
    assert [probabilities] == final(tmp_path / "killed")["regularizers"]
    assert set(probabilities.values()) == {0.25, 0.025}
    state = final(tmp_path / "uninterrupted")["optimizer"]
    steps = {code: int(state[code]["step"]) for code in ("en", "fr")}
    assert max(steps.values()) >= 4 and sum(steps.values()) == 8  # the scales of a language have changed


@pytest.mark.parametrize(
    ("encoder", "options", "expected"),
    [
        ("emformer", {}, ("adamw", 0.0015)),
        ("zipformer", {}, ("scaled-adam", 0.045)),
        ("emformer", {"optimizer": "scaled-adam"}, ("scaled-adam", 0.045)),
        ("zipformer", {"optimizer": "adamw"}, ("adamw", 0.0015)),
        ("zipformer", {"base_lr": 0.01}, ("scaled-adam", 0.01)),
    ],
)
def test_the_encoder_determines_the_default_optimizer(encoder, options, expected):
    config = ExperimentConfig(TrainingConfig(**options), model=ModelConfig(encoder_type=encoder))
    resolved = with_optimizer(config).training
    assert (resolved.optimizer, resolved.base_lr) == expected
    optimizer = build_optimizer(nn.Linear(2, 2).named_parameters(), resolved)
    assert type(optimizer) is {"adamw": MaskedAdamW, "scaled-adam": ScaledAdam}[expected[0]]
    assert optimizer.defaults["lr"] == expected[1]


@pytest.mark.parametrize(("optimizer", "option"), [("adamw", "clip_norm"), ("scaled-adam", "clipping_scale")])
def test_each_optimizer_clips_the_gradient(optimizer, option):
    """A spike does not appear in the second moment."""
    moments = {}
    for limit in (0.0, 2.0):
        layer = nn.Linear(2, 2, bias=False)
        options = TrainingConfig(optimizer=optimizer, **{option: limit})
        chosen = build_optimizer(layer.named_parameters(), options)
        for step in range(20):
            layer.weight.grad = torch.full((2, 2), 100.0 if step == 19 else 1.0)
            chosen.step()
        moments[limit] = float(chosen.state[layer.weight]["exp_avg_sq"].max())
    assert moments[2.0] < 1 and moments[0.0] > 100


def test_resuming_with_another_optimizer_raises(corpus, tmp_path):
    config = tiny_run.config(corpus, tmp_path / "exp", num_updates=2)
    runs.train(config)
    other = replace(config, training=replace(config.training, optimizer="scaled-adam"))
    with pytest.raises(checkpoints.CheckpointError, match="optimizer=adamw, this one has optimizer=scaled-adam"):
        runs.train(other)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_resumed_training_equals_an_uninterrupted_one(corpus, dense, masks_file, tmp_path, masked, num_workers):
    training = {"init_from": dense, "masks": masks_file} if masked else {}
    uninterrupted = tiny_run.config(corpus, tmp_path / "uninterrupted", **training)
    uninterrupted = replace(uninterrupted, data=replace(uninterrupted.data, num_workers=num_workers))
    runs.train(uninterrupted)
    killed = replace(uninterrupted, training=replace(uninterrupted.training, exp_dir=tmp_path / "killed"))
    for update in (2, 4, 8):
        tiny_run.train_until(killed, update)
    runs.train(killed)
    assert_same(final(tmp_path / "uninterrupted"), final(tmp_path / "killed"))
    records = [
        [{k: v for k, v in r.items() if k != "time"} for r in read_metrics(tmp_path / run / "metrics.jsonl")]
        for run in ("uninterrupted", "killed")
    ]
    assert [r["update"] for r in records[0]] == [r["update"] for r in records[1]]


def test_checkpoints_with_the_british_key_of_regularizers_resume(corpus, tmp_path):
    config = replace(tiny_run.config(corpus, tmp_path / "exp", "en", num_updates=4, ref_duration=0.01), model=ZIPFORMER)
    tiny_run.train_until(config, 3)
    old = shutil.copytree(tmp_path / "exp", tmp_path / "old")
    saved = checkpoints.read(old / "checkpoint-2.pt")
    saved["regularizers".replace("z", "s")] = saved.pop("regularizers")
    saved.pop("plain")
    checkpoints.save(saved, old / "checkpoint-2.pt")
    runs.train(config)
    runs.train(replace(config, training=replace(config.training, exp_dir=old)))
    assert_same(final(tmp_path / "exp"), final(old))
    assert final(tmp_path / "exp")["regularizers"] == final(old)["regularizers"]


def test_regularizer_schedules_start_at_0_or_after_their_end_for_trained_weights(corpus, tmp_path):
    """A mask search, or a training from a dense model, must not drop as much as the first updates do."""
    config = replace(tiny_run.config(corpus, tmp_path / "new", num_updates=1, ref_duration=0.1), model=ZIPFORMER)

    def positions(state, _):
        return {module.position for module in state.model.modules() if isinstance(module, Scheduled)}

    new, trained = tiny_run.UpdateRecorder(positions), tiny_run.UpdateRecorder(positions)
    runs.train(config, [new])
    training = replace(config.training, exp_dir=tmp_path / "trained", init_from=tmp_path / "new")
    runs.train(replace(config, training=training), [trained])
    assert new.values == {1: {0.0}}
    assert all(position >= 50_000.0 for position in trained.values[1])


def test_regularizer_schedules_move_with_the_audio_of_every_ten_updates(corpus, tmp_path):
    config = tiny_run.config(corpus, tmp_path, ref_duration=3.0)  # batches of 6 s
    assert [regularizer_position(config, 2, update) for update in (1, 10, 11, 21)] == [0, 0, 40, 80]


def test_a_masked_update_changes_no_entry_outside_the_mask(corpus, dense, masks_file, tmp_path):
    config = tiny_run.config(corpus, tmp_path / "exp", init_from=dense, masks=masks_file, save_every_n=1)
    runs.train(config)
    masks = PathwayMasks.load(masks_file)
    before = checkpoints.read(dense / "checkpoint-8.pt")["model"]
    changed = 0
    for update, language in enumerate(_languages_of_updates(config), 1):
        after = checkpoints.read(tmp_path / "exp" / f"checkpoint-{update}.pt")["model"]
        for name in masks.names:
            outside = ~masks.mask(name, language)
            assert torch.equal(after[name][outside], before[name][outside])
            changed += int((after[name] != before[name]).sum())
        before = after
    assert changed > 0


def _languages_of_updates(config):
    data = SpeechDataModule(config.data, Tokenizer(config.training.bpe_model))
    return [batch.language for batch in data.train_batches(0, config.training.num_updates, config.training.seed)]


def test_metrics_are_per_language(dense):
    records = read_metrics(dense / "metrics.jsonl")
    valid = [record for record in records if record["kind"] == "valid"]
    assert [(r["update"], r["language"]) for r in valid] == [(u, code) for u in (4, 8) for code in LANGUAGES]
    train = [record for record in records if record["kind"] == "train"]
    assert all(0 < r[name] < 100 for r in train for name in ("loss", "simple_loss", "pruned_loss", "ctc_loss"))
    assert sum(r["audio_seconds"] for r in train) > 8
    assert json.loads((dense / "config.json").read_text())["model"]["encoder_dim"] == "16"


def test_a_damaged_newest_checkpoint_is_reported_and_the_previous_one_used(corpus, tmp_path, capsys):
    config = tiny_run.config(corpus, tmp_path / "exp")
    runs.train(config)
    uninterrupted = final(tmp_path / "exp")
    newest = tmp_path / "exp" / "checkpoint-8.pt"
    newest.write_bytes(newest.read_bytes()[:1000])
    runs.train(config)
    assert "checkpoint-8.pt (1000 bytes)" in capsys.readouterr().out
    assert_same(uninterrupted, final(tmp_path / "exp"))


@pytest.mark.parametrize("order", [1, -1])
def test_the_newest_checkpoint_has_the_most_updates_regardless_of_file_times(dense, tmp_path, order):
    """Copying a folder changes the times."""
    saved = sorted(dense.glob("checkpoint-*.pt")) + sorted(dense.glob("epoch-*.pt"))
    updates = {path.name: checkpoints.read(path)["update"] for path in saved}
    assert len(set(updates.values())) > 1
    for seconds, path in enumerate(saved[::order]):
        copied = tmp_path / path.name
        copied.write_bytes(path.read_bytes())
        os.utime(copied, (1e9 + seconds, 1e9 + seconds))
    assert updates[checkpoints.newest(tmp_path)[0].name] == max(updates.values())


def test_resuming_raises_and_keeps_all_files_if_every_checkpoint_is_damaged(corpus, tmp_path):
    config = tiny_run.config(corpus, tmp_path / "exp", num_updates=2)
    runs.train(config)
    metrics = (tmp_path / "exp" / "metrics.jsonl").read_text()
    for path in (tmp_path / "exp").glob("*.pt"):
        path.write_bytes(b"PK" + bytes(100))
    with pytest.raises(checkpoints.CheckpointError, match=r"no checkpoint in .* is readable"):
        runs.train(config)
    assert (tmp_path / "exp" / "metrics.jsonl").read_text() == metrics


def test_a_full_disk_raises_and_keeps_the_previous_checkpoint(dense, tmp_path, monkeypatch):
    saved = checkpoints.read(dense / "checkpoint-8.pt")
    path = tmp_path / "checkpoint-8.pt"
    path.write_bytes((dense / "checkpoint-8.pt").read_bytes())

    def full(_, file):
        file.write(b"PK")
        raise RuntimeError("[enforce fail at inline_container.cc:337] . unexpected pos 64 vs 0\nframe #0")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(checkpoints.CheckpointError, match=r"cannot write .*unexpected pos 64.*free some space"):
        checkpoints.save(saved, path)
    assert checkpoints.read(path)["update"] == 8 and [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_missing_dev_set_raises_before_training(corpus, tmp_path):
    fbank = tmp_path / "fbank"
    shutil.copytree(corpus / "fbank", fbank)
    (fbank / "mls-french_cuts_dev.jsonl.gz").unlink()
    config = tiny_run.config(corpus, tmp_path / "exp")
    with pytest.raises(ValueError, match="mls-french_cuts_dev"):
        runs.train(replace(config, data=replace(config.data, manifest_dir=fbank)))
    assert not list((tmp_path / "exp").glob("metrics*"))


@pytest.mark.parametrize("seed", [20240101, 2**62])
def test_any_seed_gives_distinct_random_numbers(seed):
    assert batch_seed(42, 1, 7) == (42 * 1_000_003 + 1) * 10_000_019 + 7
    values = [float(torch.rand((), generator=torch.Generator().manual_seed(batch_seed(seed, 0, i)))) for i in (1, 2)]
    torch.manual_seed(batch_seed(seed, 1, 1))
    assert len({*values, float(torch.rand(()))}) == 3


def test_an_untrusted_pickle_is_not_executed(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "was-run"), "w"))

    torch.save({"model": Evil()}, tmp_path / "checkpoint-1.pt")
    with pytest.raises(checkpoints.CheckpointError, match="cannot read checkpoint"):
        checkpoints.read(tmp_path / "checkpoint-1.pt")
    assert not (tmp_path / "was-run").exists()


def test_resuming_another_run_raises(corpus, dense, masks_file, tmp_path):
    config = tiny_run.config(corpus, tmp_path / "exp", num_updates=2)
    runs.train(config)
    masked = replace(config, training=replace(config.training, init_from=dense, masks=masks_file))
    with pytest.raises(ValueError, match=r"did not start with these masks \(masks\.safetensors\)"):
        runs.train(masked)
    assert not (tmp_path / "exp" / "masks.safetensors").exists()  # or decoding would use them


def test_masks_of_another_model_raise_before_training(corpus, dense, tmp_path):
    other = build_model(replace(tiny_run.MODEL, encoder_dim=32), 20)
    PathwayMasks.dense(other, LANGUAGES, ["encoder"]).save(tmp_path / "masks.safetensors")
    config = tiny_run.config(corpus, tmp_path / "exp", init_from=dense, masks=tmp_path / "masks.safetensors")
    with pytest.raises(ValueError, match="the masks belong to another model"):
        runs.train(config)
    assert not (tmp_path / "exp").exists()


def test_averaged_weights_are_the_mean_over_the_updates(dense):
    model, options, *_ = checkpoints.load_model(dense, iteration=8, avg=1)
    raw = checkpoints.load_model(dense, iteration=8, avg=2, use_averaged_model=False).model
    weights = [checkpoints.read(dense / f"checkpoint-{u}.pt")["model"]["joiner.output_linear.weight"] for u in (6, 8)]
    torch.testing.assert_close(raw.joiner.output_linear.weight, (weights[0] + weights[1]) / 2)
    averages = [
        checkpoints.read(dense / f"checkpoint-{u}.pt")["model_avg"]["joiner.output_linear.weight"] for u in (6, 8)
    ]
    expected = (averages[1] * 8 - averages[0] * 6) / 2
    torch.testing.assert_close(model.joiner.output_linear.weight.double(), expected, rtol=1e-4, atol=1e-6)
    assert options["data"]["languages"] == ["en", "fr", "it"] and not model.training


def test_the_command_of_a_training_is_recorded(corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = "--num-updates 1 --num-encoder-layers 1 --encoder-dim 16 --nhead 2 --dim-feedforward 32 --joiner-dim 16"
    data = ["--manifest-dir", str(corpus / "fbank"), "--bpe-model", str(corpus / "bpe.model"), "--num-workers", "0"]
    words = [*data, *options.split(), "--languages", "en fr", f"--exp-dir={tmp_path}/exp/my run"]
    cli.run_command("train", words)
    command = json.loads(Path("exp/my run/config.json").read_text())["command"]
    quoted = shlex.join([*data, *options.split()])
    assert command == f"icefall-pathways train {quoted} --languages 'en fr' '--exp-dir=exp/my run'"
    runs.train(tiny_run.config(corpus, tmp_path / "library", num_updates=1))
    assert json.loads(Path("library/config.json").read_text())["command"] is None


def test_the_last_checkpoints_of_epochs_are_kept(corpus, tmp_path):
    config = tiny_run.config(corpus, tmp_path, "en", num_updates=0, num_epochs=4, keep_last_epochs=3)
    runs.train(config)
    assert [path.name for path in layout.epoch_checkpoints(tmp_path)] == ["epoch-2.pt", "epoch-3.pt", "epoch-4.pt"]
    start = checkpoints.start_of_average(layout.epoch_checkpoint(tmp_path, 4), avg=2)
    assert start == layout.epoch_checkpoint(tmp_path, 2)


def test_a_training_that_returns_to_an_earlier_checkpoint_keeps_what_it_writes(corpus, tmp_path):
    runs.train(tiny_run.config(corpus, tmp_path))
    runs.train(tiny_run.config(corpus, tmp_path, start_batch=2, num_updates=4, keep_last_k=2))
    assert checkpoints.read(tmp_path / "checkpoint-4.pt")["config"]["training"]["num_updates"] == 4


def test_the_error_for_a_missing_checkpoint_lists_existing_ones(dense, tmp_path):
    with pytest.raises(
        checkpoints.CheckpointError, match=r"no checkpoint .*epoch-9\.pt: its folder holds .*checkpoint-8"
    ):
        checkpoints.load_model(dense, epoch=9)
    with pytest.raises(checkpoints.CheckpointError, match="no checkpoint in"):
        checkpoints.load_model(tmp_path)


@pytest.mark.parametrize("prune_for", ["each-language", "all-languages"])
@pytest.mark.parametrize("method", ["imp", "lth"])
def test_mask_search_reaches_the_sparsity_and_resumes(corpus, dense, tmp_path, prune_for, method):
    pruning = PruningConfig(prune_for=prune_for, prune_method=method, sparsity=0.7, prune_rounds=2, updates_per_round=2)
    config = tiny_run.search(corpus, tmp_path / "search", pruning, init_from=dense)
    runs.find_masks(config)
    for path in (tmp_path / "search").rglob("masks.*"):  # as if killed after the last update
        path.unlink()
    runs.find_masks(config)
    masks = PathwayMasks.load(tmp_path / "search" / "masks.safetensors")
    assert masks.languages == tuple(LANGUAGES)
    assert masks.header.method == method and masks.header.target_sparsity == 0.7
    assert masks.header.source == checkpoints.file_hash(dense / "checkpoint-8.pt")
    for name, code in masks.codes.items():
        for language in LANGUAGES:
            assert int(masks.mask(name, language).sum()) == round(0.3 * code.numel())
    assert (masks.overlap("en", "fr") == 1) == (prune_for == "all-languages")
    masks.check(checkpoints.build(final(dense)))
    if method == "lth":
        rewound = checkpoints.newest(next(path for path in (tmp_path / "search").iterdir() if path.is_dir()))[1]
        start = checkpoints.read(dense / "checkpoint-8.pt")["model"]
        assert all(torch.equal(rewound["model"][name], start[name]) for name in start)


def test_parallel_search_returns_the_same_masks(corpus, dense, tmp_path):
    masks = {}
    for jobs in (1, 2):
        pruning = PruningConfig(sparsity=0.5, prune_rounds=1, updates_per_round=2, num_jobs=jobs)
        runs.find_masks(tiny_run.search(corpus, tmp_path / str(jobs), pruning, "en fr", init_from=dense))
        masks[jobs] = PathwayMasks.load(tmp_path / str(jobs) / "masks.safetensors")
    assert all(torch.equal(masks[1].codes[name], masks[2].codes[name]) for name in masks[1].names)


@pytest.mark.parametrize("optimizer", ["adamw", "scaled-adam"])
def test_two_ranks_train_on_the_same_language_and_have_the_same_weights(corpus, tmp_path, free_port, optimizer):
    options = {"world_size": 2, "master_port": free_port, "num_updates": 6, "optimizer": optimizer}
    config = tiny_run.config(corpus, tmp_path / "two", **options)
    runs.write_json(config.training.exp_dir / "config.json", {})
    launch(_record, 2, free_port, config, str(tmp_path))
    records = [torch.load(tmp_path / f"rank-{rank}.pt", weights_only=True) for rank in range(2)]
    assert records[0]["languages"] == records[1]["languages"] and len(set(records[0]["languages"])) > 1
    assert not set(records[0]["cuts"]) & set(records[1]["cuts"][:1])
    assert all(torch.equal(records[0]["model"][name], records[1]["model"][name]) for name in records[0]["model"])


def _record(rank: Rank, config, folder):
    """Train, and save the batches and the final weights of this rank."""
    recorder = tiny_run.BatchRecorder()
    tokenizer = Tokenizer(config.training.bpe_model)
    torch.manual_seed(config.training.seed)
    model = build_model(config.model, 20)
    data = SpeechDataModule(config.data, tokenizer)
    Trainer(config, model, data, tokenizer, rank, callbacks=[recorder]).run()
    first = [batches[0] for batches in recorder.batches]
    result = {
        "languages": [language for language, _ in first],
        "cuts": [cut for _, cuts in first for cut in cuts],
        "model": model.state_dict(),
    }
    torch.save(result, f"{folder}/rank-{rank.index}.pt")
