import time

from icefall_pathways.training.metrics import Speed


def test_speed_is_per_second_and_tells_the_share_of_waiting(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    speed = Speed()
    now[0] += 1
    assert "updates_per_second" not in speed.flush(7, 3.0)  # where the run began is not known
    for _ in range(3):
        with speed.waiting():
            now[0] += 1
        now[0] += 9
    found = speed.flush(10, 60.0)
    assert found["updates_per_second"] == 0.1
    assert found["audio_seconds_per_second"] == 2.0
    assert found["data_wait_share"] == 0.1
    assert found["peak_rss_mb"] > 10
    now[0] += 5
    assert speed.flush(11, 0.0)["data_wait_share"] == 0
