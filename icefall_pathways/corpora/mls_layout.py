"""File names of the MLS layout (OpenSLR 94), for its reader, its downloader, and the embedded corpus.

```
mls_french/                        or mls_french_opus/
  metainfo.txt                     speakers and their gender
  train/, dev/, test/
    transcripts.txt                HANDLE<tab>TEXT per utterance
    segments.txt                   HANDLE<tab>SOURCE<tab>START<tab>END per utterance
    audio/SPEAKER/BOOK/HANDLE.flac or .opus; a handle is SPEAKER_BOOK_INDEX, and the speaker may contain underscores
  train/limited_supervision/       lists of handles, handles.txt, for small training sets
    9hr/, 1hr/0/ ... 1hr/5/
```
"""

from pathlib import Path

from icefall_pathways.languages import Language

TRANSCRIPTS_FILE = "transcripts.txt"
SEGMENTS_FILE = "segments.txt"
METAINFO_FILE = "metainfo.txt"
HANDLES_FILE = "handles.txt"
LIMITED_DIR = "limited_supervision"
MINI_OPTIONS_FILE = "mini_corpus.json"  # in a folder of the embedded corpus
DOWNLOAD_MARK = ".download"  # in a folder that the downloader has started to fill
AUDIO_SUFFIXES = (".flac", ".opus")


def folder_name(language: Language, audio_format: str = "flac") -> str:
    """Return the name of the folder of a language, and of its archive without suffixes."""
    return f"mls_{language.name}_opus" if audio_format == "opus" else f"mls_{language.name}"


def split_handle(handle: str) -> tuple[str, str, str]:
    """Return speaker, book and index of a handle; index, or book and index, are empty if it lacks them."""
    speaker, book, index, *_ = [*handle.rsplit("_", 2), "", ""]
    return speaker, book, index


def audio_file(split_dir: Path, handle: str, suffix: str) -> Path:
    """Return the path of the audio of an utterance."""
    speaker, book, _ = split_handle(handle)
    return split_dir / "audio" / speaker / book / f"{handle}{suffix}"
