import time
from dataclasses import replace
from io import BytesIO

import tiny_run
from matplotlib.image import imread
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from icefall_pathways.training import runs
from icefall_pathways.training.config import JointPruningConfig
from icefall_pathways.training.metrics import Speed


def test_speed_is_per_second_and_tells_the_share_of_waiting(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    speed = Speed()
    now[0] += 1
    assert "updates_per_second" not in speed.flush(7, 3.0)  # where the run began is not known
    for _ in range(3):
        speed.add_wait(1.0)
        now[0] += 10
    found = speed.flush(10, 60.0)
    assert found["updates_per_second"] == 0.1
    assert found["audio_seconds_per_second"] == 2.0
    assert found["data_wait_share"] == 0.1
    assert found["peak_rss_mb"] > 10
    now[0] += 5
    assert speed.flush(11, 0.0)["data_wait_share"] == 0


def test_tensorboard_keeps_what_a_run_showed_before_it_was_interrupted(corpus, tmp_path):
    config = tiny_run.config(corpus, tmp_path, "en fr", tensorboard=True, valid_interval=2)
    tiny_run.train_until(config, 6)  # it goes on from update 4
    runs.train(config)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("valid/loss/en")] == [2, 4, 6, 8]


def test_tensorboard_shows_each_language_and_the_masks_as_they_change(corpus, tmp_path):
    config = tiny_run.config(corpus, tmp_path, tensorboard=True, valid_interval=2)
    pruning = JointPruningConfig(prune_method="adaptive", prune_every=1, prune_ramp=1, prune_start=2, prune_end=5)
    runs.train(replace(config, pruning=pruning))
    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"images": 0}).Reload()
    tags = events.Tags()
    for code in ("en", "fr", "it"):
        wanted = {f"train/{name}/{code}" for name in ("loss", "simple_loss", "grad_norm", "sparsity", "lr")}
        assert wanted | {f"valid/loss/{code}", f"valid/wer/{code}"} <= set(tags["scalars"])
        assert [event.step for event in events.Scalars(f"valid/wer/{code}")] == [2, 4, 6, 8]
    assert {f"speed/{name}/all" for name in ("data_wait_share", "updates_per_second")} <= set(tags["scalars"])
    assert set(tags["images"]) == {"density", "overlap"}
    for tag in tags["images"]:
        # Masks change after updates 3 to 5; figures are of the start, and of the validations after a change.
        drawn = events.Images(tag)
        assert [image.step for image in drawn] == [0, 4, 6]
        pictures = [imread(BytesIO(image.encoded_image_string)) for image in drawn]
        assert min(pictures[0].shape[:2]) > 100 and (pictures[0] != pictures[1]).any()
