"""Spoken language identification from the confidence of each pathway.

Every pathway decodes the same audio. A few features measure how confident each pathway is, and how well all decoded
tokens fit its language (`FEATURES`); the logit of a language is a weighted sum of its features plus an offset. Weights
and offsets are fitted on the dev split (`calibration`) and stored in the experiment folder.
"""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from icefall_pathways.decoding.streaming import FRAME_SECONDS, Stream, StreamingDecoder
from icefall_pathways.errors import as_damage
from icefall_pathways.experiment import layout
from icefall_pathways.files import read_json, write_json
from icefall_pathways.ranges import Range, check_number
from icefall_pathways.searches import Hypothesis, Search, SearchState

FEATURES = ("search_per_frame", "search_per_token", "ctc_per_frame", "ctc_per_token", "text_per_token")
"""Features of a language.

search_per_frame, search_per_token: Log-probability of the best hypothesis per encoder frame, and per token.
ctc_per_frame: Mean log-probability of the best CTC output over all encoder frames.
ctc_per_token: The same over the frames in which the best CTC output is not a blank.
text_per_token: Mean log-probability, under the unigram model of the language, of the tokens that all pathways decoded:
  pathways share weights, so they also decode words of other languages.
"""


@dataclass(frozen=True)
class ScoringState(SearchState):
    """State of a `ScoringSearch` for N streams.

    Attributes:
      inner: State of the wrapped search.
      sums: (N, 4) sums over the processed frames: number of frames, best CTC log-probabilities, those of frames whose
        best CTC output is not a blank, and number of such frames.
    """

    inner: SearchState
    sums: Tensor

    def split(self) -> list["ScoringState"]:
        """Return one state per stream."""
        return [ScoringState(*values) for values in zip(self.inner.split(), self.sums.split(1), strict=True)]

    def _join(self, states: Sequence["ScoringState"]) -> "ScoringState":
        inner = SearchState.join([state.inner for state in states])
        return ScoringState(inner, torch.cat([state.sums for state in states]))


class ScoringSearch(Search[ScoringState]):
    """Wrap a search, and accumulate the scores for language identification.

    Args:
      inner: The search.
      ctc_output: CTC head of the model; None if it has none.
    """

    def __init__(self, inner: Search[Any], ctc_output: nn.Module | None) -> None:
        super().__init__(inner.model, inner.blank_penalty)
        self.inner = inner
        self.ctc_output = ctc_output

    def init(self, batch_size: int) -> ScoringState:
        """Return the initial state of `batch_size` streams."""
        return ScoringState(self.inner.init(batch_size), torch.zeros(batch_size, 4, device=self.device))

    @torch.inference_mode()
    def advance(self, state: ScoringState, encoder_out: Tensor, lens: Tensor) -> ScoringState:
        """Process the next frames of every stream; see `Search.advance`."""
        valid = torch.arange(encoder_out.size(1), device=self.device) < lens.to(self.device)[:, None]
        best, nonblank = torch.zeros_like(valid, dtype=torch.float), torch.zeros_like(valid)
        if self.ctc_output is not None:
            best, token = self.ctc_output(encoder_out).float().log_softmax(dim=-1).max(dim=-1)
            best, nonblank = best * valid, token.ne(self.blank_id) & valid
        sums = torch.stack([valid, best, best * nonblank, nonblank], dim=2).sum(dim=1)
        return ScoringState(self.inner.advance(state.inner, encoder_out, lens), state.sums + sums)

    def results(self, state: ScoringState) -> list[Hypothesis]:
        """Return the best hypothesis of each stream."""
        return self.inner.results(state.inner)

    def n_best(self, state: ScoringState) -> list[list[Hypothesis]]:
        """Return the hypotheses of each stream."""
        return self.inner.n_best(state.inner)

    def stable_lengths(self, state: ScoringState) -> list[int]:
        """Return the length of each stream's stable prefix."""
        return self.inner.stable_lengths(state.inner)

    def reset_hypothesis(self, state: ScoringState) -> ScoringState:
        """Return a state for the next segment, with scores reset."""
        return ScoringState(self.inner.reset_hypothesis(state.inner), torch.zeros_like(state.sums))


