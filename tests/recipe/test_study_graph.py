"""Jobs and settings of the study."""

import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from recipe_graphs import options_of, read

from icefall_pathways.recipe import experiments
from icefall_pathways.recipe.study import keep_settings, study_graph

pytestmark = pytest.mark.usefixtures("recipe_folder")


def test_study_gives_every_system_the_same_budget():
    jobs = {job.name: job for job in study_graph(read("run-study", "--seeds 3"))}
    assert list(jobs) == [
        *("corpus", "manifests", "features", "tokens", "index", "seed-3-dense", "seed-3-dense-continued"),
        *(f"seed-3-sparsity-0.7-{system}" for system in ("imp", "lap", "pathways-lth", "dynamic")),
        "tables",
    ]
    root = "exp/study/seed-3"
    system = f"{root}/sparsity-0.7"
    decoded = [("streaming_decode", "", "", "dev"), ("streaming_decode", "", "", "test")]

    def rows(name):
        return options_of(jobs[name], "num-updates", "updates-per-round", "split")

    assert rows("seed-3-dense-continued") == [("train", "3100", "", ""), *decoded]
    assert rows("seed-3-sparsity-0.7-lap") == [("prune", "", "400", ""), ("train", "1500", "", ""), *decoded]
    lsp = [("train", "375", "", ""), *decoded] * 4
    assert rows("seed-3-sparsity-0.7-imp") == [
        ("prune", "", "100", ""),
        ("train", "1500", "", ""),
        *decoded,
        *lsp,
    ]
    assert rows("seed-3-sparsity-0.7-dynamic") == [("train", "3100", "", ""), *decoded]
    (searched, *_) = options_of(
        jobs["seed-3-sparsity-0.7-pathways-lth"], "prune-method", "prune-for", "exp-dir", "seed"
    )
    assert searched == ("prune", "lth", "each-language", f"{system}/masks/lth", "3")
    lsp_step = jobs["seed-3-sparsity-0.7-imp"].steps[4]
    assert shlex.join(lsp_step.command).endswith(
        "--seed 3 --average-period 10 --save-every-n 90 --keep-last-k 2 "
        f"--masks {system}/masks/imp/masks.safetensors --languages en"
    )
    assert [str(step.mark) for step in jobs["seed-3-dense-continued"].steps] == [
        f"{root}/dense-continued/{mark}" for mark in (".done", ".done-dev", ".done-test")
    ]
    assert jobs["seed-3-dense"].steps[0].mark == Path(root, "dense", ".done")
    assert jobs["seed-3-dense"].log == Path("exp/study/log/seed-3-dense.log")
    assert jobs["seed-3-sparsity-0.7-lap"].after == ("seed-3-dense",)


def test_study_runs_only_selected_systems():
    line = "--seeds '1 2' --sparsities '0.5 0.9' --systems 'lsp dynamic' --languages 'en fr'"
    names = [job.name for job in study_graph(read("run-study", line + " --hours ''")) if job.name.startswith("seed")]
    assert names == [
        *("seed-1-dense", "seed-2-dense"),
        *(
            f"seed-{seed}-sparsity-{share}-{part}"
            for share in (0.5, 0.9)
            for seed in (1, 2)
            for part in ("imp", "dynamic")
        ),
    ]


def test_short_study_saves_two_checkpoints():
    line = "--corpus mls --finetune-updates 3 --mask-updates 1 --seeds 1 --systems lap"
    lap = next(job for job in study_graph(read("run-study", line)) if job.name.endswith("lap"))
    assert options_of(lap, "average-period", "save-every-n", "keep-last-k")[1] == ("train", "1", "1", "2")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--systems 'lap dens'", "unknown system 'dens'"),
        ("--systems ''", "--systems is empty"),
        ("--languages elvish", "unknown language 'elvish'"),
        ("--seeds '1 01'", "--seeds is '1 01': expected each number once"),
        ("--seeds 4294967296", "--seeds is 4294967296: expected at least 0 and at most 4294967295"),
        ("--sparsities 0", "--sparsities is 0.0: expected more than 0 and less than 1"),
        ("--splits 'dev train'", "--splits is 'dev train': expected some of dev test"),
        ("--systems lsp --finetune-updates 3", "--finetune-updates is 3: expected at least 4"),
        ("--sparsities '0.7 0.70'", "--sparsities is '0.7 0.70': expected each number once"),
    ],
)
def test_invalid_study_option_is_reported(line, message, capsys):
    with pytest.raises(SystemExit):
        read("run-study", line)
    assert message in " ".join(capsys.readouterr().err.split())


