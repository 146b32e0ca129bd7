"""The samples of a cut, whole or in pieces as they are needed."""

from collections.abc import Generator, Iterator
from contextlib import closing

import soundfile
import torch
from lhotse import MonoCut
from torch import Tensor

from icefall_pathways.data.manifests import check_files
from icefall_pathways.decoding.streaming import AudioError
from icefall_pathways.errors import first_line

_SHORTAGE = 0.025  # seconds that a file may be shorter than its manifest says, as in lhotse


def read_pieces(cut: MonoCut, size: int) -> Iterator[Tensor]:
    """The samples of a cut in pieces of `size`, the last one shorter, read from disk when they are asked for.

    Whatever libsndfile reads (flac, wav, opus, mp3) is held a piece at a time, and the same samples as `load_samples`:
    one file is read on and on, because a decoder that begins anew at each piece may give other ones. What lhotse has
    to convert, to unpack or to read otherwise is read whole.

    Raises:
      AudioError: They cannot be read, or not to the end; what could be read comes before.
    """
    with closing(_blocks(cut, size)) as blocks:
        while True:
            try:
                block = next(blocks, None)
            except Exception as error:  # each of lhotse's backends has errors of its own
                raise AudioError(f"cannot read its audio: {first_line(error)}") from error
            if block is None:
                return
            yield block


def load_samples(cut: MonoCut) -> Tensor:
    """The samples (n,) of a cut, channels mixed to one."""
    samples = cut.recording.load_audio(offset=cut.start, duration=cut.duration).mean(axis=0)
    return torch.from_numpy(samples)


def _blocks(cut: MonoCut, size: int) -> Generator[Tensor, None, None]:
    check_files(cut, stored_features=False)
    file = _open(cut)
    if file is None:
        yield from load_samples(cut).split(size)
        return
    with file:
        file.seek(round(cut.start * file.samplerate))
        left = cut.num_samples
        while left > 0:
            block = file.read(min(size, left), dtype="float32", always_2d=True).mean(axis=1)
            if block.size == 0:
                break
            left -= block.size
            yield torch.from_numpy(block)
    if left > _SHORTAGE * cut.sampling_rate:
        raise ValueError(f"it ends {left / cut.sampling_rate:.2f} s before its manifest says")


def _open(cut: MonoCut) -> soundfile.SoundFile | None:
    """The file of a cut, if it can be read from anywhere on as it is."""
    recording = cut.recording
    source = recording.sources[0]
    if recording.transforms or len(recording.sources) > 1 or source.type != "file":
        return None
    try:
        file = soundfile.SoundFile(source.source)
    except soundfile.LibsndfileError:
        return None  # lhotse has other readers, or says what is wrong
    if file.seekable() and file.samplerate == recording.sampling_rate:
        return file
    file.close()
    return None
