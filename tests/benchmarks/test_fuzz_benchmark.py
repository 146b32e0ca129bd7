import pytest


@pytest.fixture(scope="module")
def fuzz(load_benchmark):
    return load_benchmark("fuzz")


def test_rounds_share_the_inputs_by_weight_with_different_seeds(fuzz):
    rounds = list(fuzz.rounds(fuzz.FuzzConfig(inputs=9000, cases=("masks", "results"), seed=7)))
    totals = {case: sum(count for name, count, _ in rounds if name == case) for case in ("masks", "results")}
    seeds = [round_seed for _, _, round_seed in rounds]
    assert totals == {"masks": 3000, "results": 6000}
    assert len(seeds) == len(set(seeds)) and min(seeds) == 7


def test_findings_are_counted_and_saved(fuzz, monkeypatch, tmp_path):
    class Check:
        def __init__(self, function):
            pass

        def __call__(self, argument):
            return "Traceback ...\nKeyError: 'x'" if "a" in argument[1] else None

        def close(self):
            pass

    monkeypatch.setattr(fuzz, "IsolatedFunction", Check)
    monkeypatch.setattr(fuzz, "draw", lambda case, count, seed: [{"a": b"1"}] * (count - 1) + [{"b": b""}])
    inputs, findings = fuzz.fuzz(fuzz.FuzzConfig(inputs=5, cases=("results",), output_dir=tmp_path))
    assert (inputs, findings) == ({"results": 5}, {"results": 4})
    (folder,) = tmp_path.iterdir()
    assert (folder / "files" / "a").read_bytes() == b"1" and "KeyError" in (folder / "failure.txt").read_text()