def test_spellings_of_a_number_are_the_same_experiment():
    config = read("run-study", "--seeds '01 2_0' --sparsities '.7 0.80 5e-1' --splits 'test test'")
    assert (config.seeds, config.sparsities, config.splits) == ("1 20", "0.7 0.8 0.5", "test")


def test_report_is_on_a_decoded_split():
    for splits, split in (("dev", "dev"), ("dev test", "test")):
        tables = study_graph(read("run-study", f"--splits '{splits}'"))[-1]
        assert options_of(tables, "split") == [("study", split)]


def start_dense(study_dir):
    """Write a checkpoint of the dense model of a study."""
    (study_dir / "seed-1" / "dense").mkdir(parents=True)
    (study_dir / "seed-1" / "dense" / "checkpoint-5.pt").touch()


def test_study_without_trainings_accepts_other_settings(tmp_path):
    """So that a wrong option can be corrected."""
    for updates in (7, 8):
        keep_settings(read("run-study", f"--study-dir {tmp_path} --mask-updates {updates}"))
    assert 'mask_updates="8"\n' in (tmp_path / "settings.txt").read_text()


def test_study_rejects_changed_settings(tmp_path):
    config = read("run-study", f"--study-dir {tmp_path}/study --mask-updates 7")
    keep_settings(config)
    start_dense(tmp_path / "study")
    keep_settings(config)
    with pytest.raises(ValueError, match=r"decode_args: now '--max-duration 100 --beam-size 8', stored"):
        keep_settings(read("run-study", f"--study-dir {tmp_path}/study --mask-updates 7 --decode-args '--beam-size 8'"))
    settings = (tmp_path / "study" / "settings.txt").read_text()
    assert 'mask_updates="7"\n' in settings and 'finetune_updates="1500"\n' in settings
    changed = read("run-study", f"--study-dir {tmp_path}/study --mask-updates 8")
    with pytest.raises(ValueError, match="started with other settings \\(mask_updates: now '8', stored '7'\\)"):
        keep_settings(changed)
    more = read("run-study", f"--study-dir {tmp_path}/study --mask-updates 7 --seeds 9 --sparsities 0.9 --at-once 2")
    keep_settings(more)


def test_settings_written_by_the_previous_version_are_recognized(tmp_path):
    keep_settings(read("run-study", f"--study-dir {tmp_path}"))
    file = tmp_path / "settings.txt"
    lines = [f"declare -- {line}" for line in file.read_text().splitlines()]
    lines = [
        line.replace('="', "=$'").replace(" --decoder-dim", r"\n  --decoder-dim")[:-1] + "'"
        if "train_args" in line
        else line
        for line in lines
    ]
    assert any(r"\n  --decoder-dim" in line for line in lines)
    file.write_text("\n".join(lines) + "\n")
    keep_settings(read("run-study", f"--study-dir {tmp_path}"))


def test_study_trains_random_masks_and_the_small_dense_model():
    line = "--seeds 3 --sparsities '0.5 0.7' --systems 'dense-language small-dense lap-random pathways-random'"
    jobs = {job.name: job for job in study_graph(read("run-study", line))}
    assert [name for name in jobs if name.startswith("seed")] == [
        *("seed-3-dense", "seed-3-dense-language", "seed-3-small-dense"),
        *(f"seed-3-sparsity-{share}-{kind}-random" for share in (0.5, 0.7) for kind in ("lap", "pathways")),
    ]
    decoded = [("streaming_decode", "", "", "")] * 2
    names = ("num-updates", "prune-for", "sparsity")
    assert options_of(jobs["seed-3-sparsity-0.5-lap-random"], *names) == [
        ("prune", "", "all-languages", "0.5"),
        ("train", "3100", "", ""),
        *decoded,
    ]
    (search, train, *_) = options_of(jobs["seed-3-sparsity-0.7-pathways-random"], "prune-method", "exp-dir", "seed")
    system = "exp/study/seed-3/sparsity-0.7"
    assert search == ("prune", "random", f"{system}/masks/pathways-random", "3")
    assert train == ("train", "", f"{system}/pathways-random", "3")
    (train, *_) = options_of(jobs["seed-3-dense-language"], "num-updates", "language-input", "init-from")
    assert train == ("train", "3100", "1", "exp/study/seed-3/dense")
    (train, *_) = options_of(jobs["seed-3-small-dense"], "encoder-dim", "init-from")
    assert train == ("train", "24", "")


