"""Jobs and commands of the demo, of the run on MLS and of the study."""

import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from icefall_pathways import cli
from icefall_pathways.models.transducer import build_model
from icefall_pathways.pathways.analysis import active_parameters
from icefall_pathways.pathways.masks import PathwayMasks
from icefall_pathways.pathways.schedules import RandomPruning
from icefall_pathways.recipe import presets
from icefall_pathways.recipe.environment import SINGLE_THREAD
from icefall_pathways.recipe.experiments import environment
from icefall_pathways.recipe.prepare import prepare_jobs
from icefall_pathways.recipe.prepare_config import PrepareConfig
from icefall_pathways.recipe.programs import read_options
from icefall_pathways.recipe.run import run_graph
from icefall_pathways.recipe.study import keep_settings, study_graph
from icefall_pathways.training.config import ExperimentConfig
from icefall_pathways.training.initialization import with_architecture
from icefall_pathways.training.runs import PRUNE_SCOPES

RECIPE = Path(__file__).resolve().parents[2] / "egs" / "mls" / "ASR"

DATA = (
    "--manifest-dir data/demo/fbank --languages 'en fr it nl' --bpe-model data/demo/lang_bpe_100/bpe.model "
    "--world-size 1"
)
COMMON = (
    "--max-duration 15 --num-workers 0 --enable-spec-aug 0 --sampling-temperature 2 --lr-schedule linear "
    "--ctc-loss-scale 1.0 --log-interval 25 --valid-interval 500 --valid-wer-cuts 20 --save-every-n 500 --keep-last-k 2"
)
EMFORMER = (
    "--num-encoder-layers 4 --encoder-dim 48 --nhead 4 --dim-feedforward 192 --cnn-module-kernel 15 --decoder-dim 64 "
    "--joiner-dim 64 --subsampling-channels 8,32 --left-context-length 64 --dropout 0"
)
SPEECH_ONLY = "--silence-perturb 0 --join-perturb 0"
SEARCH = "--lr-warmup 25 --warm-updates 0 --lr-schedule eden --lr-batches 1000000 --lr-epochs 1000000"
DECODE = "--decoding-method modified_beam_search --split test --max-duration 100"
PRUNE = "--sparsity 0.7 --prune-rounds 4"