def with_scoring(decoder: StreamingDecoder) -> StreamingDecoder:
    """Return the same decoder with a `ScoringSearch` around each of its searches."""
    searches = {name: ScoringSearch(search, decoder.model.ctc_output) for name, search in decoder.searches.items()}
    return StreamingDecoder(decoder.model, searches, decoder.fbank, decoder.pathways, decoder.encoder)


@dataclass(frozen=True)
class LanguageIdFeatures:
    """Features of all candidate languages for the audio of one utterance so far.

    Attributes:
      values: (languages, FEATURES).
      speech_seconds: Seconds of audio since the first token of any pathway; 0 if there is none.
      hypotheses: Best hypothesis of each language's pathway.
    """

    values: Tensor
    speech_seconds: float
    hypotheses: list[Hypothesis]


Unigrams = Mapping[str, Sequence[float]]
"""Unigram model of each language: log-probabilities of all tokens in its transcripts."""


def unigram_log_probs(texts: Iterable[Sequence[int]], vocab_size: int) -> list[float]:
    """Return the log-probability of each token (vocab_size,) in tokenized texts, with add-one smoothing."""
    counts = torch.ones(vocab_size)
    for tokens in texts:
        counts += torch.bincount(torch.tensor(tokens, dtype=torch.int64), minlength=vocab_size)
    log_probs: list[float] = (counts / counts.sum()).log().tolist()
    return log_probs


def extract_features(
    decoder: StreamingDecoder, sessions: Sequence[Sequence[Stream]], unigrams: Unigrams
) -> list[LanguageIdFeatures]:
    """Return the current features of each session.

    Args:
      decoder: A decoder made by `with_scoring`.
      sessions: Streams of each session: one per language, with the same audio.
      unigrams: Unigram model of each language.
    """
    streams = [stream for session in sessions for stream in session]
    hypotheses = decoder.results(streams)
    sums = torch.cat([cast(ScoringState, stream.search_state).sums for stream in streams]).tolist()
    rows = [
        (
            hypothesis.log_prob / max(frames, 1),
            hypothesis.log_prob / max(len(hypothesis.tokens), 1),
            ctc / max(frames, 1),
            nonblank_ctc / max(num_nonblank, 1),
        )
        for hypothesis, (frames, ctc, nonblank_ctc, num_nonblank) in zip(hypotheses, sums, strict=True)
    ]
    features, start = [], 0
    for session in sessions:
        end = start + len(session)
        tokens = [token for hypothesis in hypotheses[start:end] for token in hypothesis.tokens]
        text = [sum(unigrams[stream.language][token] for token in tokens) / max(len(tokens), 1) for stream in session]
        firsts = [hypothesis.timestamps[0] for hypothesis in hypotheses[start:end] if hypothesis.tokens]
        values = torch.cat([torch.tensor(rows[start:end]), torch.tensor(text)[:, None]], dim=1)
        speech_seconds = (session[0].num_frames - min(firsts)) * FRAME_SECONDS if firsts else 0.0
        features.append(LanguageIdFeatures(values, speech_seconds, hypotheses[start:end]))
        start = end
    return features


