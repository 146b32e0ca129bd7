"""Features of one shard of cuts: decode the audio, store the features, and write the cuts.

The folder of a split holds, for shard i, the features `feats-i.lca` (if they are stored). While it is unfinished, it
also holds the files of `icefall_pathways.sharding.shards`.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from lhotse import FeatureExtractor, Features, LilcomChunkyWriter, MonoCut
from lhotse.cut import Cut

from icefall_pathways.data.features import FbankConfig
from icefall_pathways.errors import last_line
from icefall_pathways.files import atomic_write
from icefall_pathways.sharding.shards import Shard

SHARD_SIZE = 400  # cuts

FEATURES = "feats-*"  # file names of stored features

Unreadable = list[tuple[str, str]]  # cut ids, and the errors of their decoders


def write_shard(shard: Shard, cuts: Iterable[Cut], store_feats: bool) -> tuple[int, Unreadable]:
    """Write the features and the cuts of a shard.

    Args:
      shard: The shard; its items are ignored.
      cuts: Its cuts.
      store_feats: Whether to store features; otherwise cuts are only decoded, to detect unreadable ones.

    Returns:
      The number of cuts written, and the cuts that could not be decoded.
    """
    unreadable: Unreadable = []
    with _feature_writer(shard.path("feats", "lca") if store_feats else None) as writer:
        decoded = list(_decode(cuts, writer, unreadable))
    shard.write("cuts", (cut.to_dict() for cut in decoded))
    return len(decoded), unreadable


class _FeatureWriter:
    """Computes features and stores them in a file, which gets its name when it is complete."""

    def __init__(self, path: Path, writer: LilcomChunkyWriter) -> None:
        self._path = path
        self._writer = writer
        self._extractor = FbankConfig().extractor()

    def store(self, cut: Cut, audio: np.ndarray) -> MonoCut:
        """Store the features of `audio` (channels, samples), downmixed, and return the cut with them."""
        rate = cut.sampling_rate
        features = np.asarray(self._extractor.extract(audio.mean(axis=0, keepdims=True), rate))
        key = self._writer.write(cut.id, features)
        return _mono_cut(cut, _describe(cut, features, self._extractor, self._path, self._writer.name, key))


@contextmanager
def _feature_writer(path: Path | None) -> Iterator[_FeatureWriter | None]:
    if path is None:
        yield None
        return
    with atomic_write(path) as temporary, LilcomChunkyWriter(temporary) as writer:
        yield _FeatureWriter(path, writer)


def _decode(cuts: Iterable[Cut], writer: _FeatureWriter | None, unreadable: Unreadable) -> Iterator[Cut]:
    for cut in cuts:
        try:
            audio = cut.recording.load_audio(offset=cut.start, duration=cut.duration)
        except Exception as error:  # audio backends raise exceptions of many types
            unreadable.append((cut.id, f"{cut.recording.sources[0].source}: {_reason(cut, error)}"))
            continue
        yield cut if writer is None else writer.store(cut, audio)


def _reason(cut: Cut, error: Exception) -> str:
    """Return why the audio of a cut cannot be decoded."""
    if "number of declared samples" in str(error):  # Lhotse asks to report an issue
        return f"it is shorter than its {cut.recording.duration:.2f} s: truncated or damaged"
    return last_line(error)


def _describe(
    cut: Cut, features: np.ndarray, extractor: FeatureExtractor, path: Path, storage_type: str, key: str
) -> Features:
    """Return the manifest of stored features (T, num_bins)."""
    return Features(
        type=extractor.name,
        num_frames=features.shape[0],
        num_features=features.shape[1],
        frame_shift=extractor.frame_shift,
        sampling_rate=cut.sampling_rate,
        start=cut.start,
        duration=cut.duration,
        storage_type=storage_type,
        storage_path=str(path),
        storage_key=key,
        recording_id=cut.recording_id,
        channels=0,
    )


def _mono_cut(cut: Cut, features: Features) -> MonoCut:
    supervisions = [supervision.with_offset(0.0) for supervision in cut.supervisions]
    for supervision in supervisions:
        supervision.channel = 0  # of the downmixed audio
    return MonoCut(
        id=cut.id,
        start=cut.start,
        duration=cut.duration,
        channel=0,
        supervisions=supervisions,
        features=features,
        recording=cut.recording,
    )
