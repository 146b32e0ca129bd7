"""Which language is spoken: the pathway that is surest of what it hears.

All pathways hear the same audio. A few numbers tell how sure each is of what it hears, and how much all that they hear
looks like its language (`FEATURES`); a weighted sum of them and an offset for each language are that language's logit.
Weights and offsets are found on the dev split (`language_calibration`) and kept in the experiment's folder.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from icefall_pathways.decoding.streaming import FRAME_SECONDS, Stream, StreamingDecoder
from icefall_pathways.experiment import layout
from icefall_pathways.files import read_json, write_json
from icefall_pathways.searches import Hypothesis, Search, SearchState

FEATURES = ("search_per_frame", "search_per_token", "ctc_per_frame", "ctc_per_token", "text_per_token")
"""Log-probabilities of the best hypothesis, and of the best tokens of each frame by the CTC head; per encoder frame, or
per token (by CTC: the mean over the frames whose best is no blank). And how common the tokens that all pathways found
are in the transcripts of the language: pathways that share weights write words of other languages too."""


@dataclass(frozen=True)
class ScoringState(SearchState):
    """A search's state and what the CTC head has told of the same frames.

    Attributes:
      inner: The search's state.
      sums: (N, 4) over the frames read: frames, best log-probabilities, those of tokens other than blank, and how many
        these are.
    """

    inner: SearchState
    sums: Tensor

    def split(self) -> list["ScoringState"]:
        """Give every stream a state of its own."""
        return [ScoringState(*values) for values in zip(self.inner.split(), self.sums.split(1), strict=True)]

    def _join(self, states: Sequence["ScoringState"]) -> "ScoringState":
        inner = SearchState.join([state.inner for state in states])
        return ScoringState(inner, torch.cat([state.sums for state in states]))


class ScoringSearch(Search[ScoringState]):
    """A search that also gathers evidence for its language.

    Args:
      inner: The search.
      ctc_output: The model's CTC head; None if it has none.
    """

    def __init__(self, inner: Search[Any], ctc_output: nn.Module | None) -> None:
        super().__init__(inner.model, inner.blank_penalty)
        self.inner = inner
        self.ctc_output = ctc_output

    def init(self, batch_size: int) -> ScoringState:
        """The state of streams that have not begun."""
        return ScoringState(self.inner.init(batch_size), torch.zeros(batch_size, 4, device=self.device))

    @torch.inference_mode()
    def advance(self, state: ScoringState, encoder_out: Tensor, lens: Tensor) -> ScoringState:
        """Read the next frames of every stream; see `Search`."""
        reads = torch.arange(encoder_out.size(1), device=self.device) < lens.to(self.device)[:, None]
        best, speaks = torch.zeros_like(reads, dtype=torch.float), torch.zeros_like(reads)
        if self.ctc_output is not None:
            best, token = self.ctc_output(encoder_out).float().log_softmax(dim=-1).max(dim=-1)
            best, speaks = best * reads, token.ne(self.blank_id) & reads
        sums = torch.stack([reads, best, best * speaks, speaks], dim=2).sum(dim=1)
        return ScoringState(self.inner.advance(state.inner, encoder_out, lens), state.sums + sums)

    def results(self, state: ScoringState) -> list[Hypothesis]:
        """The best hypothesis of each stream."""
        return self.inner.results(state.inner)

    def n_best(self, state: ScoringState) -> list[list[Hypothesis]]:
        """The hypotheses of each stream."""
        return self.inner.n_best(state.inner)

    def stable(self, state: ScoringState) -> list[int]:
        """How many leading tokens will not change."""
        return self.inner.stable(state.inner)

    def reset_hypothesis(self, state: ScoringState) -> ScoringState:
        """The state for what is said next; evidence is gathered anew."""
        return ScoringState(self.inner.reset_hypothesis(state.inner), torch.zeros_like(state.sums))


def with_scoring(decoder: StreamingDecoder) -> StreamingDecoder:
    """The same decoder, whose searches gather evidence."""
    searches = {name: ScoringSearch(search, decoder.model.ctc_output) for name, search in decoder.searches.items()}
    return StreamingDecoder(decoder.model, searches, decoder.fbank, decoder.pathways)


@dataclass(frozen=True)
class LanguageIdFeatures:
    """What several pathways tell of one utterance up to now.

    Attributes:
      features: (languages, FEATURES).
      heard: Seconds since the first token that any of them found; 0 before.
      found: The best hypothesis of each.
    """

    features: Tensor
    heard: float
    found: list[Hypothesis]


Unigrams = Mapping[str, Sequence[float]]
"""Of each language, the logarithms of the shares of all tokens in its transcripts."""


def unigram_log_probs(texts: Iterable[Sequence[int]], vocab_size: int) -> list[float]:
    """Logarithms of the shares of tokens in texts; every token is counted once more."""
    counts = torch.ones(vocab_size)
    for tokens in texts:
        counts += torch.bincount(torch.tensor(tokens, dtype=torch.int64), minlength=vocab_size)
    shares: list[float] = (counts / counts.sum()).log().tolist()
    return shares


def gather(
    decoder: StreamingDecoder, sessions: Sequence[Sequence[Stream]], unigrams: Unigrams
) -> list[LanguageIdFeatures]:
    """The evidence of sessions: of each, streams that hear the same, one for each language."""
    streams = [stream for session in sessions for stream in session]
    found = decoder.results(streams)
    sums = torch.cat([cast(ScoringState, stream.search_state).sums for stream in streams]).tolist()
    rows = [
        (
            hypothesis.log_prob / max(frames, 1),
            hypothesis.log_prob / max(len(hypothesis.tokens), 1),
            ctc / max(frames, 1),
            spoken / max(num_spoken, 1),
        )
        for hypothesis, (frames, ctc, spoken, num_spoken) in zip(found, sums, strict=True)
    ]
    evidence, begin = [], 0
    for session in sessions:
        end = begin + len(session)
        tokens = [token for hypothesis in found[begin:end] for token in hypothesis.tokens]
        text = [sum(unigrams[one.language][token] for token in tokens) / max(len(tokens), 1) for one in session]
        firsts = [hypothesis.timestamps[0] for hypothesis in found[begin:end] if hypothesis.tokens]
        features = torch.cat([torch.tensor(rows[begin:end]), torch.tensor(text)[:, None]], dim=1)
        heard = (session[0].num_frames - min(firsts)) * FRAME_SECONDS if firsts else 0.0
        evidence.append(LanguageIdFeatures(features, heard, found[begin:end]))
        begin = end
    return evidence


@dataclass(frozen=True)
class LanguageIdModel:
    """The logits of languages, given evidence.

    Attributes:
      weights: Of each feature.
      offsets: Of each language, by its code.
      seconds: How long to listen, from the first token on.
      unigrams: See `Unigrams`.
    """

    weights: dict[str, float]
    offsets: dict[str, float]
    unigrams: dict[str, list[float]]
    seconds: float = 2.0

    def logits(self, features: Tensor, languages: Sequence[str]) -> Tensor:
        """Logits (..., languages) of features (..., languages, FEATURES)."""
        weights = torch.tensor([self.weights.get(name, 0.0) for name in FEATURES])
        return features @ weights + torch.tensor([self.offsets[language] for language in languages])

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path) -> "LanguageIdModel":
        """Read it back.

        Raises:
          ValueError: The file is missing or damaged.
        """
        if not path.is_file():
            raise ValueError(
                f"no {path}: run calibrate_language.py to find out how languages are told apart, or name the language"
            )
        try:
            return cls(**read_json(path))
        except TypeError as error:
            raise ValueError(f"{path} is damaged ({error}): run calibrate_language.py anew") from error


class LanguageIdentifier:
    """Chooses the language with the largest logit, once enough has been heard.

    Args:
      model: Gives the logits.
      decoder: In which the streams run; of `with_scoring`.

    Raises:
      ValueError: The model lacks a language of the decoder.
    """

    def __init__(self, model: LanguageIdModel, decoder: StreamingDecoder) -> None:
        missing = [one for one in decoder.searches if one not in model.offsets or one not in model.unigrams]
        if missing:
            raise ValueError(
                f"how to tell {missing[0]} from others is not known: run calibrate_language.py with all languages"
            )
        self.model = model
        self.decoder = decoder

    def __call__(self, candidates: Sequence[Stream], sound: float, ended: bool) -> Stream | None:
        """The stream in the language that is spoken; None to go on listening, `sound` seconds after silence."""
        (evidence,) = gather(self.decoder, [candidates], self.model.unigrams)
        if min(evidence.heard, sound) < self.model.seconds and not ended:
            return None
        logits = self.model.logits(evidence.features, [stream.language for stream in candidates])
        return candidates[int(logits.argmax())]


def load_language_identifier(exp_dir: Path, decoder: StreamingDecoder) -> LanguageIdentifier:
    """The chooser that was calibrated for an experiment.

    Raises:
      ValueError: It was not, or not for all languages.
    """
    return LanguageIdentifier(LanguageIdModel.load(exp_dir / layout.LANGUAGE_ID_FILE), decoder)
