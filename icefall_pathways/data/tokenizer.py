"""SentencePiece tokenizer with one vocabulary for all languages."""

import hashlib
import re
from collections.abc import Iterable
from functools import cached_property
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import sentencepiece

from icefall_pathways.errors import quote
from icefall_pathways.files import atomic_write

BLANK, SOS_EOS, UNKNOWN = "<blk>", "<sos/eos>", "<unk>"
BLANK_ID = 0
WORD_BOUNDARY = "\u2581"  # first character of SentencePiece's first token of a word


class Tokenizer:
    """A trained SentencePiece model whose token 0 is the transducer's blank.

    Texts are in lower case. For a model with upper-case letters only, such as icefall's for LibriSpeech, they are
    converted to upper case, and back after decoding.

    Args:
      model_path: A model written by `train_tokenizer`, or by an icefall recipe.

    Attributes:
      model_path: As given.
      symbols: All tokens as strings, in the order of their ids.

    Raises:
      ValueError: The file is missing or damaged, or its token 0 is not the blank.
    """

    def __init__(self, model_path: Path | str) -> None:
        if not Path(model_path).is_file():
            raise ValueError(
                f"no SentencePiece model {model_path}: run prepare.sh (stage 5), or specify it with --bpe-model "
                "(in Python: bpe_model)"
            )
        self.model_path = Path(model_path)
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.Load(str(model_path))
            self.symbols = [self._processor.IdToPiece(token) for token in range(self.vocab_size)]
        except (RuntimeError, UnicodeDecodeError) as error:
            raise ValueError(
                f"{model_path} is damaged or is not a SentencePiece model: run prepare.sh (stage 5) again"
            ) from error
        if self._processor.PieceToId(BLANK) != BLANK_ID:
            raise ValueError(f"{model_path} has no {BLANK} as token {BLANK_ID}: it was not trained for a transducer")

    @cached_property
    def model_hash(self) -> str:
        """SHA-256 of the model."""
        return hashlib.sha256(self._processor.serialized_model_proto()).hexdigest()

    @property
    def vocab_size(self) -> int:
        """Number of tokens, including the blank."""
        return self._processor.GetPieceSize()

    @property
    def blank_id(self) -> int:
        """Id of the blank."""
        return BLANK_ID

    @property
    def unknown_id(self) -> int:
        """Id of the token for characters that no other token covers."""
        return self._processor.unk_id()

    @cached_property
    def _is_upper_case(self) -> bool:
        """True if no token has a lower-case letter."""
        pieces = set(self.symbols) - {BLANK, SOS_EOS, UNKNOWN}
        return not any(character.islower() for piece in pieces for character in piece)

    def mismatch(self, vocab_size: int, tokens_file: Path | None) -> str | None:
        """Return the reason why the tokenizer does not fit a model; None if it fits.

        Args:
          vocab_size: Number of tokens of the model.
          tokens_file: `tokens.txt` of the model; ignored if it is None or does not exist.
        """
        if self.vocab_size != vocab_size:
            return f"{self.model_path} has {self.vocab_size} tokens and the model {vocab_size}"
        if tokens_file is None or not tokens_file.is_file():
            return None
        lines = tokens_file.read_text(encoding="utf-8", errors="replace").split("\n")
        for index, (own, other) in enumerate(zip_longest(_token_lines(self.symbols), lines, fillvalue="")):
            if own != other:
                return f"line {index + 1} of {tokens_file} is {quote(other)} and that of {self.model_path} {quote(own)}"
        return None

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Return the token ids of each text."""
        if self._is_upper_case:
            texts = [text.upper() for text in texts]
        # One text at a time: for a list SentencePiece starts threads, which takes longer than the encoding.
        return [self._processor.EncodeAsIds(text) for text in texts]

    def words(self, text: str) -> list[str]:
        """Split a transcript or a decoded text into words, in the Unicode normalization that `encode` applies.

        Scoring compares these words: a model cannot distinguish texts that differ in normalization only.
        """
        return str(self._processor.Normalize(text)).replace(WORD_BOUNDARY, " ").split()

    def uncovered(self, text: str) -> set[str]:
        """Return the characters of `text`, after normalization, that no token covers."""
        if self.unknown_id not in self.encode([text])[0]:
            return set()
        return {character for character in "".join(self.words(text)) if self.unknown_id in self.encode([character])[0]}

    def decode(self, tokens: list[list[int]]) -> list[str]:
        """Return the text of each list of token ids."""
        texts = [self._processor.DecodeIds(ids) for ids in tokens]
        return [text.lower() for text in texts] if self._is_upper_case else texts


class VocabSizeError(ValueError):
    """The transcripts do not allow a vocabulary of the given size.

    Attributes:
      limit: The closest size that they allow.
    """

    def __init__(self, message: str, limit: int) -> None:
        super().__init__(message)
        self.limit = limit


def train_tokenizer(texts: Iterable[str], vocab_size: int, output_dir: Path, required_characters: str = "") -> Path:
    """Train a unigram model and write `bpe.model` and `tokens.txt` (one line "SYMBOL ID" per token).

    The same texts in the same order produce identical files.

    Args:
      texts: Training transcripts of all languages; read once, and not kept here.
      vocab_size: Number of tokens, including <blk>, <sos/eos>, and <unk>.
      output_dir: Folder of both files; created if it does not exist.
      required_characters: Characters that get a token even if `texts` lacks them.

    Returns:
      The path of the model.

    Raises:
      VocabSizeError: The texts do not allow `vocab_size` tokens; the message states the limit.
      ValueError: There is no text.
    """
    sentences = (text for text in texts if text.strip())
    first = next(sentences, None)
    if first is None:
        raise ValueError("no transcripts to train SentencePiece on: run the earlier stages of prepare.sh first")
    model_path = output_dir / "bpe.model"
    required: dict[str, Any] = {"required_chars": required_characters} if required_characters else {}
    with atomic_write(model_path) as temporary, temporary.open("wb") as file:
        try:
            sentencepiece.SentencePieceTrainer.Train(
                sentence_iterator=chain([first], sentences),
                model_writer=file,
                vocab_size=vocab_size,
                model_type="unigram",
                character_coverage=1.0,
                **required,
                user_defined_symbols=[BLANK, SOS_EOS],
                unk_id=2,
                bos_id=-1,
                eos_id=-1,
                num_threads=1,
                minloglevel=2,
            )
        except RuntimeError as error:
            raise _explain(vocab_size, str(error)) from error
    write_tokens(model_path, output_dir / "tokens.txt")
    return model_path


def _explain(vocab_size: int, error: str) -> ValueError:
    if limit := re.search(r"<= (\d+)", error):
        message = f"--vocab-size {vocab_size} is too large for these transcripts: they give at most {limit[1]} tokens"
        return VocabSizeError(message, int(limit[1]))
    if limit := re.search(r"\d+ vs (\d+)", error):
        message = f"--vocab-size {vocab_size} is too small for these transcripts: they need at least {limit[1]} tokens"
        return VocabSizeError(message, int(limit[1]))
    return ValueError(f"SentencePiece cannot train {vocab_size} tokens on these transcripts: {error.strip()}")


def write_tokens(model_path: Path, path: Path) -> None:
    """Write `tokens.txt` of a SentencePiece model: one line "SYMBOL ID" per token."""
    processor = sentencepiece.SentencePieceProcessor()
    processor.Load(str(model_path))
    symbols = [processor.IdToPiece(index) for index in range(processor.GetPieceSize())]
    with atomic_write(path) as temporary:
        temporary.write_text("\n".join(_token_lines(symbols)), encoding="utf-8")


def _token_lines(symbols: Iterable[str]) -> list[str]:
    """Return the lines of `tokens.txt`, and an empty string for the final newline."""
    return [*(f"{symbol} {index}" for index, symbol in enumerate(symbols)), ""]
