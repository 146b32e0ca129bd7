"""Hooks of the training loop."""

import pytest
import tiny_run

from icefall_pathways.experiment import layout
from icefall_pathways.training import runs
from icefall_pathways.training.callbacks import Callback

HOOKS = ("train_start", "update_start", "backward_end", "update_end", "validation_end", "train_end")


class HookRecorder(Callback):
    """Record the hooks that are called, with the current update."""

    def __init__(self):
        self.calls = []
        for hook in HOOKS:
            setattr(self, f"on_{hook}", lambda state, *_, hook=hook: self.calls.append((hook, state.update)))


def test_hooks_are_called_in_the_order_of_the_loop(corpus, tmp_path):
    recorder = HookRecorder()
    runs.train(tiny_run.config(corpus, tmp_path, "en", num_updates=3, valid_interval=2), [recorder])
    update = HOOKS[1:4]
    assert recorder.calls == [
        ("train_start", 0),
        *((hook, 1) for hook in update),
        *((hook, 2) for hook in update),
        ("validation_end", 2),
        *((hook, 3) for hook in update),
        ("validation_end", 3),
        ("train_end", 3),
    ]


def test_a_resumed_training_starts_its_hooks_after_the_checkpoint(corpus, tmp_path):
    config = tiny_run.config(corpus, tmp_path, "en", num_updates=4)
    tiny_run.train_until(config, 4)
    recorder = HookRecorder()
    runs.train(config, [recorder])
    assert recorder.calls[:2] == [("train_start", 2), ("update_start", 3)]


class SavedUpdates(Callback):
    """Record whether the checkpoint of an update exists when it ends, and when the next one starts."""

    def __init__(self, exp_dir):
        self.exp_dir = exp_dir
        self.at_end, self.at_next_start = {}, {}

    def on_update_start(self, state, batches, wait_seconds):
        self.at_next_start[state.update - 1] = layout.batch_checkpoint(self.exp_dir, state.update - 1).exists()

    def on_update_end(self, state, result):
        self.at_end[state.update] = layout.batch_checkpoint(self.exp_dir, state.update).exists()


def test_callbacks_run_before_the_checkpoint_of_an_update_is_written(corpus, tmp_path):
    saved = SavedUpdates(tmp_path)
    runs.train(tiny_run.config(corpus, tmp_path, "en", num_updates=4), [saved])
    assert saved.at_end == {1: False, 2: False, 3: False, 4: False}
    assert saved.at_next_start == {0: False, 1: False, 2: True, 3: False}


class ErrorRecorder(Callback):
    def on_update_end(self, state, result):
        raise ZeroDivisionError

    def on_train_end(self, state, error):
        self.error = error


def test_on_train_end_receives_the_error_that_stopped_the_training(corpus, tmp_path):
    recorder = ErrorRecorder()
    with pytest.raises(ZeroDivisionError):
        runs.train(tiny_run.config(corpus, tmp_path, "en"), [recorder])
    assert isinstance(recorder.error, ZeroDivisionError)


@pytest.mark.parametrize("language", ["en", "fr"])
def test_the_result_of_an_update_has_a_loss_and_a_language_per_batch(corpus, tmp_path, language):
    def summary(state, result):
        return result.language, len(result.batches), len(result.losses), result.stepped, float(result.grad_norm) > 0

    recorder = tiny_run.UpdateRecorder(summary)
    runs.train(tiny_run.config(corpus, tmp_path, language, num_updates=2, accum_grad=2), [recorder])
    assert recorder.values == {1: (language, 2, 2, True, True), 2: (language, 2, 2, True, True)}
