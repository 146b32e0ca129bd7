#!/usr/bin/env python3
"""Train SentencePiece on the training transcripts of all languages.

Usage:

  ./local/train_bpe.py --cuts-dir data/fbank --languages "en fr it nl" --vocab-size 500 --output-dir data/lang_bpe_500
"""

from dataclasses import dataclass
from pathlib import Path

from icefall_pathways.data.fbank import transcripts
from icefall_pathways.data.tokenizer import train_tokenizer
from icefall_pathways.languages import parse_languages
from icefall_pathways.options import parse, run_script


@dataclass(frozen=True)
class Options:
    """The options of this script."""

    cuts_dir: Path = Path("data/fbank")
    """Where the cuts are."""

    languages: str = "en fr it nl"
    """Languages that share the vocabulary."""

    vocab_size: int = 500
    """Number of tokens."""

    output_dir: Path = Path("data/lang_bpe_500")
    """Where bpe.model and tokens.txt go."""


def main() -> None:
    """Read the options and train."""
    options = parse(Options, __doc__)
    texts = transcripts(options.cuts_dir, parse_languages(options.languages), "train")
    print(train_tokenizer(texts, options.vocab_size, options.output_dir))


if __name__ == "__main__":
    run_script(main)
