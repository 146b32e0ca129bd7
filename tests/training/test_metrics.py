import time
from dataclasses import replace
from io import BytesIO

import tiny_run
from matplotlib.image import imread
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from icefall_pathways.training import runs
from icefall_pathways.training.config import JointPruningConfig
from icefall_pathways.training.metrics import Speed


def test_throughput_is_per_second_and_waiting_is_a_share_of_the_time(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    speed = Speed()
    now[0] += 1
    assert "updates_per_second" not in speed.flush(7, 3.0)  # the first update of the process is unknown
    for _ in range(3):
        speed.add_wait(1.0)
        now[0] += 10
    metrics = speed.flush(10, 60.0)
    assert metrics["updates_per_second"] == 0.1
    assert metrics["audio_seconds_per_second"] == 2.0
    assert metrics["data_wait_share"] == 0.1
    assert metrics["peak_rss_mb"] > 10
    now[0] += 5
    assert speed.flush(11, 0.0)["data_wait_share"] == 0


def test_tensorboard_keeps_the_events_before_the_resumed_checkpoint(corpus, tmp_path):
    config = tiny_run.config(corpus, tmp_path, "en fr", tensorboard=True, valid_interval=2)
    tiny_run.train_until(config, 6)  # it resumes after update 4
    runs.train(config)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("valid/loss/en")] == [2, 4, 6, 8]


def test_tensorboard_has_metrics_of_each_language_and_figures_of_changed_masks(corpus, tmp_path):
    config = tiny_run.config(corpus, tmp_path, tensorboard=True, valid_interval=2)
    pruning = JointPruningConfig(prune_method="adaptive", prune_every=1, prune_ramp=1, prune_start=2, prune_end=5)
    runs.train(replace(config, pruning=pruning))
    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"images": 0}).Reload()
    tags = events.Tags()
    for code in ("en", "fr", "it"):
        expected = {f"train/{name}/{code}" for name in ("loss", "simple_loss", "grad_norm", "sparsity", "lr")}
        assert expected | {f"valid/loss/{code}", f"valid/wer/{code}"} <= set(tags["scalars"])
        assert [event.step for event in events.Scalars(f"valid/wer/{code}")] == [2, 4, 6, 8]
    assert {f"speed/{name}/all" for name in ("data_wait_share", "updates_per_second")} <= set(tags["scalars"])
    assert set(tags["images"]) == {"density", "overlap"}
    for tag in tags["images"]:
        # Masks change after updates 3 to 5; figures are drawn at the start and at validations after a change.
        drawn = events.Images(tag)
        assert [image.step for image in drawn] == [0, 4, 6]
        pictures = [imread(BytesIO(image.encoded_image_string)) for image in drawn]
        assert min(pictures[0].shape[:2]) > 100 and (pictures[0] != pictures[1]).any()
