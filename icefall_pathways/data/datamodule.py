"""Manifests become monolingual batches."""

import logging
import random
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lhotse import CutSet, MonoCut
from lhotse.dataset import CutMix, K2SpeechRecognitionDataset, SpecAugment
from tabulate import tabulate
from torch.utils.data import DataLoader, Dataset

from icefall_pathways.data.sampling import BatchPlan, LanguageCuts, MonolingualSampler, in_order, updates_per_epoch
from icefall_pathways.data.tokenizer import Tokenizer
from icefall_pathways.languages import Language, get_language, parse_languages

logger = logging.getLogger("icefall_pathways")

Batch = dict[str, Any]

_SUBSAMPLING = 4
_EAGER_BELOW = (
    200_000  # cuts of a language that are kept in memory; beyond that they are read from the file pass by pass
)


class DataError(ValueError):
    """Manifests or features that are missing or do not fit."""


@dataclass(frozen=True)
class DataConfig:
    """Which data to read, and how batches are made of it."""

    manifest_dir: Path = Path("data/fbank")
    """Where the cuts with features are."""

    languages: str = "en fr it nl"
    """Languages, by code or name, in the order of their bits in masks."""

    max_duration: float = 200.0
    """Seconds of audio in a batch of one rank."""

    num_workers: int = 2
    """Processes that load batches ahead of time; 0 loads them in the training process."""

    num_buckets: int = 10
    """Buckets of cuts of similar duration, for little padding."""

    sampling_temperature: float = 1.0
    """A language is drawn with probability proportional to hours^(1/T): 1 as the data is, large evenly."""

    shuffle: bool = True
    """Random order of cuts."""

    short_first: bool = False
    """Go through each language from short to long cuts the first time: helps small models off the plateau."""

    min_cut_duration: float = 0.0
    """Leave out training cuts shorter than this (seconds)."""

    max_cut_duration: float = 20.0
    """Leave out training cuts longer than this (seconds)."""

    enable_spec_aug: bool = True
    """SpecAugment: mask bands and stretches of the features, warp time."""

    spec_aug_time_warp_factor: int = 80
    """SpecAugment's time warping, in frames; 0 switches it off."""

    spec_aug_num_frame_masks: int = 10
    """SpecAugment's masked stretches; together at most 15 % of an utterance."""

    enable_musan: bool = False
    """Mix in noise, music and babble with probability 0.5 at 10 to 20 dB."""

    musan_cuts: Path = Path("data/fbank/musan_cuts.jsonl.gz")
    """The cuts to mix in."""


