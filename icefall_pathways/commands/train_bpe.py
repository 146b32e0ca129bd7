"""Train a SentencePiece model on the training transcripts of all languages.

Usage:

  ./local/train_bpe.py --cuts-dir data/fbank --languages "en fr it nl" --vocab-size 500 --output-dir data/lang_bpe_500
"""

from dataclasses import dataclass
from pathlib import Path

from icefall_pathways.data.sample_config import SampleConfig
from icefall_pathways.data.tokenizer import Tokenizer, VocabSizeError, train_tokenizer, write_tokens
from icefall_pathways.data.tokenizer_texts import TokenizerTexts
from icefall_pathways.languages import parse_languages
from icefall_pathways.ranges import PositiveInt

__all__ = ["Config", "run"]


@dataclass(frozen=True)
class Config(SampleConfig):
    """Options of the SentencePiece model."""

    cuts_dir: Path = Path("data/fbank")
    """Folder of the cuts."""

    languages: str = "en fr it nl"
    """Languages that share the vocabulary, separated by spaces."""

    vocab_size: PositiveInt = 500
    """Number of tokens; changed to the closest number that the transcripts allow."""

    output_dir: Path = Path("data/lang_bpe_500")
    """Folder for bpe.model and tokens.txt."""

    keep_model: bool = False
    """Keep an existing model, and report how it covers the languages."""


def run(config: Config) -> None:
    """Train the model, and print its path and the coverage of each language."""
    model_path = config.output_dir / "bpe.model"
    texts = TokenizerTexts(config.cuts_dir, parse_languages(config.languages), config)
    if config.keep_model and model_path.exists():
        write_tokens(model_path, config.output_dir / "tokens.txt")
        print(
            f"kept {model_path}, which models may depend on; this is how it covers {config.languages}. To train it "
            "again on these languages, add --retrain-tokenizer 1 (prepare.sh) or --keep-model 0 (train_bpe.py); "
            "experiments keep the copy that they were trained with"
        )
    else:
        _train(texts, config)
        if texts.dev_only_characters:
            print(
                f"characters of dev transcripts that no training transcript has: {' '.join(texts.dev_only_characters)};"
                " they have tokens, which training cannot learn"
            )
    print(texts.report(Tokenizer(model_path)))
    print(model_path)


def _train(texts: TokenizerTexts, config: Config) -> None:
    required = texts.required_characters
    try:
        train_tokenizer(texts.sample(), config.vocab_size, config.output_dir, required)
    except VocabSizeError as error:
        print(f"{error}; training {error.limit} tokens instead")
        train_tokenizer(texts.sample(), error.limit, config.output_dir, required)