@dataclass(frozen=True)
class LanguageIdModel:
    """Calibrated model for language identification: logits of languages from their features.

    Attributes:
      weights: Weight of each feature.
      offsets: Offset of each language, by code.
      unigrams: Unigram model of each language.
      seconds: Seconds of speech, from the first token on, after which the language is selected.
    """

    weights: dict[str, float]
    offsets: dict[str, float]
    unigrams: dict[str, list[float]]
    seconds: float = 2.0

    def logits(self, values: Tensor, languages: Sequence[str]) -> Tensor:
        """Return logits (..., languages) of feature values (..., languages, FEATURES)."""
        weights = torch.tensor([self.weights.get(name, 0.0) for name in FEATURES])
        return values @ weights + torch.tensor([self.offsets[language] for language in languages])

    def mismatch(self, languages: Iterable[str], vocab_size: int) -> str | None:
        """Return the reason why language identification does not fit a model; None if it fits.

        Args:
          languages: Codes of languages of the model.
          vocab_size: Number of tokens of the model.
        """
        for language in languages:
            if language not in self.offsets or language not in self.unigrams:
                return f"language identification is not calibrated for {language}"
            if (count := len(self.unigrams[language])) != vocab_size:
                return f"language identification has {count} unigrams of {language}, and the model {vocab_size} tokens"
        return None

    def restrict(self, languages: Sequence[str]) -> "LanguageIdModel":
        """Return language identification restricted to some of the languages.

        The logit of a language does not depend on the other languages, except that `text_per_token` covers the tokens
        of all pathways.
        """
        offsets = {language: self.offsets[language] for language in languages}
        return replace(self, offsets=offsets, unigrams={language: self.unigrams[language] for language in languages})

    def select(
        self, features: LanguageIdFeatures, languages: Sequence[str], audio_seconds: float, ended: bool
    ) -> int | None:
        """Return the index of the language with the largest logit, or None to wait for more audio.

        Args:
          features: Features of `languages`.
          languages: Codes of the candidate languages.
          audio_seconds: Seconds of audio since the initial silence.
          ended: The audio has ended: select a language in any case.
        """
        if min(features.speech_seconds, audio_seconds) < self.seconds and not ended:
            return None
        return int(self.logits(features.values, languages).argmax())

    def save(self, path: Path) -> None:
        """Write the model as JSON."""
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path) -> "LanguageIdModel":
        """Read a model.

        Raises:
          ValueError: The file is missing or damaged.
        """
        if not path.is_file():
            raise ValueError(
                f"{path} not found: calibrate language identification with ./pruned_transducer_pathways/"
                f"calibrate_language_id.py --exp-dir {shlex.quote(str(path.parent))} (or icefall-pathways "
                "calibrate-language-id, with the same option), or specify the language with --lang CODE, in Python "
                'language="CODE"'
            )
        with as_damage(path, ValueError, "run calibrate_language_id.py again"):
            model = cls(**read_json(path))
            for value in chain(
                model.weights.values(), model.offsets.values(), *model.unigrams.values(), [model.seconds]
            ):
                check_number("a value", value, Range())
            return model


class LanguageIdentifier:
    """Select the language with the largest logit as soon as there is enough speech.

    Args:
      model: The calibrated model.
      decoder: The decoder of the streams, made by `with_scoring`.

    Raises:
      ValueError: The model lacks a language of the decoder, or has another vocabulary.
    """

    def __init__(self, model: LanguageIdModel, decoder: StreamingDecoder) -> None:
        vocab_size = decoder.model.joiner.output_linear.out_features
        if reason := model.mismatch(decoder.searches, vocab_size):
            raise ValueError(f"{reason}: run calibrate_language_id.py with all languages")
        self.model = model
        self.decoder = decoder

    def __call__(self, candidates: Sequence[Stream], audio_seconds: float, ended: bool) -> Stream | None:
        """Return the stream of the spoken language, or None to wait for more audio; see `LanguageSelector`."""
        (features,) = extract_features(self.decoder, [candidates], self.model.unigrams)
        selected = self.model.select(features, [stream.language for stream in candidates], audio_seconds, ended)
        return None if selected is None else candidates[selected]


def load_language_identifier(exp_dir: Path, decoder: StreamingDecoder) -> LanguageIdentifier:
    """Load the language identification of an experiment.

    Raises:
      ValueError: It is not calibrated, or not for all languages.
    """
    return LanguageIdentifier(LanguageIdModel.load(layout.language_id_file(exp_dir)), decoder)
