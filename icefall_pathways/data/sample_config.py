"""Options of the transcripts that the tokenizer is trained on, without the libraries that read them."""

from dataclasses import dataclass
from typing import Annotated

from icefall_pathways.ranges import Options, PositiveInt, Range, Seed


@dataclass(frozen=True, kw_only=True)
class SampleConfig(Options):
    """Options of the transcripts that SentencePiece is trained on."""

    spm_sentences_per_language: PositiveInt = 200_000
    """SentencePiece: largest number of training transcripts per language, drawn at random; all, if there are fewer."""

    spm_temperature: Annotated[float, Range(1)] = 5.0
    """SentencePiece: draw transcripts in proportion to count^(1/T): 1 follows the data; large values are uniform."""

    spm_max_characters: PositiveInt = 60_000_000
    """SentencePiece: largest number of characters of all languages together, at about 20 bytes of memory each."""

    spm_seed: Seed = 42
    """SentencePiece: seed of the draws."""
