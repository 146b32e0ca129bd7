"""Options of the corpus and its data, which the preparation, the run and the study share."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from icefall_pathways.corpora.registry import CorpusName
from icefall_pathways.ranges import Options, PositiveInt, Range


@dataclass(frozen=True)
class CorpusOptions(Options):
    """Options of the corpus and its data."""

    corpus: CorpusName = "mls"
    """mini: the embedded corpus, synthesized; mls: Multilingual LibriSpeech or any folder in its layout; folder: clips
    in a folder per language, implied by --corpus-dir; manifests: Lhotse manifests; stamps: phrases of Tux Paint."""

    corpus_dir: str = ""
    """Folder of the corpus. Empty: download/<corpus>. If it does not exist, mini, mls and stamps are created in it if
    --corpus, --preset or --demo selects them. manifests: one or several folders."""

    subset: str = "train"
    """mls: training data, train (all) or limited supervision: 10hr, or its parts 9hr and 1hr."""

    languages: str = "en fr it nl"
    """Languages, separated by spaces; an unsupported one is reported with those that the corpus offers. folder,
    manifests, stamps: all of the corpus, unless given."""

    data_dir: Path = Path("data")
    """Folder for manifests, features and tokens."""

    vocab_size: PositiveInt = 500
    """Number of tokens of the vocabulary that all languages share."""

    ngram_order: Annotated[int, Range(0)] = 0
    """Order of n-gram language models over tokens, one per language, which are trained on the training transcripts and
    used in decoding by modified beam search. 0: none."""

    hours: str = ""
    """mini: hours of training speech of some languages, such as "en=2 it=0.5"."""

    @property
    def lang_dir(self) -> Path:
        """Folder of the tokenizer."""
        return self.data_dir / f"lang_bpe_{self.vocab_size}"

    @property
    def ngram_lm(self) -> Path:
        """ARPA files of the n-gram models, with {language} in place of the language code."""
        return self.lang_dir / f"ngram-{self.ngram_order}-{{language}}.arpa"
