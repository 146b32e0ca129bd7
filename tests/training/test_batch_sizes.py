from dataclasses import replace

import pytest
import tiny_run
import torch

from icefall_pathways.launch.ranks import Rank
from icefall_pathways.training.batch_sizes import scan_batch_sizes


def make_trainer(corpus, tmp_path, **data):
    config = tiny_run.config(corpus, tmp_path, "en fr", num_updates=2)
    return tiny_run.make_trainer(replace(config, data=replace(config.data, max_duration=8.0, **data)))


@pytest.fixture
def trainer(corpus, tmp_path):
    return make_trainer(corpus, tmp_path, shift_perturb=0.0, silence_perturb=0.0)


def scan(trainer, room, error="CUDA out of memory. Tried to allocate 20 MiB"):
    """Scan on a simulated device with room for a number of frames, padding included."""

    def loss_of(batch):
        if batch.inputs.shape[0] * batch.inputs.shape[1] > room:
            raise RuntimeError(error)
        return trainer.update_step.objective(batch, trainer.update_step.ddp_model, 1)["loss"]

    return scan_batch_sizes(trainer.state.model, loss_of, trainer.data, Rank(), raises_on_oom=True)


def test_the_scan_returns_the_largest_batch_that_fits(trainer):
    longest = trainer.data.training_cuts["en"].longest
    for result, language in zip(scan(trainer, 1500), ("en", "fr"), strict=True):
        assert result.language == language and result.longest_cut == pytest.approx(longest)
        assert result.is_limit and 8 <= result.max_duration < 8 * 4
        # The next size has one longest cut more than there is room for.
        assert int(result.max_duration / longest) * longest <= 15 < int(1.25 * result.max_duration / longest) * longest


@pytest.mark.parametrize(
    "options",
    [
        {"shift_perturb": 0.0, "silence_perturb": 0.1, "silence_perturb_seconds": 2.0},
        {"shift_perturb": 2.0, "silence_perturb": 0.0},
    ],
)
def test_the_scan_includes_the_silence_that_training_may_add(corpus, tmp_path, options):
    trainer = make_trainer(corpus, tmp_path, **options)
    longest = trainer.data.training_cuts["en"].longest
    for result in scan(trainer, 1500):
        assert 1 <= int(result.max_duration / longest) <= 15 / (longest + 2)


def test_the_scan_stops_at_four_times_the_requested_size(trainer):
    for result in scan(trainer, 10**9):
        assert not result.is_limit and 8 * 4 / 1.25 <= result.max_duration <= 8 * 4


def test_the_error_for_a_size_that_does_not_fit_names_the_largest_that_does(trainer):
    with pytest.raises(ValueError, match=r"(?s)--max-duration 8 do not fit.*│ fr .*use --max-duration 6 at most"):
        scan(trainer, 400)
    with pytest.raises(ValueError, match="use --max-duration 0 at most"):
        scan(trainer, 100, "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")


def test_other_errors_are_not_mistaken_for_out_of_memory(trainer):
    def loss_of(batch):
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        scan_batch_sizes(trainer.state.model, loss_of, trainer.data, Rank())


def test_scanning_does_not_change_the_training(corpus, tmp_path, capsys):
    ends = []
    for scans in (False, True):
        trainer = tiny_run.make_trainer(
            tiny_run.config(corpus, tmp_path / str(scans), "en fr", num_updates=3, scan_batch_sizes=scans)
        )
        trainer.run()
        ends.append(trainer.state.model.state_dict())
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
    assert "--max-duration that fits" in capsys.readouterr().out