#: Job -> script and options of its command.
DEMO = {
    "corpus": "local/make_mini_corpus.py --corpus-dir download/mini --languages 'en fr it nl' "
    "--hours-per-language 0.4 --hours 'en=1.4 fr=0.9 it=0.4 nl=0.9' --content numbers --dev-utterances 100 "
    "--test-utterances 150 --seed 42 --num-jobs 0",
    "manifests": "local/prepare_manifests.py --corpus mini --corpus-dir download/mini "
    "--output-dir data/demo/manifests --languages 'en fr it nl' --subset train --max-dropped-share 0.1 --num-jobs 0",
    "features": "local/compute_fbank.py --manifest-dir data/demo/manifests --output-dir data/demo/fbank "
    "--languages 'en fr it nl' --store-feats 1 --perturb-speed 0 --max-dropped-share 0.1 --num-jobs 0",
    "tokens": "local/train_bpe.py --cuts-dir data/demo/fbank --languages 'en fr it nl' --vocab-size 100 "
    "--output-dir data/demo/lang_bpe_100 --keep-model 1",
    "index": "local/index_cuts.py --manifest-dir data/demo/fbank --languages 'en fr it nl' "
    "--bpe-model data/demo/lang_bpe_100/bpe.model",
    "dense": f"pruned_transducer_pathways/train.py {DATA} --exp-dir exp/demo/dense --encoder-type emformer "
    f"--num-epochs 30 {EMFORMER} {COMMON} --num-updates 3000 --short-first 1 {SPEECH_ONLY} "
    "--base-lr 0.0015 --lr-warmup 150 --warm-updates 1000",
    "masks-lap": f"pruned_transducer_pathways/prune.py {DATA} --init-from exp/demo/dense --exp-dir exp/demo/masks-lap "
    f"--prune-for all-languages {PRUNE} --updates-per-round 400 {COMMON} {SPEECH_ONLY} --base-lr 0.002 {SEARCH}",
    "masks-pathways": f"pruned_transducer_pathways/prune.py {DATA} --init-from exp/demo/dense "
    f"--exp-dir exp/demo/masks-pathways --prune-for each-language {PRUNE} --updates-per-round 100 {COMMON} "
    f"{SPEECH_ONLY} --base-lr 0.002 {SEARCH}",
    "dense-continued": f"pruned_transducer_pathways/train.py {DATA} --init-from exp/demo/dense "
    f"--exp-dir exp/demo/dense-continued --num-updates 1500 {COMMON} --base-lr 0.004 --lr-warmup 50 --warm-updates 0",
    "lap": f"pruned_transducer_pathways/train.py {DATA} --init-from exp/demo/dense --exp-dir exp/demo/lap "
    f"--num-updates 1500 {COMMON} --base-lr 0.004 --lr-warmup 50 --warm-updates 0 "
    "--masks exp/demo/masks-lap/masks.safetensors",
    "pathways": f"pruned_transducer_pathways/train.py {DATA} --init-from exp/demo/dense --exp-dir exp/demo/pathways "
    f"--num-updates 1500 {COMMON} --base-lr 0.004 --lr-warmup 50 --warm-updates 0 "
    "--masks exp/demo/masks-pathways/masks.safetensors",
    "decode-dense-continued": f"pruned_transducer_pathways/decode.py --exp-dir exp/demo/dense-continued {DECODE}",
    "decode-lap": f"pruned_transducer_pathways/decode.py --exp-dir exp/demo/lap {DECODE}",
    "decode-pathways": f"pruned_transducer_pathways/decode.py --exp-dir exp/demo/pathways {DECODE}",
    "streaming-decode-dense-continued": "pruned_transducer_pathways/streaming_decode.py "
    f"--exp-dir exp/demo/dense-continued {DECODE}",
    "streaming-decode-lap": f"pruned_transducer_pathways/streaming_decode.py --exp-dir exp/demo/lap {DECODE}",
    "streaming-decode-pathways": f"pruned_transducer_pathways/streaming_decode.py --exp-dir exp/demo/pathways {DECODE}",
    "report": "pruned_transducer_pathways/report.py --systems \"'dense=exp/demo/dense-continued' "
    "'LAP=exp/demo/lap' 'pathways=exp/demo/pathways'\" --output exp/demo/report.html",
}


@pytest.fixture(autouse=True)
def _recipe_folder(tmp_path, monkeypatch):
    """Change to an empty folder with links to the recipe's scripts."""
    for name in ("local", "pruned_transducer_pathways"):
        (tmp_path / name).symlink_to(RECIPE / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)


def read(command: str, line: str = ""):
    return cli.read_config(command, shlex.split(line))


def commands(jobs) -> dict[str, str]:
    """Return script and options of every step of every job."""
    return {job.name: "\n".join(shlex.join(step.command[1:]) for step in job.steps) for job in jobs}


def normalized(text: str) -> str:
    return shlex.join(shlex.split(text))


def test_demo_commands_are_unchanged():
    jobs = run_graph(read("run", "--demo 1"))
    assert commands(jobs) == {name: normalized(line) for name, line in DEMO.items()}
    assert {job.name for job in jobs if job.parallel} == {
        *("masks-lap", "masks-pathways"),
        *("dense-continued", "lap", "pathways"),
    }
    environ = environment(read("run", "--demo 1"))
    assert environ.items() >= SINGLE_THREAD.items()


def test_stage_depends_on_the_previous_stage():
    jobs = {job.name: job for job in run_graph(presets.DEMO)}
    assert jobs["tokens"].after == ("features",)
    assert set(jobs["dense"].after) == {"corpus", "manifests", "features", "tokens", "index"}
    assert jobs["masks-lap"].after == jobs["masks-pathways"].after == ("dense",)
    assert jobs["lap"].after == ("masks-lap", "masks-pathways")
    assert jobs["report"].after == tuple(f"streaming-decode-{name}" for name in ("dense-continued", "lap", "pathways"))


