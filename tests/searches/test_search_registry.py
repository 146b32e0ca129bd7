"""The registry of searches, and the command-line options that follow from it."""

import importlib.util
import sys
from dataclasses import dataclass

import pytest
from optional_packages import needs_k2

from icefall_pathways.decoding.config import StreamingDecodeConfig
from icefall_pathways.options import parse
from icefall_pathways.searches import FastBeamSearch, GreedySearch, ModifiedBeamSearch, config
from icefall_pathways.searches.base import SearchOptions
from icefall_pathways.searches.config import SearchConfig
from icefall_pathways.searches.registry import SEARCHES
from icefall_pathways.searches.shallow_fusion import ShallowFusionOptions


@dataclass(frozen=True)
class SlowSearchOptions(SearchOptions):
    """A search as another module would define it."""

    patience: float = 1.0
    """An option that only this search has."""

    def build_search(self, model, tokenizer, language):
        search = GreedySearch(model, self.blank_penalty)
        search.patience = self.patience
        return search

    def file_name_parts(self):
        return [f"patience-{self.patience:g}", *super().file_name_parts()]


@pytest.fixture
def config_module(monkeypatch):
    """Import a second copy of searches/config.py with an additional line in the registry."""
    monkeypatch.setitem(SEARCHES, "slow_search", SlowSearchOptions)
    spec = importlib.util.spec_from_file_location("searches_config", config.__file__)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # where tyro looks up the source, for help texts
    spec.loader.exec_module(module)
    return module


def test_new_search_needs_one_registry_line(config_module, make_head):
    argv = ["--decoding-method", "slow_search", "--patience", "2.5", "--blank-penalty", "1"]
    parsed = parse(config_module.SearchConfig, "", argv)
    search = parsed.build_search(make_head(4), None, "en")
    assert (search.patience, search.blank_penalty) == (2.5, 1.0)
    assert parsed.search_suffix == "slow_search-patience-2.5-blank-penalty-1"


def test_help_lists_all_searches_and_their_options(config_module, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        parse(config_module.SearchConfig, "", ["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "{" + ",".join([*SEARCHES]) + "}" in text
    assert "An option that only this search has." in text


def test_error_for_an_unknown_search_lists_the_known_ones(make_head):
    known = ", ".join(SEARCHES)
    with pytest.raises(ValueError, match=f"--decoding-method magic: unknown search, expected one of {known}"):
        SearchConfig(decoding_method="magic")


@pytest.mark.parametrize(
    ("options", "search", "suffix"),
    [
        ({}, GreedySearch, "greedy_search"),
        ({"beam_size": 3}, ModifiedBeamSearch, "modified_beam_search-beam-size-3"),
        ({"blank_penalty": 0.5}, ModifiedBeamSearch, "modified_beam_search-beam-size-4-blank-penalty-0.5"),
        pytest.param(
            {"beam": 4.0}, FastBeamSearch, "fast_beam_search-beam-4-max-contexts-8-max-states-64", marks=needs_k2
        ),
    ],
)
def test_selected_search_gets_its_options(make_head, options, search, suffix):
    search_config = SearchConfig(decoding_method=suffix.split("-")[0], **options)
    built = search_config.build_search(make_head(4), None, "en")
    assert type(built) is search
    assert built.blank_penalty == options.get("blank_penalty", 0.0)
    assert search_config.search_suffix == suffix


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("greedy_search", {"context_file": "file"}, "--context-file works with --decoding-method modified_beam_search"),
        ("fast_beam_search", {"ngram_lm": "file"}, "--ngram-lm works with --decoding-method modified_beam_search"),
        ("greedy_search", {"beam_size": 8}, "--beam-size works with .* modified_beam_search, not with greedy_search"),
        ("modified_beam_search", {"max_states": 9}, "--max-states works with --decoding-method fast_beam_search"),
        ("modified_beam_search", {"context_score": 3.0}, "--context-score has no effect without --context-file"),
        ("modified_beam_search", {"ngram_lm_scale": 0.5}, "--ngram-lm-scale has no effect without --ngram-lm"),
    ],
)
def test_options_without_effect_are_rejected(method, options, message):
    with pytest.raises(ValueError, match=message):
        SearchConfig(decoding_method=method, **options)


def test_defaults_of_streaming_scripts_are_accepted_and_their_option_names_reported():
    for method in SEARCHES:
        assert StreamingDecodeConfig(decoding_method=method).decoding_method == method
    with pytest.raises(
        ValueError,
        match=r"--num-active-paths \(in Python: beam_size\) works with --decoding-method modified_beam_search",
    ):
        StreamingDecodeConfig(beam_size=8)
    with pytest.raises(ValueError, match="--beam works with --decoding-method fast_beam_search"):
        StreamingDecodeConfig(beam=20.0)


@pytest.mark.parametrize("name", SEARCHES)
def test_only_hotwords_and_language_models_make_a_search_depend_on_the_language(name, tmp_path):
    assert not SearchConfig(decoding_method=name).depends_on_language
    if issubclass(SEARCHES[name], ShallowFusionOptions):
        for option in ("context_file", "ngram_lm"):
            assert SearchConfig(decoding_method=name, **{option: tmp_path}).depends_on_language
