"""Train a SentencePiece model on the training transcripts of all languages.

Usage:

  ./local/train_bpe.py --cuts-dir data/fbank --languages "en fr it nl" --vocab-size 500 --output-dir data/lang_bpe_500
"""

from dataclasses import dataclass
from pathlib import Path

from icefall_pathways.data.fbank import transcripts
from icefall_pathways.data.tokenizer import train_tokenizer
from icefall_pathways.languages import parse_languages
from icefall_pathways.ranges import Options, PositiveInt

__all__ = ["Config", "run"]


@dataclass(frozen=True)
class Config(Options):
    """Options of the SentencePiece model."""

    cuts_dir: Path = Path("data/fbank")
    """Folder of the cuts."""

    languages: str = "en fr it nl"
    """Languages that share the vocabulary, separated by spaces."""

    vocab_size: PositiveInt = 500
    """Number of tokens."""

    output_dir: Path = Path("data/lang_bpe_500")
    """Folder for bpe.model and tokens.txt."""


def run(config: Config) -> None:
    """Train the model and print its path."""
    texts = transcripts(config.cuts_dir, parse_languages(config.languages), "train")
    print(train_tokenizer(texts, config.vocab_size, config.output_dir))
