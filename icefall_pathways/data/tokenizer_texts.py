"""Transcripts for the training of the tokenizer: a balanced, seeded sample of all languages, read without keeping it.

SentencePiece keeps its training text in memory, with 20 bytes per character for its suffix array, and reads it in one
thread. A sample bounds both, and keeps a language with most of the data from taking most of the vocabulary.
"""

import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate
from tqdm import tqdm

from icefall_pathways.corpora.layout import SplitFiles, find_corpus
from icefall_pathways.corpora.validation import CorpusError
from icefall_pathways.data.manifests import damaged_manifest, manifest_lines
from icefall_pathways.data.sample_config import SampleConfig
from icefall_pathways.data.tokenizer import Tokenizer
from icefall_pathways.languages import Language


@dataclass(frozen=True)
class TextCounts:
    """Counts over the transcripts of one language; empty transcripts are not counted.

    Attributes:
      num_texts: Number of transcripts.
      characters: Number of occurrences of each character.
    """

    num_texts: int
    characters: Counter[str]


class TokenizerTexts:
    """The training transcripts of several languages, and the characters of their dev transcripts.

    Args:
      cuts_dir: Folder of the cuts.
      languages: The languages.
      config: Options of the sample.

    Attributes:
      counts: Counts by language code; the constructor reads all transcripts.
      quotas: Number of transcripts in the sample, by language code.

    Raises:
      CorpusError: The cuts of a language are missing.
    """

    def __init__(self, cuts_dir: Path, languages: list[Language], config: SampleConfig) -> None:
        self._seed = config.spm_seed
        corpus = find_corpus(cuts_dir, "cuts")
        self._paths: dict[str, Path] = {language.code: _training_cuts(cuts_dir, language) for language in languages}
        self.counts = {code: _count(self._read(code, "counting")) for code in self._paths}
        dev = [SplitFiles(cuts_dir, corpus, language, "dev").cuts for language in languages]
        texts = (text for path in dev if path.exists() for text in _read_texts(path, manifest_lines(path)))
        self._dev_characters = set(_count(texts).characters) - {" "}
        self.quotas = sample_sizes(self.counts, config)

    def sample(self) -> Iterator[str]:
        """Yield the sample, language by language, in the order of the manifests; the same in every call."""
        for code, counts in self.counts.items():
            generator = random.Random(f"{self._seed}/{code}")
            texts, missing = counts.num_texts, self.quotas[code]
            for text in self._read(code, "sampling"):
                if generator.random() * texts < missing:
                    yield text
                    missing -= 1
                texts -= 1

    @property
    def is_complete(self) -> bool:
        """True if the sample holds all transcripts."""
        return all(counts.num_texts == self.quotas[code] for code, counts in self.counts.items())

    @property
    def characters(self) -> str:
        """All characters of the transcripts except the space, sorted."""
        return "".join(sorted(set().union(*(counts.characters for counts in self.counts.values())) - {" "}))

    @property
    def dev_only_characters(self) -> str:
        """The characters of dev transcripts that no training transcript has, sorted.

        Validation computes a loss, which needs a token for each: in a few clips, a rare letter may be in dev only.
        Test transcripts are not considered, so that they cannot affect a model; they are decoded in any case.
        """
        return "".join(sorted(self._dev_characters - set(self.characters)))

    @property
    def required_characters(self) -> str:
        """The characters that need a token but may be missing in the sample, sorted."""
        return "".join(sorted(set("" if self.is_complete else self.characters) | set(self.dev_only_characters)))

    def report(self, tokenizer: Tokenizer) -> str:
        """Return a table of the sample, and of the share of all characters that have tokens, by language."""
        rows = []
        for code, counts in self.counts.items():
            uncovered = sorted(character for character in counts.characters if tokenizer.uncovered(character))
            missing = sum(counts.characters[character] for character in uncovered)
            coverage = 100 * (1 - missing / max(1, counts.characters.total()))
            rows.append([code, counts.num_texts, self.quotas[code], f"{coverage:.4f}", " ".join(uncovered)])
        header = ["language", "transcripts", "in the sample", "character coverage (%)", "characters without token"]
        return tabulate(rows, header, tablefmt="simple_outline", disable_numparse=True)

    def _read(self, code: str, purpose: str) -> Iterator[str]:
        path = self._paths[code]
        return _read_texts(path, tqdm(manifest_lines(path), f"{purpose} {code}", unit="cut", leave=False, delay=3))


def training_texts(cuts_dir: Path, language: Language) -> Iterator[str]:
    """Yield the training transcripts of a language, except empty ones, in the order of the manifest.

    Raises:
      CorpusError: Its cuts are missing.
    """
    path = _training_cuts(cuts_dir, language)
    return _read_texts(path, manifest_lines(path))


def sample_sizes(counts: Mapping[str, TextCounts], config: SampleConfig) -> dict[str, int]:
    """Return the number of transcripts to draw from each language; at least one of each that has any.

    The largest language gets `spm_sentences_per_language`, the others (count / largest count)^(1 / temperature) of
    it, as far as they have as many. All are reduced in proportion if the characters are too many.
    """
    largest = max((language.num_texts for language in counts.values()), default=0)
    sizes, num_characters = {}, 0.0
    for code, language in counts.items():
        share = (language.num_texts / largest) ** (1 / config.spm_temperature) if largest else 0
        sizes[code] = min(language.num_texts, round(config.spm_sentences_per_language * share))
        num_characters += sizes[code] * language.characters.total() / max(1, language.num_texts)
    factor = min(1.0, config.spm_max_characters / max(1.0, num_characters))
    return {code: min(counts[code].num_texts, max(1, int(size * factor))) for code, size in sizes.items()}


def _training_cuts(cuts_dir: Path, language: Language) -> Path:
    path = SplitFiles(cuts_dir, find_corpus(cuts_dir, "cuts"), language, "train").cuts
    if not path.exists():
        raise CorpusError(f"no {path}: run prepare.sh from stage 3 for {language.name}")
    return path


def _read_texts(path: Path, lines: Iterable[bytes]) -> Iterator[str]:
    """Yield the transcripts of cuts in JSON, except empty ones; `path` is their manifest."""
    with damaged_manifest(path):
        for line in lines:
            for supervision in json.loads(line).get("supervisions", ()):
                if (supervision.get("text") or "").strip():
                    yield supervision["text"]


def _count(texts: Iterator[str]) -> TextCounts:
    num_texts, characters = 0, Counter[str]()
    for text in texts:
        num_texts += 1
        characters.update(text)
    return TextCounts(num_texts, characters)
