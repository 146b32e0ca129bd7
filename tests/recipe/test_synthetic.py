"""Training on synthetic speech before real speech."""

from dataclasses import replace

import pytest
from recipe_graphs import commands, options_of, read

from icefall_pathways.recipe.run import run_graph
from icefall_pathways.recipe.study import study_graph
from icefall_pathways.recipe.synthetic import data_jobs

pytestmark = pytest.mark.usefixtures("recipe_folder")

OPTIONS = "--corpus stamps --systems 'small-dense pathways' --synthetic-updates 70 --train-args '--num-updates 90'"
COLUMNS = ("manifest-dir", "num-updates", "exp-dir", "init-from")


def jobs_of(line: str):
    return {job.name: job for job in run_graph(read("run", f"{OPTIONS} --small-dense-args '--encoder-dim 8' {line}"))}


def test_synthetic_speech_comes_before_real_speech():
    jobs = jobs_of("")
    first, last = jobs["dense-synthetic"], jobs["dense"]
    folder = "exp/stamps/dense-synthetic"
    assert options_of(first, *COLUMNS) == [("train", "data/stamps/synthetic/fbank", "70", folder, "")]
    assert options_of(last, *COLUMNS) == [("train", "data/stamps/fbank", "90", "exp/stamps/dense", folder)]
    assert "dense-synthetic" in last.after and "synthetic-features" in first.after
    (tokenizer,) = options_of(first, "bpe-model")
    assert options_of(last, "bpe-model") == [tokenizer], "the second training continues with the same tokens"
    assert options_of(jobs["small-dense"], "init-from") == [("train", "exp/stamps/small-dense-synthetic")]
    assert options_of(jobs["small-dense-synthetic"], "num-updates", "encoder-dim") == [("train", "70", "8")]


def test_synthetic_speech_is_prepared_after_the_transcripts_that_it_repeats():
    jobs = jobs_of("--synthetic-args '--content transcripts --seed 3'")
    assert set(jobs["synthetic-corpus"].after) == {"corpus", "manifests", "features", "tokens", "index", "ngram"}
    assert jobs["synthetic-manifests"].after == ("synthetic-corpus",)
    columns = ("corpus-dir", "languages", "content", "transcripts-dir", "seed")
    (words,) = options_of(jobs["synthetic-corpus"], *columns)
    folder = "data/stamps/synthetic/corpus"
    assert words[1:] == (folder, "be bg ca da el es fr ro ru", "transcripts", "data/stamps/manifests", "3")
    assert "synthetic-tokens" not in jobs


def test_content_without_transcripts_does_not_need_them():
    jobs = jobs_of("--synthetic-args '--content names'")
    assert options_of(jobs["synthetic-corpus"], "transcripts-dir") == [("make_mini_corpus", "")]


def test_language_without_a_voice_is_reported_before_anything_runs():
    with pytest.raises(ValueError, match=r"--synthetic-updates 70 needs a voice for every language .* fi; .*leave"):
        data_jobs(replace(read("run", OPTIONS), languages="fr fi"), after=())


@pytest.mark.parametrize(
    ("content", "message"),
    [("poems", "expected some of numbers, calendar"), ("numbers", "there are no bulgarian number words")],
)
def test_sentences_that_cannot_be_synthesized_are_reported_before_anything_runs(content, message):
    with pytest.raises(ValueError, match=f"--content '{content}'.*{message}"):
        jobs_of(f"--synthetic-args '--content {content}'")


def test_without_updates_there_is_no_synthetic_speech():
    jobs = jobs_of("--synthetic-updates 0")
    assert not [name for name in jobs if "synthetic" in name]
    assert options_of(jobs["dense"], "init-from") == [("train", "")]


def test_mistyped_option_of_the_synthetic_speech_is_reported_before_anything_runs(capsys):
    with pytest.raises(ValueError, match=r"--synthetic-args: expected options of ./prepare.sh"):
        jobs_of("--synthetic-args '--kontent names'")
    printed = capsys.readouterr().err
    assert "--kontent" in printed and "./prepare.sh --help" in printed


def test_synthetic_speech_is_always_that_of_the_embedded_corpus():
    with pytest.raises(ValueError, match="has --corpus-dir, which the recipe sets: leave it out"):
        jobs_of("--synthetic-args '--corpus-dir /data/clips'")


@pytest.mark.parametrize("budget", ["updates", "multiply-adds"])
def test_study_trains_every_seed_on_synthetic_speech(budget):
    line = f"--corpus stamps --seeds 5 --systems small-dense --budget {budget} --small-dense-args '--encoder-dim 24'"
    jobs = {job.name: job for job in study_graph(read("run-study", line))}
    dense = options_of(jobs["seed-5-dense"], "seed", *COLUMNS)
    folder = "exp/study-stamps/seed-5"
    assert [row[1:3] for row in dense] == [("5", "data/stamps/synthetic/fbank"), ("5", "data/stamps/fbank")]
    assert dense[1][4:] == (f"{folder}/dense", f"{folder}/dense-synthetic")
    small = options_of(jobs["seed-5-small-dense"], "num-updates", "init-from")
    assert small[1][2] == f"{folder}/small-dense-synthetic"
    # With equal multiply-adds, a smaller model takes more updates of both trainings.
    assert (int(small[0][1]) > int(dense[0][3])) == (budget == "multiply-adds")
    assert "lang_bpe_200" in commands(jobs.values())["seed-5-dense"]