def test_zipformer_demo_differs_only_in_model_optimizer_and_learning_rates():
    lines = commands(run_graph(read("run", "--demo 1 --encoder-type zipformer")))
    assert lines.keys() == DEMO.keys()
    model = "--zipformer micro --chunk-size 16 --left-context-frames 64"
    schedule = f"{COMMON} --ref-duration 1.5 --optimizer scaled-adam"
    for name, expected in DEMO.items():
        expected = expected.replace("--encoder-type emformer", "--encoder-type zipformer").replace(EMFORMER, model)
        expected = expected.replace(COMMON, schedule)
        for lr in ("0.0015", "0.002", "0.004"):
            expected = expected.replace(f"--base-lr {lr} ", "--base-lr 0.03 ")
        assert lines[name] == normalized(expected)


@pytest.mark.parametrize("line", ["--preset stamps", "--corpus stamps"])
def test_stamps_have_a_preset_of_their_own(line):
    config = read("run", line)
    lines = commands(run_graph(config))
    languages = "be bg ca da el es fr ro ru"
    assert config.languages == languages and "--perturb-speed 1" in lines["features"]
    assert f"--languages '{languages}' --vocab-size 200 --output-dir data/stamps/lang_bpe_200" in lines["tokens"]
    updates = {job.name: options_of(job, "num-updates", "updates-per-round")[0][1:] for job in run_graph(config)}
    assert len({updates[name] for name in ("dense-continued", "lap", "pathways")}) == 1
    assert int(updates["masks-lap"][1]) == len(languages.split()) * int(updates["masks-pathways"][1])
    assert environment(config).items() >= SINGLE_THREAD.items()
    assert lines["dense"] != commands(run_graph(read("run", "--corpus stamps --encoder-type zipformer")))["dense"]


def test_preset_is_another_name_of_the_option_that_selects_it():
    for line, same in (("--preset demo", "--demo 1"), ("--preset stamps", "--corpus stamps")):
        assert replace(read("run", line), preset="") == read("run", same)
    assert read("run", "--preset stamps --vocab-size 90").vocab_size == 90


@pytest.mark.parametrize("line", ["--preset stamps --demo 1", "--preset stamps --corpus mls", "--preset demo --demo 0"])
def test_preset_that_contradicts_another_option_is_rejected(line):
    with pytest.raises(ValueError, match=r"--preset .* has no effect with the settings of"):
        run_graph(read("run", line))


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
    assert lines["dense"].endswith("--exp-dir 'my own/dense' --encoder-type emformer --num-epochs 30 --num-updates 6")


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


def options_of(job, *names: str) -> list[tuple[str, ...]]:
    """Return the script and the values of some options of every step; the last value of a repeated option counts."""
    rows = []
    for step in job.steps:
        values = dict(zip(step.command, step.command[1:], strict=False))
        rows.append((Path(step.command[1]).stem, *(values.get(f"--{name}", "") for name in names)))
    return rows


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


def test_demo_and_study_train_the_same_dense_model():
    (demo,) = options_of(next(job for job in run_graph(presets.DEMO) if job.name == "dense"), "base-lr", "num-updates")
    study = next(job for job in study_graph(presets.STUDY) if job.name == "seed-1-dense")
    assert options_of(study, "base-lr", "num-updates") == [demo]
    assert presets.STUDY_ZIPFORMER.train_args == presets.DEMO_ZIPFORMER.train_args
    assert read("run-study", "--encoder-type zipformer") == presets.STUDY_ZIPFORMER
    assert read("run-study", "--corpus mls") == presets.STUDY_MLS
    assert read("run") == presets.MLS


@pytest.mark.parametrize(("command", "options"), [("run", "--demo 1"), ("run-study", "")])
def test_encoder_without_preset_is_rejected(command, options):
    with pytest.raises(ValueError, match="--encoder-type is lstm, and corpora of this size have presets for emformer"):
        read(command, f"{options} --encoder-type lstm")


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
    ],
)
def test_invalid_study_option_is_reported(line, message, capsys):
    with pytest.raises(SystemExit):
        read("run-study", line)
    assert message in " ".join(capsys.readouterr().err.split())


