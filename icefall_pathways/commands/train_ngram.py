r"""Train an n-gram language model over tokens for each language, on its training transcripts.

Usage:

  ./local/train_ngram.py --cuts-dir data/fbank --languages "en fr it nl" --bpe-model data/lang_bpe_500/bpe.model \
    --order 4 --ngram-lm "data/lang_bpe_500/ngram-4-{language}.arpa"

The models are for small corpora: all n-grams are counted in memory. Decoding uses them with the same --ngram-lm.
"""

from dataclasses import dataclass
from pathlib import Path

from icefall_pathways.data.tokenizer import BLANK, SOS_EOS, UNKNOWN, Tokenizer
from icefall_pathways.data.tokenizer_texts import training_texts
from icefall_pathways.languages import Language, parse_languages
from icefall_pathways.ranges import Options, PositiveInt
from icefall_pathways.searches.ngram_training import train_ngram, write_arpa
from icefall_pathways.searches.token_scorer import path_for_language

__all__ = ["Config", "run"]


@dataclass(frozen=True)
class Config(Options):
    """Options of the n-gram models."""

    cuts_dir: Path = Path("data/fbank")
    """Folder of the cuts."""

    languages: str = "en fr it nl"
    """Languages, separated by spaces."""

    bpe_model: Path = Path("data/lang_bpe_500/bpe.model")
    """SentencePiece model of the tokens."""

    order: PositiveInt = 4
    """Order of the models."""

    ngram_lm: Path = Path("data/lang_bpe_500/ngram-4-{language}.arpa")
    """ARPA files to write; {language} is replaced by the language code."""


def run(config: Config) -> None:
    """Write the models, and print their sizes."""
    tokenizer = Tokenizer(config.bpe_model)
    for language in parse_languages(config.languages):
        _train(config, tokenizer, language)


def _train(config: Config, tokenizer: Tokenizer, language: Language) -> None:
    # Copies of a transcript, such as those at other speeds, say nothing about how often it occurs.
    texts = sorted(set(training_texts(config.cuts_dir, language)))
    symbols = tokenizer.symbols
    sentences = ([symbols[token] for token in tokens] for tokens in tokenizer.encode(texts))
    ngrams = train_ngram(sentences, config.order, set(symbols) - {BLANK, SOS_EOS, UNKNOWN})
    path = path_for_language(config.ngram_lm, language.code)
    write_arpa(path, ngrams)
    print(f"{path}: {sum(map(len, ngrams))} n-grams of {len(texts)} distinct transcripts")
