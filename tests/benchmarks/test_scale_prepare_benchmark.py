import pytest


@pytest.fixture(scope="module")
def prepare(load_benchmark):
    return load_benchmark("scale_prepare")


def test_all_stages_are_measured(prepare, monkeypatch):
    monkeypatch.setattr(prepare, "run_in_process", prepare.measure_call)
    monkeypatch.setattr(prepare, "HELD_OUT", 2)
    monkeypatch.setattr(prepare, "VOCAB_SIZE", 100)
    config = prepare.PreparationConfig(num_utterances=(30,), num_features=20, num_transcripts=100)
    measurements, reading = prepare.measure(config)
    stages = [measurement.stage for measurement in measurements]
    assert sorted({int(stage[0]) for stage in stages}) == [1, 3, 5, 6, 7]
    assert all(measurement.seconds > 0 and measurement.megabytes > 0 for measurement in measurements)
    assert all((measurement.num_bytes > 0) == (measurement.stage[0] != "5") for measurement in measurements)
    assert len(reading) == 2 and all(float(value) > 0 for row in reading for value in row[1:])


def test_costs_of_a_larger_corpus_are_proportional_or_constant(prepare):
    measurement = prepare.Measurement("1: manifests", 1000, 3.6, 300.0, 2_000_000)
    assert measurement.row() == ["1: manifests", "1000", "3.600", "2000", "300"]
    assert measurement.computed_row(1_000_000) == ["1: manifests", "1.00", "2.0"]
    constant = prepare.Measurement("5: train SentencePiece", 1000, 36.0, 300.0, is_constant=True)
    assert constant.computed_row(1_000_000) == ["5: train SentencePiece", "0.01", ""]
