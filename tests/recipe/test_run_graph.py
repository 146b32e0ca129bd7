"""Jobs of the run: order, stages and options."""

import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from recipe_graphs import commands, normalized, options_of, read

from icefall_pathways import cli
from icefall_pathways.files import write_json
from icefall_pathways.recipe import presets
from icefall_pathways.recipe.experiments import environment, prepare_config, small_dense_command
from icefall_pathways.recipe.run import run_graph
from icefall_pathways.recipe.study import study_graph
from icefall_pathways.reporting.systems import RUN_SYSTEMS, STUDY_SYSTEMS

pytestmark = pytest.mark.usefixtures("recipe_folder")


@pytest.mark.parametrize(("command", "systems"), [("run", RUN_SYSTEMS), ("run-study", STUDY_SYSTEMS)])
def test_help_lists_all_systems(command, systems, capsys):
    with pytest.raises(SystemExit):
        read(command, "--help")
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert f"separated by spaces, of {' '.join(systems)}. " in text


def test_stage_depends_on_the_previous_stage():
    jobs = {job.name: job for job in run_graph(presets.DEMO)}
    assert jobs["tokens"].after == ("features",)
    assert set(jobs["dense"].after) == {"corpus", "manifests", "features", "tokens", "index"}
    assert jobs["masks-lap"].after == jobs["masks-pathways"].after == ("dense",)
    assert jobs["lap"].after == ("masks-lap", "masks-pathways")
    assert jobs["report"].after == tuple(f"streaming-decode-{name}" for name in presets.DEMO.selected_systems)


def test_mls_run_does_not_use_demo_settings(tmp_path):
    (tmp_path / "mls_english").mkdir()
    config = read("run", f"--world-size 8 --corpus-dir {tmp_path}")
    lines = commands(run_graph(config))
    data = "--manifest-dir data/fbank --languages 'en fr it nl' --bpe-model data/lang_bpe_500/bpe.model --world-size 8"
    train = f"pruned_transducer_pathways/train.py {data}"
    assert lines["corpus"] == ""
    assert lines["dense"] == normalized(f"{train} --exp-dir exp/dense --encoder-type emformer --num-epochs 30")
    assert lines["pathways"] == normalized(
        f"{train} --init-from exp/dense --exp-dir exp/pathways --num-updates 40000 "
        "--masks exp/masks-pathways/masks.safetensors"
    )
    assert "--updates-per-round 4000" in lines["masks-lap"] and "--updates-per-round 1000" in lines["masks-pathways"]
    assert lines["decode-lap"].endswith("--decoding-method modified_beam_search --split test")
    assert "OMP_NUM_THREADS" not in environment(config)


def test_given_options_take_precedence_over_the_preset():
    config = read("run", "--demo 1 --exp-root 'my own' --train-args '--num-updates 6' --at-once 1 --stage 1")
    assert config.at_once == 1 and config.vocab_size == 100
    lines = commands(run_graph(config))
    assert "corpus" not in lines
    head, tail = "--exp-dir 'my own/dense' --encoder-type emformer --num-epochs 30 ", " --num-updates 6"
    assert lines["dense"].endswith(f"{head}{presets.DEMO.train_args}{tail}")


def test_options_in_args_options_are_appended_to_those_of_the_preset():
    """So that one option can be changed without repeating the model of the preset."""
    for line, preset in (("--demo 1", presets.DEMO), ("", presets.MLS)):
        words = [f"--{name} '--bar 2'" for name in ("train-args", "small_dense_args", "decode-args")]
        config = read("run", f"{line} {' '.join(words)} --finetune-args=--baz")
        for name in ("train_args", "small_dense_args", "decode_args"):
            assert getattr(config, name).split() == [*getattr(preset, name).split(), "--bar", "2"], name
        assert config.finetune_args.split() == [*preset.finetune_args.split(), "--baz"]
        assert config.search_args == preset.search_args


def test_values_of_a_repeated_args_option_are_joined():
    config = read("run", "--train-args '--bar 1' --languages 'de fr' --train_args='--baz 2' --train-args ''")
    assert config.train_args.split() == ["--bar", "1", "--baz", "2"] and config.languages == "de fr"


