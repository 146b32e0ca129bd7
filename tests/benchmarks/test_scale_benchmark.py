import pytest


@pytest.fixture(scope="module")
def scale(load_benchmark):
    return load_benchmark("scale")


def test_generated_cuts_are_indexed_and_usable(scale, tmp_path):
    tokenizer = scale.Tokenizer(scale.train_tokenizer([" ".join(scale.WORDS)], 28, tmp_path / "lang"))
    scale.write_jsonl(tmp_path / "cuts.jsonl.gz", scale.make_cuts(50))
    index = scale.open_index([tmp_path / "cuts.jsonl.gz"], tokenizer, tmp_path, "en")
    assert index.durations.tolist() == scale.make_durations(50).tolist()
    assert len(scale.TrainingCuts.select(index, scale.LIMITS).numbers) == 50


def test_all_steps_of_a_start_are_measured(scale, tmp_path, monkeypatch):
    monkeypatch.setattr(scale, "DEPTH", 100)
    monkeypatch.setattr(scale, "WORLD_SIZES", (1, 4))
    scale.write_index(tmp_path / "en.safetensors", 2000)
    results = scale.measure_start(tmp_path / "en.safetensors")
    assert results.keys() == {"open", "start", "resume", "ms, 1 ranks", "ms, 4 ranks", "memory"}
    assert all(value > 0 for value in results.values())


def test_padding_and_speakers_are_counted_over_all_batches(scale):
    durations, speakers = scale.np.array([1.0, 3.0, 2.0]), scale.np.array([5, 5, 6])
    assert scale._describe([[0, 1], [2]], durations, speakers) == ["1.5", "25.00 %", "75.0 %"]
