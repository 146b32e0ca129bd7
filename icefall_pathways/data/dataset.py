"""Dataset that makes a batch from its plan, in a loader worker or in the training process."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from lhotse import CutSet
from lhotse.dataset import K2SpeechRecognitionDataset, OnTheFlyFeatures, PrecomputedFeatures
from torch.utils.data import Dataset

from icefall_pathways.data.augmentation import Augmentation, seeded
from icefall_pathways.data.batch import Batch
from icefall_pathways.data.cut_index import CutIndex
from icefall_pathways.data.features import FbankConfig
from icefall_pathways.data.level import LevelNorm, normalize_level
from icefall_pathways.data.manifests import DataError, check_files
from icefall_pathways.data.sampling import BatchDraw
from icefall_pathways.data.tokenizer import Tokenizer
from icefall_pathways.data.usable_cuts import with_whole_supervision
from icefall_pathways.errors import first_line
from icefall_pathways.languages import get_language


@dataclass(frozen=True)
class BatchPlan:
    """The description of a batch, from which a loader worker makes it.

    Attributes:
      update: Number of the update that uses the batch, from 1.
      language: Code of the language of all cuts.
      cuts: The cuts.
      seed: Seed of the augmentation.
    """

    update: int
    language: str
    cuts: CutSet
    seed: int


class SpeechDataset(Dataset[Batch | DataError]):
    """Map a batch plan to a batch.

    A data error is returned, not raised: torch would add the traceback of the worker to an exception.

    Args:
      augmentation: Augments cuts and features; None for validation and decoding.
      on_the_fly: Compute the features from the audio instead of reading stored ones.
      tokenizer: Tokenizes the transcripts; None leaves the tokens of batches empty.
      level_norm: Normalization of the features, stored or not.
    """

    def __init__(
        self,
        augmentation: Augmentation | None,
        on_the_fly: bool,
        tokenizer: Tokenizer | None,
        level_norm: LevelNorm = "none",
    ) -> None:
        self._augmentation = augmentation
        self._on_the_fly = on_the_fly
        self._tokenizer = tokenizer
        self._level_norm: LevelNorm = level_norm
        strategy = OnTheFlyFeatures(FbankConfig().extractor()) if on_the_fly else PrecomputedFeatures()
        self._dataset = K2SpeechRecognitionDataset(return_cuts=True, input_strategy=strategy)

    def load(self, plan: BatchPlan) -> Batch:
        """Return the batch of a plan.

        Raises:
          DataError: The batch cannot be made; the message names the cut and the file.
        """
        batch = self[plan]
        if isinstance(batch, DataError):
            raise batch
        return batch

    def __getitem__(self, plan: BatchPlan) -> Batch | DataError:
        try:
            check_monolingual(plan)
            cuts = CutSet.from_cuts(map(with_whole_supervision, plan.cuts))
            with seeded(plan.seed):
                cuts = self._augmentation.mix(cuts) if self._augmentation else cuts
                for cut in cuts:
                    check_files(cut, not self._on_the_fly)
                return self._process(Batch.from_lhotse(self._dataset[cuts], plan.language, self._tokenizer), plan.seed)
        except DataError as error:
            return error
        except Exception as error:  # feature readers raise exceptions of many types
            return DataError(_explain(plan, self._on_the_fly, error))

    def _process(self, batch: Batch, seed: int) -> Batch:
        """Perturb, normalize and mask the features of a batch, in this order."""
        if self._augmentation is not None:
            batch = self._augmentation.perturb(batch, seed)
        batch = batch.with_utterances([normalize_level(x, self._level_norm) for x in batch.utterances])
        if self._augmentation is None:
            return batch
        return replace(batch, inputs=self._augmentation.mask(batch.inputs, batch.num_frames))


class IndexedDataset(Dataset[Batch | DataError]):
    """Map a batch whose cuts are given by their numbers to a batch; the cuts are read from the manifests.

    Args:
      indexes: The cuts of each language.
      batches: Makes a batch of cuts.
    """

    def __init__(self, indexes: Mapping[str, CutIndex], batches: SpeechDataset) -> None:
        self._indexes = dict(indexes)
        self._batches = batches

    def __getitem__(self, draw: BatchDraw) -> Batch | DataError:
        try:
            cuts = self._indexes[draw.language].load(draw.numbers)
        except DataError as error:
            return error
        return self._batches[BatchPlan(draw.update, draw.language, cuts, draw.seed)]


def check_monolingual(plan: BatchPlan) -> None:
    """Check that all cuts of a batch have its language.

    Raises:
      DataError: Some have another language; the message names them.
    """
    others = [cut.id for cut in plan.cuts if any(s.language != plan.language for s in cut.supervisions)]
    if others:
        raise DataError(
            f"a batch of {plan.language} contains cuts of another language: {', '.join(others)}; expected manifests "
            "with the cuts of one language each, prepare them again"
        )


def _explain(plan: BatchPlan, on_the_fly: bool, error: Exception) -> str:
    """Return an error message that names the first unreadable cut of a plan, if there is one."""
    for cut in plan.cuts:
        try:
            _ = cut.load_audio() if on_the_fly else cut.load_features()
        except Exception as cause:
            if on_the_fly:
                return (
                    f"cannot read the audio of cut {cut.id} ({first_line(cause)}): repair the file, or remove the cut "
                    "from the manifest"
                )
            return (
                f"cannot read the features of cut {cut.id} in {cut.features.storage_path} ({first_line(cause)}): "
                f"remove the cuts files of {get_language(plan.language).name} and run ./prepare.sh --stage 3 again"
            )
    ids = ", ".join(cut.id for cut in plan.cuts)
    return f"cannot make a batch of the {plan.language} cuts {ids}: {first_line(error)}"