@pytest.mark.parametrize(
    ("command", "line", "message"),
    [
        (
            "run",
            "--search-args '--sparsity 0.3'",
            "--search-args has --sparsity, which the recipe sets: use",
        ),
        ("run", "--finetune-args '--num_updates=6'", "--finetune-args has --num-updates, which the recipe sets"),
        ("run", "--decode-args '--split dev'", "--decode-args has --split, which the recipe sets"),
        ("run", "--prepare-args '--languages fr'", "which the recipe sets: use --languages of the recipe"),
        ("run", "--train-args '--encoder-type zipformer'", "which the recipe sets: use --encoder-type of the recipe"),
        ("run", '--train-args "--dropout \'0"', "--train-args: .*No closing quotation"),
        ("run-study", "--train-args '--seed 5'", "--train-args has --seed, which the recipe sets"),
    ],
)
def test_options_that_the_recipe_sets_are_rejected_in_args_options(command, line, message):
    make_graph = run_graph if command == "run" else study_graph
    with pytest.raises(ValueError, match=message):
        make_graph(read(command, line))


# Options that a generated command has, and that an -args option may set: their values are used, or the study's own.
_ADJUSTABLE = {"num-updates", "num-epochs", "save-every-n", "keep-last-k", "ngram-lm"}


@pytest.mark.parametrize(("command", "make_graph"), [("run", run_graph), ("run-study", study_graph)])
def test_options_of_generated_commands_are_rejected_or_adjustable(command, make_graph):
    """So that no -args option changes what a comparison depends on, or is ignored."""
    systems = "dense-continued small-dense lap pathways-random dynamic"
    line = f"--corpus mls --num-epochs 2 --systems '{systems}' --small-dense-args '--num-heads 2'"
    config = replace(read(command, line), train_args="--num-updates 9", dynamic_args="", decode_args="")
    checked = set()
    for job in make_graph(config):
        for step in job.steps:
            field = _args_option(step.command)
            names = {word[2:].partition("=")[0] for word in step.command if word.startswith("--")}
            # The searches of a run may use another method, which random masks do not.
            for name in names - _ADJUSTABLE - ({"num-heads", "prune-method"} if command == "run" else {"num-heads"}):
                if field:
                    checked.add(field)
                    with pytest.raises(ValueError, match=f"has --{name}, which the recipe sets"):
                        make_graph(replace(config, **{field: f"--{name} 1"}))
    assert checked == {"train_args", "small_dense_args", "search_args", "finetune_args", "dynamic_args", "decode_args"}


def _args_option(command):
    """Return the -args option that adds to a command; None if there is none."""
    script = Path(command[1]).stem
    if script != "train":
        return {"prune": "search_args", "decode": "decode_args", "streaming_decode": "decode_args"}.get(script)
    if "--init-from" not in command:
        return "small_dense_args" if "--num-heads" in command else "train_args"
    return "dynamic_args" if "adaptive" in command else "finetune_args"


def test_seed_of_a_run_can_be_set():
    assert commands(run_graph(read("run", "--demo 1 --train-args '--seed 5'")))["dense"].endswith("--seed 5")


def test_the_last_of_repeated_options_is_used():
    config = read("run", "--demo 1 --prepare-args '--content phrases --dev-utterances 3'")
    assert prepare_config(config).content == "phrases" and prepare_config(config).dev_utterances == 3
    for words in ("--num-updates 6", "--num_updates 6", "--num-updates=6"):
        assert small_dense_command(read("run", f"--demo 1 --train-args '{words}'"), Path("small"), 4)[-1] == "10"


def test_selected_stages_and_extra_options_reach_their_commands():
    options = "--stage 2 --stop-stage 4 --search-args '--bar 2' --finetune-args=--baz --decode-args \"--qux 4\""
    lines = commands(run_graph(read("run", options)))
    assert list(lines) == [
        *("masks-lap", "masks-pathways", "dense-continued", "lap", "pathways"),
        *("decode-dense-continued", "decode-lap", "decode-pathways"),
    ]
    assert lines["masks-lap"].endswith("--updates-per-round 4000 --bar 2")
    assert " --baz --masks " in lines["lap"]
    assert lines["decode-lap"].endswith("--split test --qux 4")


def test_values_of_extra_options_may_have_spaces():
    extra = """--prepare-args "--content 'numbers phrases'" --train-args "--index-dir 'my index'" """
    lines = commands(run_graph(read("run", f"--demo 1 --stop-stage 1 {extra}")))
    assert "--content 'numbers phrases'" in lines["corpus"]
    assert lines["dense"].endswith("--index-dir 'my index'")
    with pytest.raises(ValueError, match=r"numbers'.*No closing quotation; expected options as on a command line"):
        run_graph(read("run", """--demo 1 --prepare-args "--content numbers'" """))


