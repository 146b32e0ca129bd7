"""Division of utterances into train, dev and test, so that no sentence is in two splits.

Speakers, sentences, or groups of them are assigned as a whole, in the order of their hashes: the same utterances are
divided in the same way on every machine.
"""

import hashlib
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple

from icefall_pathways.corpora.validation import CorpusError
from icefall_pathways.languages import Language, TextOptions, normalize_transcript

HELD_OUT_SPLITS = ("test", "dev")  # in the order in which utterances are assigned

_HELD_OUT_SHARE = 0.1  # of the utterances, for each of dev and test
_MIN_TRAIN_SHARE = 0.7  # of the utterances, for a division by speaker

_ALIASES = {
    "train": ("train", "training"),
    "dev": ("dev", "valid", "validation", "val", "development"),
    "test": ("test", "testing", "eval", "evaluation"),
}


def split_of(name: str) -> str | None:
    """Return the split that a name denotes, such as "dev" for "validation"; None if it denotes none."""
    return next((split for split, names in _ALIASES.items() if name.lower() in names), None)


def sentence_key(text: str, language: Language) -> str:
    """Return a transcript without case and punctuation, which do not make sentences different."""
    return normalize_transcript(text, language, TextOptions())


class Speech(NamedTuple):
    """Properties of an utterance that decide its split.

    Attributes:
      sentence: The transcript, see `sentence_key`.
      speaker: The speaker; "" if unknown.
      split: "train", "dev" or "test", if the corpus assigns one.
    """

    sentence: str
    speaker: str = ""
    split: str | None = None


class Division(NamedTuple):
    """Utterances divided into splits.

    Attributes:
      splits: Split of each utterance; None drops it, because its sentence is in dev or test.
      method: Unit by which dev and test were held out: "speaker" or "sentence"; "" if the corpus assigns all splits.
    """

    splits: list[str | None]
    method: str


def divide(utterances: Sequence[Speech]) -> Division:
    """Divide the utterances of a language; splits that the corpus assigns are kept.

    Missing splits get a tenth of the training utterances each: other speakers, if all speakers are known and that
    leaves enough for training, otherwise other sentences. Utterances whose sentence is also in a held-out split are
    dropped from the other splits.

    Raises:
      CorpusError: There are too few sentences, or the corpus has held-out splits only.
    """
    given = [utterance.split or "train" for utterance in utterances]
    sentences = [utterance.sentence for utterance in utterances]
    missing = [split for split in HELD_OUT_SPLITS if split not in given]
    if not missing and "train" in given:
        return Division(drop_shared(given, sentences), "")
    train = [i for i, split in enumerate(given) if split == "train"]
    methods = {"speaker": [utterances[i].speaker for i in train], "sentence": [sentences[i] for i in train]}
    for method, keys in methods.items():
        has_unknown = method == "speaker" and "" in keys
        if has_unknown or len(set(keys)) <= len(missing):
            continue
        splits: list[str] = list(given)
        for i, split in zip(train, assign(keys, dict.fromkeys(missing, _HELD_OUT_SHARE)), strict=True):
            splits[i] = split
        division = Division(drop_shared(splits, sentences), method)
        if method == "sentence" or division.splits.count("train") >= _MIN_TRAIN_SHARE * len(train):
            return division
    raise CorpusError(
        f"{len(train)} training utterances with {len(set(methods['sentence']))} different sentences: expected at least "
        f"{len(missing) + 1} sentences, to divide them into train, dev and test"
    )


def assign(keys: Sequence[str], shares: Mapping[str, float]) -> list[str]:
    """Assign a share of the items, at least one, to each of some splits, and the others to train.

    Args:
      keys: Key of each item; items of equal keys get the same split.
      shares: Share of the items by split.

    Raises:
      CorpusError: There are fewer keys than splits.
    """
    sizes = Counter(keys)
    if len(sizes) <= len(shares):
        raise CorpusError(f"{len(sizes)} groups of utterances: expected at least {len(shares) + 1}, one per split")
    remaining = sorted(sizes, key=_digest)
    assigned: dict[str, str] = {}
    for split, share in shares.items():
        room = max(share * len(keys), min(sizes[key] for key in remaining))
        for key in remaining:
            if sizes[key] <= room:
                assigned[key] = split
                room -= sizes[key]
        remaining = [key for key in remaining if key not in assigned]
    return [assigned.get(key, "train") for key in keys]


def drop_shared(splits: Sequence[str], sentences: Sequence[str]) -> list[str | None]:
    """Return the splits, but None for train utterances whose sentence is in dev or test, and for dev ones in test."""
    held_out = {
        split: {sentence for sentence, other in zip(sentences, splits, strict=True) if other == split}
        for split in HELD_OUT_SPLITS
    }
    others = {"test": set[str](), "dev": held_out["test"], "train": held_out["test"] | held_out["dev"]}
    return [None if sentence in others[split] else split for sentence, split in zip(sentences, splits, strict=True)]


def connected_groups(keys: Iterable[Iterable[Hashable]]) -> list[int]:
    """Return a group number per item: items are in one group if they share a key, directly or through other items."""
    parents: list[int] = []
    first_items: dict[Hashable, int] = {}
    for item, item_keys in enumerate(keys):
        parents.append(item)
        for key in item_keys:
            other = first_items.setdefault(key, item)
            parents[_root(parents, item)] = _root(parents, other)
    return [_root(parents, item) for item in range(len(parents))]


def _root(parents: list[int], item: int) -> int:
    while parents[item] != item:
        parents[item] = parents[parents[item]]
        item = parents[item]
    return item


def _digest(key: str) -> bytes:
    return hashlib.blake2b(key.encode(errors="surrogateescape"), digest_size=16).digest()