def test_study_rejects_changed_settings(tmp_path):
    config = read("run-study", f"--study-dir {tmp_path}/study --mask-updates 7")
    keep_settings(config)
    keep_settings(config)
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


def marks_of(jobs):
    return [(job.heading, [mark.name for mark in job.steps[0].marks], job.steps[0].mark_text) for job in jobs]


def test_done_marks_of_preparation_contain_the_options_that_determine_the_data(tmp_path):
    config = PrepareConfig(
        corpus="mls",
        corpus_dir=str(tmp_path),
        musan_dir=str(tmp_path),
        languages="en fr",
        store_feats=False,
        perturb_speed=True,
    )
    jobs = prepare_jobs(config)
    corpus = f"mls {tmp_path} train"
    assert marks_of(jobs) == [
        ("Stage 0: get the corpus", [".done-0-en", ".done-0-fr"], corpus),
        ("Stage 1: manifests", [".done-1-en", ".done-1-fr"], corpus),
        ("Stage 2: MUSAN manifests", [".done-2"], str(tmp_path)),
        ("Stage 3: features, validation, statistics", [".done-3-en", ".done-3-fr"], f"{corpus} 1, not stored"),
        ("Stage 4: MUSAN features", [".done-4"], str(tmp_path)),
        ("Stage 5-500: SentencePiece, 500 tokens", [".done-5-500-en", ".done-5-500-fr"], f"{corpus} 1"),
        ("Stage 6-500: index of the training cuts", [".done-6-500-en", ".done-6-500-fr"], f"{corpus} 1, not stored"),
    ]
    assert jobs[0].steps[0].command == () and jobs[0].steps[0].message == f"The corpus is in {tmp_path}"
    mini = prepare_jobs(PrepareConfig(hours="en=2", spm_temperature=2.0))
    assert mini[0].steps[0].mark_text == "mini download/mini 0.4 en=2 numbers calendar 60 120 42"
    assert mini[-2].steps[0].mark_text.endswith("120 42 0, spm_temperature 2")


@pytest.mark.parametrize(("store_feats", "field"), [(True, "features"), (False, "recording")])
def test_training_cuts_are_copied_to_tar_files_on_demand(tmp_path, store_feats, field):
    config = PrepareConfig(languages="en fr", data_dir=tmp_path, store="shar", store_feats=store_feats, num_jobs=3)
    *others, (heading, marks, options) = marks_of(prepare_jobs(config))
    assert others == marks_of(prepare_jobs(replace(config, store="files")))
    assert (heading, marks) == ("Stage 7: training cuts in tar files", [".done-7-en", ".done-7-fr"])
    assert options == prepare_jobs(replace(config, stage=3, stop_stage=3))[0].steps[0].mark_text
    command = " ".join(prepare_jobs(config)[-1].steps[0].command)
    expected = f"--languages en fr --bpe-model {tmp_path}/lang_bpe_500/bpe.model --field {field} --num-jobs 3"
    assert command.endswith(f"export_shar.py --manifest-dir {tmp_path}/fbank {expected}")


def finish(jobs):
    for job in jobs:
        job.steps[0].set_done()


def languages_in(job):
    command = job.steps[0].command
    return command[command.index("--languages") + 1] if command else ""


