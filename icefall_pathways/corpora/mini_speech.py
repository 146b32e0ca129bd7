"""Synthetic multi-speaker speech: voices and variants of eSpeak NG with reverberation and noise."""

import _ctypes
import ctypes
import random
from dataclasses import dataclass

import numpy as np
import torch
from lhotse.augmentation import get_or_create_resampler

from icefall_pathways.constants import SAMPLE_RATE
from icefall_pathways.languages import Language

_ESPEAK_RATE = 22050
_SYNCHRONOUS = 2  # mode of espeak_Initialize: the callback receives the audio before espeak_Synth returns
_RETURN_ERRORS = 0x8000  # option of espeak_Initialize: without it, a missing file terminates the process
_UTF8 = 1
_RATE, _PITCH, _RANGE = 1, 3, 4  # espeak_PARAMETER

VOICES = {
    "en": ("en", "en-us", "en-gb-x-rp", "en-gb-scotland"),
    "fr": ("fr", "fr-be", "fr-ch"),
    "it": ("it",),
    "nl": ("nl",),
    "de": ("de",),
    "es": ("es", "es-419"),
    "pt": ("pt", "pt-br"),
    "pl": ("pl",),
    "be": ("be",),
    "bg": ("bg",),
    "ca": ("ca", "ca-ba", "ca-nw", "ca-va"),
    "da": ("da",),
    "el": ("el",),
    "ro": ("ro",),
    "ru": ("ru",),
}

# Natural-sounding variants; whispering, croaking, and robot voices are excluded.
_WOMEN = "Annie aunty belinda f1 f2 f3 f4 f5 grandma linda shelby"
_MEN = """
    Alex Andy Denis Diogo Gene Henrique Hugo Lee Marco Mario Michael Mike Nguyen Reed adam benjamin boris mike2
    david edward edward2 grandpa gustave john m1 m2 m3 m4 m5 m6 m7 m8 marcelo max michel miguel norbert pablo
    paul quincy rob robert victor
"""


class SynthesisError(ValueError):
    """The synthesizer rejected a voice or a text."""


@dataclass(frozen=True)
class Speaker:
    """A synthetic speaker.

    Attributes:
      speaker_id: Unique in the corpus.
      voice: Voice and variant of the synthesizer, such as "fr+f2".
      gender: "M" or "F".
    """

    speaker_id: int
    voice: str
    gender: str


def draw_speakers(language: Language, seed: int) -> list[Speaker]:
    """Return all speakers of a language, one per variant, in an order drawn from `seed`."""
    rng = random.Random(f"{seed}/{language.code}/speakers")
    variants = [(name, "F") for name in _WOMEN.split()] + [(name, "M") for name in _MEN.split()]
    rng.shuffle(variants)
    voices = VOICES[language.code]
    first = 1000 * (1 + list(VOICES).index(language.code))
    return [
        Speaker(first + i, f"{voices[i % len(voices)]}+{name}", gender) for i, (name, gender) in enumerate(variants)
    ]


