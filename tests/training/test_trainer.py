"""Masked updates, metrics, seeds, ranks and files of a training."""

import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_run
import torch

from icefall_pathways import cli
from icefall_pathways.data.datamodule import SpeechDataModule
from icefall_pathways.data.tokenizer import Tokenizer
from icefall_pathways.experiment import checkpoints
from icefall_pathways.launch.ranks import Rank, launch
from icefall_pathways.models.transducer import build_model
from icefall_pathways.pathways.masks import PathwayMasks
from icefall_pathways.training import runs
from icefall_pathways.training.metrics import read_metrics
from icefall_pathways.training.train_state import batch_seed
from icefall_pathways.training.trainer import Trainer


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
    assert [(r["update"], r["language"]) for r in valid] == [(u, code) for u in (4, 8) for code in tiny_run.LANGUAGES]
    train = [record for record in records if record["kind"] == "train"]
    assert all(0 < r[name] < 100 for r in train for name in ("loss", "simple_loss", "pruned_loss", "ctc_loss"))
    assert sum(r["audio_seconds"] for r in train) > 8
    assert json.loads((dense / "config.json").read_text())["model"]["encoder_dim"] == "16"


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


def test_masks_of_another_model_raise_before_training(corpus, dense, tmp_path):
    other = build_model(replace(tiny_run.MODEL, encoder_dim=32), 20)
    PathwayMasks.dense(other, tiny_run.LANGUAGES, ["encoder"]).save(tmp_path / "masks.safetensors")
    config = tiny_run.config(corpus, tmp_path / "exp", init_from=dense, masks=tmp_path / "masks.safetensors")
    with pytest.raises(ValueError, match="the masks belong to another model"):
        runs.train(config)
    assert not (tmp_path / "exp").exists()


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
