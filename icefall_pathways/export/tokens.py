"""Token files of exported models."""

from pathlib import Path

import sentencepiece

from icefall_pathways.data.tokenizer import Tokenizer
from icefall_pathways.experiment.model_files import copy_tokenizer
from icefall_pathways.files import atomic_write

#: Pieces and their scores, from which sherpa-onnx splits hotwords into tokens.
VOCABULARY_FILE = "bpe.vocab"


def write_token_files(tokenizer: Tokenizer, folder: Path) -> None:
    """Write `bpe.model`, `tokens.txt` (lines "SYMBOL ID") and `bpe.vocab` (lines "SYMBOL<tab>SCORE")."""
    copy_tokenizer(tokenizer.model_path, folder)
    processor = sentencepiece.SentencePieceProcessor()
    processor.Load(str(tokenizer.model_path))
    with atomic_write(folder / VOCABULARY_FILE) as temporary:
        lines = [f"{piece}\t{processor.GetScore(index)}\n" for index, piece in enumerate(tokenizer.symbols)]
        temporary.write_text("".join(lines), encoding="utf-8")