class Synthesizer:
    """eSpeak NG in this process.

    The library keeps state between utterances (noise generators, filters of the previous voice). It is loaded again for
    each utterance, which takes 2 ms, so that its samples depend on its arguments only.
    """

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        # The library stores a plain pointer to the callback; this reference keeps it alive.
        callback_type = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
        self._callback = callback_type(self._collect)

    def speak(self, text: str, voice: str, words_per_minute: int, pitch: int, pitch_range: int) -> np.ndarray:
        """Synthesize `text`.

        Args:
          text: The text.
          voice: A voice, with a variant after a plus sign ("fr+f2").
          words_per_minute: Speed, 80 to 450.
          pitch: 0 to 100.
          pitch_range: 0 (monotone) to 100.

        Returns:
          Samples (n,) in [-1, 1] at 16 kHz, float32.

        Raises:
          SynthesisError: The voice does not exist, or the text produces silence.
        """
        import espeakng_loader  # not at import time: the command line does not need it

        library = ctypes.CDLL(espeakng_loader.get_library_path())
        try:
            self._synthesize(library, text, voice, {_RATE: words_per_minute, _PITCH: pitch, _RANGE: pitch_range})
        finally:
            library.espeak_Terminate()
            _ctypes.dlclose(library._handle)
        samples = np.frombuffer(b"".join(self._chunks), dtype=np.int16)
        if not samples.any():
            raise SynthesisError(f"eSpeak NG produced silence for {text!r} with voice {voice!r}: expected speech")
        resample = get_or_create_resampler(_ESPEAK_RATE, SAMPLE_RATE)
        return resample(torch.from_numpy(samples.astype(np.float32) / 32768)).numpy()

    def _synthesize(self, library: ctypes.CDLL, text: str, voice: str, parameters: dict[int, int]) -> None:
        import espeakng_loader

        self._chunks.clear()
        data = espeakng_loader.get_data_path().encode()
        if library.espeak_Initialize(_SYNCHRONOUS, 0, data, _RETURN_ERRORS) != _ESPEAK_RATE:
            raise SynthesisError(
                f"eSpeak NG did not start with the voices in {data.decode()} ({len(data)} characters; at most 150 are "
                "safe): install espeakng-loader again, or the environment in a folder with a shorter path"
            )
        library.espeak_SetSynthCallback(self._callback)
        library.espeak_ng_SetRandSeed(ctypes.c_long(1))
        ctypes.CDLL(None).srand(1)
        if library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise SynthesisError(f"eSpeak NG has no voice {voice!r}: install the locked version of espeakng-loader")
        for parameter, value in parameters.items():
            library.espeak_SetParameter(parameter, value, 0)
        utf8 = text.encode() + b"\0"
        if library.espeak_Synth(utf8, len(utf8), 0, 0, 0, _UTF8, None, None) != 0:
            raise SynthesisError(f"eSpeak NG rejected {text!r} with voice {voice!r}")

    def _collect(self, samples: "ctypes._Pointer[ctypes.c_short]", count: int, events: int) -> int:
        if samples and count > 0:
            self._chunks.append(ctypes.string_at(samples, 2 * count))
        return 0


def synthesize_utterance(
    synthesizer: Synthesizer, text: str, speaker: Speaker, seed: int, rng: random.Random
) -> np.ndarray:
    """Synthesize `text` by `speaker` with random variations of speed, pitch, reverberation, noise, and level.

    Args:
      synthesizer: The synthesizer.
      text: The text.
      speaker: The speaker.
      seed: Seed of the corpus; it determines the mean speed and pitch of each speaker.
      rng: Source of the variations of this utterance.

    Returns:
      Samples (n,) in [-1, 1] at 16 kHz, float32.

    Raises:
      SynthesisError: The voice does not exist, or the text produces silence.
    """
    speaker_rng = random.Random(f"{seed}/{speaker.speaker_id}")
    rate, pitch, pitch_range = speaker_rng.randint(130, 170), speaker_rng.randint(35, 65), speaker_rng.randint(35, 65)
    samples = synthesizer.speak(
        text, speaker.voice, rate + rng.randint(-12, 12), pitch + rng.randint(-6, 6), pitch_range + rng.randint(-10, 10)
    )
    noise = np.random.default_rng(rng.getrandbits(63))
    samples = _reverberate(samples, rng.uniform(0.05, 0.2), rng.uniform(0.05, 0.2), noise)
    power = float(np.mean(samples**2))
    samples = samples + noise.normal(0, (power * 10 ** (-rng.uniform(25, 40) / 10)) ** 0.5, len(samples))
    return (samples * 10 ** (-rng.uniform(3, 12) / 20) / np.abs(samples).max()).astype(np.float32)


def _reverberate(samples: np.ndarray, decay: float, wet: float, noise: np.random.Generator) -> np.ndarray:
    """Convolve with exponentially decaying noise that falls by 60 dB in `decay` seconds, of relative energy `wet`."""
    length = int(decay * SAMPLE_RATE)
    response = noise.normal(size=length) * 10 ** (-3 * np.arange(length) / length)
    response *= (wet / np.sum(response**2)) ** 0.5
    response[0] = 1.0
    size = len(samples) + length
    return np.fft.irfft(np.fft.rfft(samples, size) * np.fft.rfft(response, size), size)[: len(samples)]