class SpeechDataModule:
    """Batches of training, dev and test cuts.

    A batch is what lhotse's K2SpeechRecognitionDataset makes (`inputs` (N, T, 80), `supervisions`), and `language`, the
    code of the one language in it.

    Args:
      config: See there.
      tokenizer: Needed for training: utterances with more tokens than a transducer can emit are left out.
    """

    def __init__(self, config: DataConfig, tokenizer: Tokenizer | None = None) -> None:
        self.config = config
        self.languages: list[Language] = parse_languages(config.languages)
        self._tokenizer = tokenizer
        self._dropped: Counter[tuple[str, str]] = Counter()
        self._training: dict[str, LanguageCuts] | None = None

    @property
    def training_cuts(self) -> dict[str, LanguageCuts]:
        """The usable training cuts of each language, read on first use.

        Raises:
          DataError: Manifests are missing, or all cuts of a language are left out.
        """
        if self._training is None:
            self._training = {language.code: self._usable(language) for language in self.languages}
            if self._dropped:
                logger.warning("training cuts left out:\n%s", self.drop_report())
        return self._training

    def drop_report(self) -> str:
        """A table of the training cuts that are left out, by language and reason."""
        rows = [[language, reason, count] for (language, reason), count in sorted(self._dropped.items())]
        return tabulate(rows, ["language", "reason", "cuts"], tablefmt="simple_outline")

    def updates_per_epoch(self, world_size: int) -> int:
        """Updates that take as much audio as all languages have together."""
        return updates_per_epoch(self.training_cuts, self.config.max_duration, world_size)

    def train_batches(
        self, start_update: int, num_updates: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> Generator[Batch, None, None]:
        """The batches of the updates after `start_update`: the same ones whether or not the run was interrupted there.

        Args:
          start_update: Updates that are done.
          num_updates: How many batches to make.
          seed: Seed of order, language draws and augmentation.
          rank: This process.
          world_size: All processes.
        """
        config = self.config
        sampler = MonolingualSampler(
            self.training_cuts,
            config.max_duration,
            config.sampling_temperature,
            config.num_buckets,
            config.shuffle,
            config.short_first,
            seed,
            rank,
            world_size,
            start_update,
            num_updates,
        )
        yield from _loader(_SpeechDataset(config), sampler, config.num_workers)

    def loader(self, language: str, split: str) -> DataLoader[Batch]:
        """Batches of the dev or test split of a language, long utterances first, without augmentation.

        Raises:
          DataError: Its manifest is missing.
        """
        cuts = self._read(get_language(language), split).to_eager().sort_by_duration()
        plans = [
            BatchPlan(0, get_language(language).code, batch, 0) for batch in in_order(cuts, self.config.max_duration)
        ]
        return _loader(_SpeechDataset(None), plans, 0)

    def _read(self, language: Language, split: str) -> CutSet:
        folder = self.config.manifest_dir
        path = folder / f"mls-{language.name}_cuts_{split}.jsonl.gz"
        if not path.is_file():
            found = ", ".join(sorted(p.name for p in folder.glob("*_cuts_*"))) or "no cuts"
            raise DataError(
                f"no {path} ({folder} holds {found}): run ./prepare.sh --languages {language.code}, stages 0 to 3, "
                "or check --manifest-dir and --languages"
            )
        return CutSet.from_jsonl_lazy(path)

    def _usable(self, language: Language) -> LanguageCuts:
        """Read a language's training cuts once: count what is left out, add up what stays."""
        cuts, kept, seconds = self._read(language, "train"), 0, 0.0
        for cut in cuts:
            if reason := self._reason_to_drop(cut):
                self._dropped[language.code, reason] += 1
            else:
                kept += 1
                seconds += cut.duration
        if not kept:
            raise DataError(f"no training cut of {language.name} can be used:\n{self.drop_report()}")
        usable = cuts.filter(self._is_usable)
        return LanguageCuts(usable.to_eager() if kept < _EAGER_BELOW else usable, seconds)

    def _is_usable(self, cut: MonoCut) -> bool:
        return self._reason_to_drop(cut) is None

    def _reason_to_drop(self, cut: MonoCut) -> str | None:
        if cut.duration < self.config.min_cut_duration:
            return f"shorter than {self.config.min_cut_duration} s"
        if cut.duration > self.config.max_cut_duration:
            return f"longer than {self.config.max_cut_duration} s"
        if self._tokenizer is None:
            raise DataError(
                "training needs a tokenizer: it tells which utterances have too many tokens for their length"
            )
        tokens = len(self._tokenizer.encode([cut.supervisions[0].text])[0])
        # A transducer emits at most one symbol a frame in k2's pruned loss (T >= S); two frames to spare, as in icefall.
        if tokens + 2 > -(-cut.num_frames // _SUBSAMPLING):
            return "too many tokens for its length"
        return None


class _SpeechDataset(Dataset[Batch]):
    """Makes a batch of a plan; augments it if it is given the options of training."""

    def __init__(self, augmentation: DataConfig | None) -> None:
        self._augmentation = augmentation
        transforms = []
        if augmentation is not None and augmentation.enable_spec_aug:
            transforms.append(
                SpecAugment(
                    time_warp_factor=augmentation.spec_aug_time_warp_factor or None,
                    num_feature_masks=2,
                    features_mask_size=27,
                    num_frame_masks=augmentation.spec_aug_num_frame_masks,
                    frames_mask_size=100,
                    max_frames_mask_fraction=0.15,
                )
            )
        self._dataset = K2SpeechRecognitionDataset(input_transforms=transforms, return_cuts=True)
        self._musan: CutSet | None = None
        if augmentation is not None and augmentation.enable_musan:
            if not augmentation.musan_cuts.is_file():
                raise DataError(
                    f"no {augmentation.musan_cuts}: run ./prepare.sh --musan-dir DIR, or use --enable-musan 0"
                )
            self._musan = CutSet.from_file(augmentation.musan_cuts).to_eager()

    def __getitem__(self, plan: BatchPlan) -> Batch:
        check_monolingual(plan)
        cuts = plan.cuts
        with _seeded(plan.seed):
            if self._musan is not None:
                cuts = CutMix(self._musan, snr=(10, 20), p=0.5, preserve_id=True, seed=plan.seed)(cuts)
            try:
                batch = self._dataset[cuts]
            except (OSError, ValueError, AssertionError) as error:
                ids = ", ".join(cut.id for cut in cuts)
                raise DataError(
                    f"cannot make a batch of the {plan.language} cuts {ids}: {error}. If features are gone or damaged "
                    "remove the cuts file of this language and run ./prepare.sh --stage 3 again"
                ) from error
        batch["language"] = plan.language
        return batch


def check_monolingual(plan: BatchPlan) -> None:
    """Check that a batch holds one language.

    Raises:
      DataError: It does not; the message names the cuts.
    """
    strangers = [cut.id for cut in plan.cuts if any(s.language != plan.language for s in cut.supervisions)]
    if strangers:
        raise DataError(f"a batch of {plan.language} holds cuts of another language: {', '.join(strangers)}")


def _loader(dataset: _SpeechDataset, plans: Any, num_workers: int) -> DataLoader[Batch]:
    return DataLoader(dataset, sampler=plans, batch_size=None, num_workers=num_workers)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Random numbers from `seed` inside, and outside as if nothing had been drawn."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