SYSTEMS = (
    "dense-continued dense-language small-dense lap-random lap lsp pathways-random pathways-imp pathways-lth dynamic"
)


def updates_by_experiment(line: str) -> dict[str, int]:
    """Return the updates after the dense model of each experiment of a study, searches included, by its folder.

    The updates of a search are all attributed to the system; LSP, with models of several folders, is the last folder.
    """
    updates: dict[str, int] = {}
    for job in study_graph(read("run-study", f"--seeds 1 --systems '{SYSTEMS}' {line}")):
        names = ("num-updates", "updates-per-round", "prune-rounds", "prune-for", "prune-method", "exp-dir")
        for script, num_updates, per_round, rounds, prune_for, method, exp_dir in options_of(job, *names):
            folder = exp_dir.removeprefix("exp/study/seed-1/").removeprefix("sparsity-0.7/")
            if script == "train" and folder != "dense":
                updates[folder] = int(num_updates)
            elif script == "prune" and method != "random":
                updates[folder] = int(per_round) * int(rounds) * (1 if prune_for == "all-languages" else 4)
    return updates


def test_with_equal_updates_every_system_trains_for_as_long():
    updates = updates_by_experiment("--budget updates")
    trainings = {name: count for name, count in updates.items() if not name.startswith(("masks/", "lsp/"))}
    assert trainings.pop("small-dense") == 3000 + 1500
    assert set(trainings) == set(SYSTEMS.split()) - {"small-dense", "lsp"} and set(trainings.values()) == {1500}
    assert [count for name, count in updates.items() if name.startswith("lsp/")] == [1500 // 4] * 4


def test_with_equal_multiply_adds_searches_count():
    updates = updates_by_experiment("--budget multiply-adds")
    assert updates == updates_by_experiment(""), "the default, which was the only budget of earlier versions"
    searches = {"lap": "lap", "pathways-imp": "imp", "pathways-lth": "lth"}
    totals = {
        name: count + updates.get(f"masks/{searches.get(name)}", 0)
        for name, count in updates.items()
        if not name.startswith(("masks/", "lsp/"))
    }
    ratio = experiments.small_dense_ratio(read("run-study"))
    assert 1.5 < ratio < 2.5, "half as many parameters"
    assert totals.pop("small-dense") == round(ratio * (3000 + 1600 + 1500))
    assert set(totals) == set(SYSTEMS.split()) - {"small-dense", "lsp"} and set(totals.values()) == {1600 + 1500}
    lsp = [count for name, count in updates.items() if name.startswith("lsp/")]
    assert updates["masks/imp"] + sum(lsp) == 1600 + 1500


def test_the_ratio_of_the_small_dense_model_is_that_of_its_options():
    config = read("run-study")
    same = replace(config, small_dense_args="--encoder-dim 48 --dim-feedforward 192")
    assert experiments.small_dense_ratio(same) == 1
    deeper = replace(config, small_dense_args="--num-encoder-layers 8")
    assert experiments.small_dense_ratio(deeper) < 1


def test_a_study_of_an_earlier_version_continues_with_new_systems(tmp_path):
    config = read("run-study", f"--study-dir {tmp_path}")
    keep_settings(config)
    start_dense(tmp_path)
    file = tmp_path / "settings.txt"
    complete = file.read_text()
    file.write_text("".join(line for line in complete.splitlines(True) if "small_dense_args" not in line))
    keep_settings(config)
    assert file.read_text() == complete
    file.write_text("".join(line for line in complete.splitlines(True) if "budget" not in line))
    with pytest.raises(ValueError, match=r"other settings \(budget: now 'updates', stored 'multiply-adds'\)"):
        keep_settings(replace(config, budget="updates"))
    file.write_text("".join(line for line in complete.splitlines(True) if "synthetic" not in line))
    with pytest.raises(ValueError, match=r"other settings \(synthetic_updates: now '70', stored '0'\)"):
        keep_settings(replace(config, synthetic_updates=70))
    keep_settings(config)
    with pytest.raises(ValueError, match=r"other settings \(small_dense_args: now '--encoder-dim 8', stored"):
        keep_settings(replace(config, small_dense_args="--encoder-dim 8"))
