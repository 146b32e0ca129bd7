"""Trainings use the languages of the data folder, unless it has the usual ones or others are typed."""

import pytest

from icefall_pathways import cli


@pytest.mark.parametrize("command", ["train", "prune"])
@pytest.mark.parametrize(
    ("prepared", "words", "expected"),
    [
        ("german french", "", "de fr"),
        ("german french", "--languages fr", "fr"),
        ("english french italian dutch polish", "", "en fr it nl"),
        ("", "", "en fr it nl"),
    ],
)
def test_languages_of_the_data_are_the_default(tmp_path, command, prepared, words, expected):
    for name in prepared.split():
        (tmp_path / f"my-corpus-{name}_cuts_train.jsonl.gz").touch()
    argv = ["--init-from", "x", "--manifest-dir", str(tmp_path), *words.split()]
    config = cli.read_config(command, argv)
    assert list(config.data.languages) == expected.split()
