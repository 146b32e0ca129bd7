"""Jobs and done marks of the data preparation."""

from dataclasses import replace

import pytest

from icefall_pathways.recipe.prepare import prepare_jobs
from icefall_pathways.recipe.prepare_config import PrepareConfig

pytestmark = pytest.mark.usefixtures("recipe_folder")


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
    (corpus_job, *_) = prepare_jobs(PrepareConfig(content="transcripts", transcripts_dir="data/manifests"))
    assert corpus_job.steps[0].mark_text.endswith(" 42 data/manifests")
    assert "--transcripts-dir data/manifests" in " ".join(corpus_job.steps[0].command)


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


def test_ngram_models_are_trained_on_demand_for_the_tokenizer(tmp_path):
    config = PrepareConfig(languages="en fr", data_dir=tmp_path, ngram_order=4)
    *others, (heading, marks, _) = marks_of(prepare_jobs(config))
    assert others == marks_of(prepare_jobs(replace(config, ngram_order=0)))
    assert (heading, marks) == ("Stage 8-500-4: n-gram models, order 4", [".done-8-500-4-en", ".done-8-500-4-fr"])
    command = " ".join(prepare_jobs(config)[-1].steps[0].command)
    lang_dir = f"{tmp_path}/lang_bpe_500"
    assert command.endswith(
        f"--bpe-model {lang_dir}/bpe.model --order 4 --ngram-lm {lang_dir}/ngram-4-{{language}}.arpa"
    )
    finish(prepare_jobs(config))
    assert languages_in(prepare_jobs(replace(config, languages="en it"))[-1]) == "it"
    finish([job for job in prepare_jobs(replace(config, retrain_tokenizer=True)) if job.name == "tokens"])
    assert languages_in(prepare_jobs(config)[-1]) == "en fr"