@pytest.mark.parametrize("previous_version", [False, True])
def test_only_missing_languages_are_prepared(tmp_path, previous_version):
    config = PrepareConfig(corpus="mls", corpus_dir=str(tmp_path), languages="en fr it", data_dir=tmp_path / "data")
    finish(prepare_jobs(config))
    if previous_version:
        for path in (tmp_path / "data").iterdir():
            path.unlink()
        corpus = f"mls {tmp_path} en fr it train"
        for stage, text in {"0": corpus, "1": corpus, "3": f"{corpus} 0", "5-500": f"{corpus} 0"}.items():
            (tmp_path / "data" / f".done-{stage}").write_text(f"{text}\n")
    subset = prepare_jobs(replace(config, languages="it en"))[:-1]  # stage 6 had no mark in the previous version
    assert all(job.steps[0].command == () and job.is_done() != previous_version for job in subset)
    more = prepare_jobs(replace(config, languages="en fr pl"))
    assert [languages_in(job) for job in more] == ["", "pl", "pl", "en fr pl", "en fr pl" if previous_version else "pl"]
    words = more[-2].steps[0].command
    assert words[words.index("--keep-model") + 1] == "1"
    finish(more)
    assert all(job.is_done() for job in prepare_jobs(replace(config, languages="en fr pl")))
    for changed in (replace(config, subset="10hr"), replace(config, languages="de", perturb_speed=True)):
        with pytest.raises(ValueError, match=r"stage \d .* was finished in .* with other options: \(mls .*\), now"):
            prepare_jobs(changed)


def test_the_tokenizer_is_trained_again_only_on_request_and_once(tmp_path):
    config = PrepareConfig(corpus="mls", corpus_dir=str(tmp_path), languages="en fr", data_dir=tmp_path / "data")
    finish(prepare_jobs(config))
    again = replace(config, retrain_tokenizer=True)
    *others, tokens, _ = prepare_jobs(again)
    assert all(job.is_done() for job in others) and not tokens.is_done()
    words = tokens.steps[0].command
    assert words[words.index("--keep-model") + 1] == "0"
    finish([tokens])
    assert prepare_jobs(again)[-2].is_done()
    assert prepare_jobs(config)[-2].steps[0].command == ()


def test_another_tokenizer_needs_another_index(tmp_path):
    config = PrepareConfig(corpus="mls", corpus_dir=str(tmp_path), languages="en fr it", data_dir=tmp_path / "data")
    finish(prepare_jobs(config))
    again = replace(config, retrain_tokenizer=True)
    assert languages_in(prepare_jobs(again)[-1]) == "en fr it"
    finish(prepare_jobs(replace(again, languages="en fr")))
    assert languages_in(prepare_jobs(replace(config, languages="en fr"))[-1]) == ""
    *_, tokens, index = prepare_jobs(replace(config, languages="en fr it pl"))
    assert languages_in(index) == "it pl"
    finish([tokens])  # keeps the tokenizer
    assert languages_in(prepare_jobs(replace(config, languages="en fr it pl"))[-1]) == "it pl"


def test_a_part_of_an_array_job_is_one_stage_without_done_mark(tmp_path):
    config = PrepareConfig(corpus="mls", corpus_dir=str(tmp_path), data_dir=tmp_path / "data", shard="3/64")
    for stage in (1, 3):
        (job,) = prepare_jobs(replace(config, stage=stage, stop_stage=stage))
        assert job.steps[0].command[-2:] == ("--shard", "3/64") and not job.steps[0].marks
    for stages in ({}, {"stage": 5, "stop_stage": 5}, {"stage": 1, "stop_stage": 3}):
        with pytest.raises(ValueError, match=r"--shard 3/64 needs one stage .* --stage 1 --stop-stage 1 or --stage 3"):
            prepare_jobs(replace(config, **stages))
    with pytest.raises(ValueError, match=r"--shard '0/0': expected K/N with K from 1 to N"):
        prepare_jobs(replace(config, stage=1, stop_stage=1, shard="0/0"))


def test_workers_of_dask_compute_manifests_and_features():
    config = PrepareConfig(executor="dask", dask_scheduler="tcp://a:8786")
    commands = {job.name: job.steps[0].command for job in prepare_jobs(config)}
    words = ("--executor", "dask", "--dask-scheduler", "tcp://a:8786")
    assert [name for name, command in commands.items() if command[-4:] == words] == ["manifests", "features"]


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


