"""--corpus-dir: folders that are missing, created, or without a folder per language."""

from pathlib import Path

import pytest
from recipe_graphs import read

from icefall_pathways.corpora.download import DownloadConfig, download_mls
from icefall_pathways.corpora.validation import CorpusError
from icefall_pathways.recipe.prepare import prepare_jobs
from icefall_pathways.recipe.run import run_graph
from icefall_pathways.recipe.study import study_graph

pytestmark = pytest.mark.usefixtures("recipe_folder")


@pytest.mark.parametrize("command", ["run", "run-study", "prepare"])
def test_mistyped_corpus_folder_starts_no_download_or_synthesis(tmp_path, command):
    config = read(command, "--corpus-dir clpis")
    make_jobs = {"run": run_graph, "run-study": study_graph, "prepare": prepare_jobs}[command]
    expected = f"--corpus-dir: {tmp_path}/clpis does not exist; --corpus folder needs an existing folder"
    with pytest.raises(ValueError, match=f"{expected} .* Only mini, mls, stamps, selected with --corpus, are created"):
        make_jobs(config)


@pytest.mark.parametrize(
    ("options", "script"),
    [
        ("--corpus mls", "download_mls.py"),
        ("--corpus stamps", "get_corpus.py"),
        ("--preset stamps", "get_corpus.py"),
        ("--demo 1", "make_mini_corpus.py"),
    ],
)
def test_corpus_selected_by_name_is_created_in_a_new_folder(tmp_path, options, script):
    (step,) = run_graph(read("run", f"{options} --corpus-dir new"))[0].steps
    assert Path(step.command[1]).name == script and "--corpus-dir new" in " ".join(step.command)
    assert step.message.startswith(f"Creating {tmp_path}/new for --corpus ")
    assert run_graph(read("run", options))[0].steps[0].message == ""


def test_a_download_is_completed_and_other_folders_are_used_unchanged(tmp_path):
    def command():
        return run_graph(read("run", "--corpus mls --corpus-dir mls"))[0].steps[0].command

    (tmp_path / "mls" / "mls_english").mkdir(parents=True)
    assert command() == ()
    with pytest.raises(CorpusError, match="cannot reach"):
        download_mls(DownloadConfig(tmp_path / "mls", base_url="http://127.0.0.1:1"))
    assert Path(command()[1]).name == "download_mls.py"


def test_preset_uses_an_existing_folder_of_its_corpus(tmp_path):
    (tmp_path / "unpacked" / "stamps").mkdir(parents=True)
    (step,) = run_graph(read("run", "--preset stamps --corpus-dir unpacked"))[0].steps
    assert (step.command, step.message) == ((), "The corpus is in unpacked")


@pytest.mark.parametrize("command", ["run", "run-study", "prepare"])
@pytest.mark.parametrize(
    ("paths", "corpus"),
    [
        (["mls_german/train"], "mls"),
        ([".download"], "mls"),
        (["mini_corpus.json", "mls_english/train"], "mini"),
        (["german/one.wav"], "folder"),
    ],
)
def test_corpus_folder_implies_its_corpus(tmp_path, command, paths, corpus):
    """The embedded corpus is in the layout of MLS, too."""
    for path in (tmp_path / "corpus" / path for path in paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert read(command, "--corpus-dir corpus").corpus == corpus
    assert read(command, "--corpus stamps --corpus-dir corpus").corpus == "stamps"


@pytest.mark.parametrize("command", ["run", "prepare"])
def test_clips_without_a_folder_per_language_are_reported(tmp_path, command):
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "one.wav").touch()
    with pytest.raises(ValueError, match=r"in clips \(found: one\.wav\): expected a folder per language"):
        read(command, "--corpus-dir clips")