def test_commands_run_outside_the_recipe_folder(tmp_path, monkeypatch):
    folder = tmp_path / "another-recipe"
    (folder / "local").mkdir(parents=True)
    (folder / "local" / "compute_fbank.py").write_text("# a script of another recipe")
    monkeypatch.chdir(folder)
    jobs = {job.name: job for job in run_graph(presets.DEMO)}
    for name, command in (("features", "compute-fbank"), ("report", "report")):
        assert jobs[name].steps[0].command[1:4] == ("-m", "icefall_pathways", command)


def test_dry_run_writes_no_files(tmp_path, capsys):
    for command in ("run", "run-study", "prepare"):
        before = sorted(tmp_path.rglob("*"))
        cli.run_command(command, ["--dry-run", "1"])
        assert sorted(tmp_path.rglob("*")) == before
    printed = capsys.readouterr().out
    assert "=== Stage 6: compare\nreport: to run, after " in printed
    assert "seed-1-dense: to run, after " in printed


def test_a_stage_without_jobs_keeps_the_order_of_the_others():
    jobs = {job.name: job for job in run_graph(read("run", "--demo 1 --systems dense-continued"))}
    assert jobs["dense-continued"].after == ("dense",)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--train-args '--num-updates 9'", "the system small-dense has no preset here"),
        ("--small-dense-args '--encoder-dim 256'", '--train-args "" has no number of updates'),
    ],
)
def test_small_dense_model_without_size_or_updates_is_rejected(line, message):
    with pytest.raises(ValueError, match=message):
        run_graph(read("run", f"--systems small-dense {line}"))


@pytest.mark.parametrize("option", ["--num-epochs 30", "--num-epochs=3", "--num_epochs 3"])
@pytest.mark.parametrize(("command", "preset"), [("run", "--demo 1"), ("run", "--preset stamps"), ("run-study", "")])
def test_epochs_are_rejected_if_updates_determine_the_training(command, preset, option):
    train_args = read(command, preset).train_args
    with pytest.raises(ValueError, match=r"--num-epochs \d+ has no effect, .* --num-updates \d+: ") as error:
        read(command, f"{preset} {option}")
    words = shlex.split(str(error.value).partition(" N with ")[2].replace("updates N", "updates 77"))
    changed = cli.read_config(command, [*shlex.split(preset), *words]).train_args
    assert changed == f"{train_args} --num-updates 77"


def test_epochs_determine_a_training_without_updates():
    for command, line in (("run", ""), ("run", "--train-args '--dropout 0'"), ("run-study", "--corpus mls")):
        assert read(command, f"{line} --num-epochs 7").num_epochs == 7


def test_experiments_on_other_languages_are_reported_with_the_options_of_the_run(tmp_path):
    for name in ("dense", "pathways"):
        (tmp_path / "exp" / name).mkdir(parents=True)
        write_json(tmp_path / "exp" / name / "config.json", {"data": {"languages": ["de", "fr"]}})
    line = "--corpus mls --languages"
    assert run_graph(read("run", f"{line} 'de fr it'"))  # no checkpoint: a new training can use the folders
    (tmp_path / "exp" / "pathways" / "checkpoint-5.pt").touch()
    expected = 'exp/pathways holds a training on de fr, and this run is on de fr it: use another --exp-root .* "de fr"'
    with pytest.raises(ValueError, match=expected):
        run_graph(read("run", f"{line} 'de fr it'"))
    for other in ("'de fr'", "'german french'", "'de fr it' --exp-root exp-it", "'de fr it' --stop-stage 2"):
        assert run_graph(read("run", f"{line} {other}"))


def test_decoding_uses_the_ngram_models_of_the_preparation(tmp_path):
    jobs = {job.name: job for job in run_graph(read("run", f"--demo 1 --ngram-order 3 --data-dir {tmp_path}"))}
    path = f"{tmp_path}/lang_bpe_100/ngram-3-{{language}}.arpa"
    names = [name for name, job in jobs.items() if [row[1] for row in options_of(job, "ngram-lm")] == [path]]
    decodings = [f"{kind}-{name}" for kind in ("decode", "streaming-decode") for name in presets.DEMO.selected_systems]
    assert names == ["ngram", *decodings]