def test_demo_trains_and_compares_the_selected_systems():
    line = "--demo 1 --systems 'pathways-random small-dense lap-random' --stage 2"
    jobs = {job.name: job for job in run_graph(read("run", line))}
    lines = commands(jobs.values())
    names = ("small-dense", "lap-random", "pathways-random")
    assert list(jobs) == [
        *("masks-lap-random", "masks-pathways-random", *names),
        *(f"decode-{name}" for name in names),
        *(f"streaming-decode-{name}" for name in names),
        "report",
    ]
    for name, prune_for in (("lap-random", "all-languages"), ("pathways-random", "each-language")):
        assert lines[f"masks-{name}"] == normalized(
            f"pruned_transducer_pathways/prune.py {DATA} --init-from exp/demo/dense --exp-dir exp/demo/masks-{name} "
            f"--prune-for {prune_for} --sparsity 0.7 {COMMON} {SPEECH_ONLY} --base-lr 0.002 {SEARCH} "
            "--prune-method random"
        )
        masks = f"--masks exp/demo/masks-{name}/masks.safetensors"
        assert lines[name] == normalized(DEMO["lap"].replace("/lap ", f"/{name} ").split("--masks")[0] + masks)
    language = {job.name: job for job in run_graph(read("run", line.replace("small-dense", "dense-language")))}
    expected = DEMO["dense-continued"].replace("dense-continued", "dense-language")
    assert commands(language.values())["dense-language"] == normalized(f"{expected} --language-input 1")
    from_scratch = DEMO["dense"].replace("exp/demo/dense", "exp/demo/small-dense")
    assert lines["small-dense"] == normalized(
        f"{from_scratch} --encoder-dim 24 --dim-feedforward 128 --num-updates 4500"
    )
    assert "'LAP (random mask)=exp/demo/lap-random'" in lines["report"]


def test_a_stage_without_jobs_keeps_the_order_of_the_others():
    jobs = {job.name: job for job in run_graph(read("run", "--demo 1 --systems dense-continued"))}
    assert jobs["dense-continued"].after == ("dense",)


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
        ("train", "1500", "", ""),
        *decoded,
    ]
    (search, train, *_) = options_of(jobs["seed-3-sparsity-0.7-pathways-random"], "prune-method", "exp-dir", "seed")
    system = "exp/study/seed-3/sparsity-0.7"
    assert search == ("prune", "random", f"{system}/masks/pathways-random", "3")
    assert train == ("train", "", f"{system}/pathways-random", "3")
    (train, *_) = options_of(jobs["seed-3-dense-language"], "num-updates", "language-input", "init-from")
    assert train == ("train", "3100", "1", "exp/study/seed-3/dense")
    (train, *_) = options_of(jobs["seed-3-small-dense"], "num-updates", "encoder-dim", "save-every-n", "init-from")
    assert train == ("train", str(3000 + 3100), "24", str(3100 // 4 // 10 * 10), "")


def build(config, extra: str = ""):
    """Return the dense model that a configuration trains, with the number of tokens of its vocabulary."""
    words = f"--encoder-type {config.encoder_type} {config.train_args} {extra}"
    options = with_architecture(read_options(ExperimentConfig, "", words.split()), None)
    return build_model(options.model, config.vocab_size)


@pytest.mark.parametrize("config", [presets.STUDY, presets.STUDY_ZIPFORMER], ids=lambda config: config.encoder_type)
def test_small_dense_model_has_as_many_parameters_as_a_pathway_uses(config):
    model, small = build(config), build(config, config.small_dense_args)
    masks = PathwayMasks.dense(model, ["en"], PRUNE_SCOPES["encoder-predictor"])
    RandomPruning(0.7, seed=1).prune_after(1, model, masks, ["en"])
    expected = active_parameters(model, masks, "en")
    assert active_parameters(small, None, "en") == pytest.approx(expected, rel=0.02)


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


def test_a_study_of_an_earlier_version_continues_with_new_systems(tmp_path):
    config = read("run-study", f"--study-dir {tmp_path}")
    keep_settings(config)
    file = tmp_path / "settings.txt"
    complete = file.read_text()
    file.write_text("".join(line for line in complete.splitlines(True) if "small_dense_args" not in line))
    keep_settings(config)
    assert file.read_text() == complete
    with pytest.raises(ValueError, match=r"other settings \(small_dense_args: now '--encoder-dim 8', stored"):
        keep_settings(replace(config, small_dense_args="--encoder-dim 8"))
