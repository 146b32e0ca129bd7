"""Samples of a cut, read at once or block by block."""

from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path

import soundfile
import torch
from lhotse import MonoCut
from torch import Tensor

from icefall_pathways.data.manifests import check_files
from icefall_pathways.decoding.streaming import AudioError
from icefall_pathways.errors import first_line

_MAX_MISSING_SECONDS = 0.025  # tolerated if a file is shorter than its manifest says, as in lhotse


def read_blocks(cut: MonoCut, size: int) -> Iterator[Tensor]:
    """Read the samples of a cut lazily, in blocks of `size` (the last one may be shorter).

    The samples equal those of `load_samples`. Files that libsndfile reads (flac, wav, opus, mp3) are
    read sequentially, one block in memory at a time: restarting a decoder at each block may change the samples.
    Recordings that lhotse has to resample, unpack or read in another way are read at once.

    Raises:
      AudioError: The audio cannot be read completely; the blocks before the error are yielded first.
    """
    with closing(_blocks(cut, size)) as blocks:
        while True:
            try:
                block = next(blocks, None)
            except FileNotFoundError as error:
                raise AudioError(f"cannot read its audio: {first_line(error)}{_hint(str(error.filename))}") from error
            except Exception as error:  # every audio backend of lhotse raises different errors
                raise AudioError(f"cannot read its audio: {first_line(error)}") from error
            if block is None:
                return
            yield block


def _hint(path: str) -> str:
    if Path(path).is_absolute():
        return ""
    return (
        f". It is neither in the folder in which prepare.sh ran, nor in this one ({Path.cwd()}): move the audio "
        "together with the data folder, or run the command in the folder that has it"
    )


def load_samples(cut: MonoCut) -> Tensor:
    """Return the samples (n,) of a cut, with channels averaged."""
    samples = cut.recording.load_audio(offset=cut.start, duration=cut.duration).mean(axis=0)
    return torch.from_numpy(samples)


def _blocks(cut: MonoCut, size: int) -> Generator[Tensor, None, None]:
    if not cut.has_recording:
        raise ValueError(
            "the cut has features but no recording, and streaming decoding computes features from audio; add the "
            "recordings to the manifest of cuts, or decode the stored features with decode.py"
        )
    check_files(cut, stored_features=False)
    file = _open(cut)
    if file is None:
        yield from load_samples(cut).split(size)
        return
    with file:
        if cut.start > 0:  # as lhotse: a seek to the start changes the samples of MP3
            file.seek(round(cut.start * file.samplerate))
        remaining = cut.num_samples
        while remaining > 0:
            block = file.read(min(size, remaining), dtype="float32", always_2d=True).mean(axis=1)
            if block.size == 0:
                break
            remaining -= block.size
            yield torch.from_numpy(block)
    if remaining > _MAX_MISSING_SECONDS * cut.sampling_rate:
        raise ValueError(f"it is {remaining / cut.sampling_rate:.2f} s shorter than its manifest states")


class SequentialFile(soundfile.SoundFile):
    """A file that is read from one position to the end.

    soundfile seeks after every read of a seekable file, which restarts the decoder: MP3 then differs from the samples
    that one read returns.
    """

    def seekable(self) -> bool:
        """Return False, so that soundfile does not seek."""
        return False


def _open(cut: MonoCut) -> SequentialFile | None:
    """Open the file of a cut; return None unless it can be read from any position without conversion."""
    recording = cut.recording
    source = recording.sources[0]
    if recording.transforms or len(recording.sources) > 1 or source.type != "file":
        return None
    try:
        file = SequentialFile(source.source)
    except soundfile.LibsndfileError:
        return None  # lhotse has other readers, and reports the error if they fail, too
    if soundfile.SoundFile.seekable(file) and file.samplerate == recording.sampling_rate:
        return file
    file.close()
    return None
