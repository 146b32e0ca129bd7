"""Batch: tokens, transfer from worker processes, and moves between devices."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data._utils import pin_memory as torch_pin_memory

from icefall_pathways.data.batch import Batch
from icefall_pathways.data.datamodule import DataConfig, SpeechDataModule
from icefall_pathways.data.tokenizer import Tokenizer

TENSORS = ("inputs", "num_frames", "tokens", "num_tokens")


def data_module(corpus: Path, tokenizer: Tokenizer | None, num_workers: int = 0, **options: Any) -> SpeechDataModule:
    options = {"languages": "en fr it", "max_duration": 12.0, "num_buckets": 3} | options
    return SpeechDataModule(DataConfig(manifest_dir=corpus, num_workers=num_workers, **options), tokenizer)


@pytest.fixture
def batch(corpus: Path, tokenizer: Tokenizer) -> Batch:
    return next(data_module(corpus, tokenizer).train_batches(0, 1, seed=1))


def test_worker_batches_equal_in_process_batches(corpus: Path, tokenizer: Tokenizer) -> None:
    expected, batches = (list(data_module(corpus, tokenizer, n).train_batches(0, 3, seed=1)) for n in (0, 2))
    for batch, other in zip(batches, expected, strict=True):
        assert (batch.language, batch.cut_ids, batch.texts) == (other.language, other.cut_ids, other.texts)
        for name in TENSORS:
            first, second = getattr(batch, name), getattr(other, name)
            assert first.dtype == second.dtype and torch.equal(first, second)


def test_only_the_features_are_pickled_as_a_tensor(batch: Batch) -> None:
    """A worker process transfers each tensor as a separate shared-memory file."""
    state = batch.__getstate__()
    assert [name for name, value in state.items() if isinstance(value, torch.Tensor)] == ["inputs"]


def test_tokens_are_the_encoded_transcripts(corpus: Path, tokenizer: Tokenizer) -> None:
    for batch in data_module(corpus, tokenizer).train_batches(0, 3, seed=1):
        rows = zip(batch.tokens.tolist(), batch.num_tokens.tolist(), strict=True)
        encoded = [row[:count] for row, count in rows]
        assert encoded == tokenizer.encode(batch.texts)
        assert batch.total_tokens == sum(map(len, encoded)) > 0
        assert all(not any(row[count:]) for row, count in zip(batch.tokens.tolist(), batch.num_tokens, strict=True))


def test_without_a_tokenizer_batches_have_no_tokens(corpus: Path) -> None:
    batch = next(iter(data_module(corpus, None).loader("en", "dev")))
    assert batch.tokens.shape == (len(batch), 0) and batch.total_tokens == 0


def test_a_batch_has_the_duration_and_ids_of_its_cuts(corpus: Path, tokenizer: Tokenizer) -> None:
    unperturbed = {"shift_perturb": 0.0, "silence_perturb": 0.0, "join_perturb": 0.0}
    batch = next(data_module(corpus, tokenizer, **unperturbed).train_batches(0, 1, seed=1))
    assert batch.seconds == pytest.approx(sum(cut.duration for cut in batch.cuts))
    assert len(batch) == len(batch.cuts) == len(batch.texts) == len(set(batch.cut_ids))


def test_to_moves_features_and_tokens_and_leaves_lengths_on_the_cpu(batch: Batch) -> None:
    moved = batch.to(torch.device("meta"))
    assert [getattr(moved, name).device.type for name in TENSORS] == ["meta", "cpu", "meta", "cpu"]
    assert moved.cuts is batch.cuts and moved.language == batch.language
    assert batch.inputs.device.type == "cpu"


def test_the_data_loader_pins_the_features(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned = torch.zeros_like(batch.inputs)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned)
    result = torch_pin_memory.pin_memory(batch)
    assert isinstance(result, Batch) and result.inputs is pinned and result.tokens is batch.tokens
