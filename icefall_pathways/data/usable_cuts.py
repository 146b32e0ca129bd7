"""The definition of a usable cut, the same for training, validation and decoding, and the report of the others.

The model encodes the whole cut, wherever its supervision is, offline and streaming: a usable cut has one supervision
with text, and the speech of this supervision is inside the cut. A cut that is scored by a loss also has features (or
audio, from which they are computed), and tokens that a transducer can emit in its frames. Training drops cuts by their
duration as well.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from enum import IntFlag
from typing import Protocol

from lhotse.cut import Cut
from lhotse.utils import compute_num_frames, fastcopy
from tabulate import tabulate

from icefall_pathways.constants import SUBSAMPLING_FACTOR
from icefall_pathways.data.features import FbankConfig
from icefall_pathways.data.tokenizer import Tokenizer

USED = "used"

_TOLERANCE = 1.0  # seconds by which a supervision may exceed its cut, such as after rounding and resampling


class CutFlag(IntFlag):
    """Properties that make a cut unusable, for all purposes or for some."""

    NOT_ONE_TRANSCRIPT = 1
    NO_AUDIO = 2
    NO_FEATURES = 4
    UNCOVERED_CHARACTERS = 8
    TOO_MANY_TOKENS = 16
    UNSUITABLE_AUDIO = 32  # several channels, or another sampling rate than the features
    SPEECH_OUTSIDE = 64


def rejections(on_the_fly: bool, has_loss: bool) -> dict[str, CutFlag]:
    """Return the reasons to drop a cut, in the order in which they are counted.

    Args:
      on_the_fly: Whether features are computed from the audio, or stored.
      has_loss: Whether a loss is computed, or the cut is only decoded. Missing audio and features of cuts that are
        decoded are errors, because word error rates of a part of a test set are not comparable.
    """
    reasons = {
        "zero or several transcripts": CutFlag.NOT_ONE_TRANSCRIPT,
        "speech outside of the cut": CutFlag.SPEECH_OUTSIDE,
    }
    if has_loss:
        reasons |= {"no audio": CutFlag.NO_AUDIO} if on_the_fly else {"no features": CutFlag.NO_FEATURES}
        reasons |= {
            "characters without a token": CutFlag.UNCOVERED_CHARACTERS,
            "too many tokens for its length": CutFlag.TOO_MANY_TOKENS,
        }
    return reasons


def describe_cut(cut: Cut, tokenizer: Tokenizer | None) -> tuple[int, CutFlag]:
    """Return the number of tokens and the flags of a cut; without a tokenizer, 0 and the flags that need none."""
    config = FbankConfig()
    flags = CutFlag(0)
    if not cut.has_recording:
        flags |= CutFlag.NO_AUDIO
    elif cut.recording.sampling_rate != config.sample_rate or cut.recording.num_channels > 1:
        flags |= CutFlag.UNSUITABLE_AUDIO
    if not cut.has_features:
        flags |= CutFlag.NO_FEATURES
    texts = [supervision.text for supervision in cut.supervisions]
    if len(texts) != 1 or not isinstance(texts[0], str) or not texts[0].strip():
        return 0, flags | CutFlag.NOT_ONE_TRANSCRIPT
    (supervision,) = cut.supervisions
    if supervision.start < -_TOLERANCE or supervision.end > cut.duration + _TOLERANCE:
        flags |= CutFlag.SPEECH_OUTSIDE
    if tokenizer is None:
        return 0, flags
    tokens = tokenizer.encode([supervision.text])[0]
    if tokenizer.unknown_id in tokens:
        flags |= CutFlag.UNCOVERED_CHARACTERS
    # k2's pruned loss emits at most one symbol per frame (T >= S); the margin of two is icefall's.
    num_frames = cut.num_frames or compute_num_frames(cut.duration, config.frame_seconds, config.sample_rate)
    if len(tokens) + 2 > -(-num_frames // SUBSAMPLING_FACTOR):
        flags |= CutFlag.TOO_MANY_TOKENS
    return len(tokens), flags


def select_usable(
    cuts: Iterable[Cut], tokenizer: Tokenizer | None, reasons: Mapping[str, CutFlag]
) -> tuple[list[Cut], Counter[str]]:
    """Return the usable cuts, and the number of used and of dropped cuts by reason."""
    usable, counts = [], Counter[str]()
    for cut in cuts:
        _, flags = describe_cut(cut, tokenizer)
        reason = next((reason for reason, flag in reasons.items() if flags & flag), USED)
        counts[reason] += 1
        if reason == USED:
            usable.append(cut)
    return usable, counts


def with_whole_supervision(cut: Cut) -> Cut:
    """Return the cut with its only supervision extended to the whole cut.

    Lhotse gives a batch the frames of the supervision only, counted from the start of the cut: of a supervision that
    starts later, the end would be lost.
    """
    (supervision,) = cut.supervisions
    if supervision.start == 0 and supervision.duration == cut.duration:
        return cut
    return fastcopy(cut, supervisions=[fastcopy(supervision, start=0.0, duration=cut.duration)])


class _Counted(Protocol):
    @property
    def counts(self) -> Counter[str]: ...


def drop_report(cuts: Mapping[str, _Counted], split: str = "training") -> str:
    """Return a table of the numbers of used and dropped cuts, by language and reason."""
    rows = [[code, *row] for code, language in sorted(cuts.items()) for row in sorted(language.counts.items())]
    return tabulate(rows, ["language", f"{split} cuts", "number"], tablefmt="simple_outline")


def has_dropped(cuts: Mapping[str, _Counted]) -> bool:
    """Return whether some cuts were dropped."""
    return any(set(language.counts) - {USED} for language in cuts.values())
