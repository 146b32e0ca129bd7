"""The sample of transcripts for SentencePiece: balanced, seeded, exact, and complete for small corpora."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icefall_pathways.commands import train_ngram
from icefall_pathways.corpora.validation import CorpusError
from icefall_pathways.data.sample_config import SampleConfig
from icefall_pathways.data.tokenizer import Tokenizer, train_tokenizer
from icefall_pathways.data.tokenizer_texts import TextCounts, TokenizerTexts, sample_sizes
from icefall_pathways.languages import parse_languages
from icefall_pathways.searches.ngram import read_arpa
from icefall_pathways.sharding.jsonl import write_jsonl

GERMAN = [f"das ist satz {word}" for word in ("eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben")] * 10
POLISH = ["to jest zdanie", "jaźń", " ", "drugie zdanie"] * 3


@pytest.fixture
def cuts(tmp_path: Path) -> Path:
    for name, texts in {"german": GERMAN, "polish": POLISH}.items():
        records = ({"id": str(index), "supervisions": [{"text": text}]} for index, text in enumerate(texts))
        write_jsonl(tmp_path / f"mls-{name}_cuts_train.jsonl.gz", records)
    return tmp_path


def texts_of(cuts: Path, languages: str = "de pl", **options: object) -> TokenizerTexts:
    return TokenizerTexts(cuts, parse_languages(languages), SampleConfig(**options))


def test_a_small_corpus_is_used_completely_and_in_order(cuts: Path, tmp_path: Path) -> None:
    texts = texts_of(cuts)
    everything = [text for text in GERMAN + POLISH if text.strip()]
    assert texts.is_complete and list(texts.sample()) == everything
    streamed = train_tokenizer(texts.sample(), 32, tmp_path / "streamed")
    assert streamed.read_bytes() == train_tokenizer(everything, 32, tmp_path / "listed").read_bytes()


def test_a_sample_has_its_size_is_seeded_and_keeps_the_order(cuts: Path) -> None:
    options = {"spm_sentences_per_language": 20, "spm_temperature": 1.0}
    texts = texts_of(cuts, **options)
    sample = list(texts.sample())
    assert texts.quotas == {"de": 20, "pl": round(20 * 9 / 70)} and not texts.is_complete
    assert len(sample) == 23 and sample == list(texts.sample())
    positions = iter(GERMAN + POLISH)
    assert all(text in positions for text in sample)  # a subsequence
    assert sample != list(texts_of(cuts, **options, spm_seed=43).sample())
    assert sample[20:] == list(texts_of(cuts, "pl", spm_sentences_per_language=3).sample())


COUNTS = st.dictionaries(st.sampled_from(["en", "fr", "it", "pl"]), st.integers(0, 10**7), min_size=1)


@given(counts=COUNTS, largest=st.integers(1, 10**6), temperature=st.floats(1, 100), limit=st.integers(1000, 10**9))
def test_sample_sizes_are_within_the_data_and_the_limits(counts, largest, temperature, limit) -> None:
    config = SampleConfig(spm_sentences_per_language=largest, spm_temperature=temperature, spm_max_characters=limit)
    length = 100
    languages = {code: TextCounts(count, Counter({"a": length * count})) for code, count in counts.items()}
    sizes = sample_sizes(languages, config)
    assert all(min(1, counts[code]) <= size <= min(counts[code], largest) for code, size in sizes.items())
    assert sum(sizes.values()) * length <= limit + length * len(sizes)
    assert all(sizes[a] <= sizes[b] for a in counts for b in counts if counts[a] <= counts[b])
    if max(counts.values()) <= largest and length * sum(counts.values()) <= limit:
        assert sizes == counts


def test_temperatures_balance_the_languages() -> None:
    languages = {code: TextCounts(count, Counter()) for code, count in {"en": 10_000_000, "pl": 25_000}.items()}

    def polish(temperature: float) -> int:
        sizes = sample_sizes(languages, SampleConfig(spm_temperature=temperature))
        assert sizes["en"] == 200_000
        return sizes["pl"]

    assert [polish(temperature) for temperature in (1.0, 2.0, 1e9)] == [500, 10_000, 25_000]


def test_rare_characters_outside_the_sample_get_tokens(cuts: Path, tmp_path: Path) -> None:
    texts = texts_of(cuts, spm_max_characters=120)
    assert "ź" in texts.characters and " " not in texts.characters
    assert not set("źjü") <= set("".join(texts.sample()))
    size = len(texts.characters) + 4
    covered = Tokenizer(train_tokenizer(texts.sample(), size, tmp_path / "all", texts.characters))
    assert texts.report(covered).count("100.0000") == 2
    uncovered = Tokenizer(train_tokenizer(["das ist zwei"] * 9, 13, tmp_path / "some"))
    report = texts.report(uncovered)
    assert "100.0000" not in report and "ź" in report


def test_characters_of_dev_that_training_lacks_get_tokens(cuts: Path, tmp_path: Path) -> None:
    def write(split: str, text: str) -> None:
        write_jsonl(tmp_path / f"mls-german_cuts_{split}.jsonl.gz", [{"id": "1", "supervisions": [{"text": text}]}])

    write("dev", "das ist eins")
    write("test", "xylophon")
    before = texts_of(cuts)
    assert before.dev_only_characters == before.required_characters == ""  # the same model as without dev
    write("dev", "groß jaźń öl")
    texts = texts_of(cuts)
    assert texts.dev_only_characters == texts.required_characters == "lßö"
    tokenizer = Tokenizer(train_tokenizer(texts.sample(), 34, tmp_path / "bpe", texts.required_characters))
    assert not tokenizer.uncovered("groß öl") and tokenizer.uncovered("xylophon")
    sampled = texts_of(cuts, spm_max_characters=120)
    assert sampled.required_characters == "".join(sorted(texts.characters + "lßö"))


def test_missing_cuts_are_an_error(cuts: Path) -> None:
    with pytest.raises(CorpusError, match=r"no .*mls-french_cuts_train.* run prepare.sh from stage 3 for french"):
        texts_of(cuts, "de fr")


def test_ngram_models_count_distinct_transcripts_of_their_language(cuts: Path, tmp_path: Path) -> None:
    bpe_model = train_tokenizer(GERMAN + POLISH, 32, tmp_path / "bpe")
    output = tmp_path / "lm-{language}.arpa"
    train_ngram.run(train_ngram.Config(cuts, "de pl", bpe_model, order=2, ngram_lm=output))
    tokenizer = Tokenizer(bpe_model)
    for code, texts in {"de": GERMAN, "pl": POLISH}.items():
        distinct = sorted({text for text in texts if text.strip()})
        tokens = [tokenizer.symbols[token] for tokens in tokenizer.encode(distinct) for token in tokens]
        ngrams = read_arpa(tmp_path / f"lm-{code}.arpa")
        assert {word for (word,) in ngrams[0]} == {"<s>", "</s>", *tokenizer.symbols} - {"<blk>", "<sos/eos>", "<unk>"}
        types, words = len({*tokens, "</s>"}), len(tokens) + len(distinct)
        uniform = types / (len(ngrams[0]) - 1)  # without <s>
        expected = (len(distinct) + uniform) / (words + types)
        assert 10 ** ngrams[0][("</s>",)][0] == pytest.approx(expected, rel=1e-4)
