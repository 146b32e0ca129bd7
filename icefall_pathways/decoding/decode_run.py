"""Whole decoding runs: every language of an experiment, recognised, scored and put in one table."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from tqdm import tqdm

from icefall_pathways.data.datamodule import SpeechDataModule, SplitLoader
from icefall_pathways.data.tokenizer import Tokenizer
from icefall_pathways.decoding.config import CommonConfig, DecodeConfig, StreamingDecodeConfig
from icefall_pathways.decoding.cut_audio import read_pieces
from icefall_pathways.decoding.pretrained import TrainedModel, load_trained_model
from icefall_pathways.decoding.scoring import Alternative, Score, Utterance, summarize, write_results, write_summary
from icefall_pathways.decoding.streaming import FRAME_SECONDS, AudioError, Source, StreamingDecoder
from icefall_pathways.searches import Hypothesis


@dataclass(frozen=True)
class Experiment:
    """A trained model, what it is to recognise, and how.

    Attributes:
      trained: The model and what belongs to it.
      data: Of the languages to decode.
      decoder: For these languages.
    """

    trained: TrainedModel
    data: SpeechDataModule
    decoder: StreamingDecoder


@dataclass
class Timing:
    """Seconds spent on streams, how many of them on reading audio from disk, and seconds of audio."""

    total: float = 0.0
    reading: float = 0.0
    audio: float = 0.0

    @property
    def real_time_factor(self) -> float:
        """Seconds of computing per second of audio, from samples to tokens."""
        return (self.total - self.reading) / self.audio


def decode(config: DecodeConfig) -> str:
    """Decode whole utterances; returns the table of all languages.

    Results are written to `<exp_dir>/<decoding_method>`, those of a language as soon as it is done.

    Raises:
      ValueError: The checkpoint, masks, tokens or manifests are missing, damaged or do not fit together.
    """
    experiment = load_experiment(config)
    recognise = partial(_recognise_offline, experiment, config.nbest)
    scores = _decode_languages(config, experiment, recognise)
    summary = summarize(config.split, config.decoding_method, scores)
    return write_summary(config.results_dir, experiment.data.corpus, experiment.trained.suffix, summary)


def decode_streaming(config: StreamingDecodeConfig) -> str:
    """Decode chunk by chunk from the audio; returns the table of all languages and the real-time factor.

    Results are written to `<exp_dir>/streaming/<decoding_method>`, those of a language as soon as it is done.

    Raises:
      ValueError: The checkpoint, masks, tokens or manifests are missing, damaged or do not fit together.
    """
    experiment, timing = load_experiment(config), Timing()
    recognise = partial(_recognise_streams, experiment, config.num_decode_streams, timing)
    scores = _decode_languages(config, experiment, recognise)
    figures = {"real_time_factor": timing.real_time_factor}
    summary = summarize(config.split, config.decoding_method, scores, figures)
    table = write_summary(config.results_dir, experiment.data.corpus, experiment.trained.suffix, summary)
    return f"{table}\nreal-time factor: {timing.real_time_factor:.4f} for {timing.audio:.0f} s of audio"


def load_experiment(config: CommonConfig) -> Experiment:
    """Read back the experiment that `config` names, and its data.

    Raises:
      ValueError: The checkpoint, masks or tokens are missing, damaged or do not fit together.
    """
    trained = load_trained_model(config)
    data_config = replace(
        trained.data_config,
        languages=config.languages or trained.data_config.languages,
        max_duration=config.max_duration,
        manifest_dir=config.manifest_dir or trained.data_config.manifest_dir,
    )
    data = SpeechDataModule(data_config)
    codes = [language.code for language in data.languages]
    trained.check_languages(codes)
    return Experiment(trained, data, trained.decoder(config, codes))


def _decode_languages(
    config: CommonConfig, experiment: Experiment, recognise: Callable[[str, SplitLoader, str], Iterator[Utterance]]
) -> dict[str, Score]:
    """Recognise and score every language through its pathway, and write its results."""
    # All loaders first, so that a missing file stops the run before hours of decoding, not after.
    languages = experiment.data.languages
    loaders = {language: experiment.data.loader(language.code, config.split) for language in languages}
    scores: dict[str, Score] = {}
    for language, loader in loaders.items():
        utterances = list(recognise(language.code, loader, f"decoding {language.name} {config.split}"))
        scores[language.code] = write_results(
            config.results_dir, loader.test_set, experiment.trained.suffix, utterances
        )
    return scores


def _recognise_offline(
    experiment: Experiment, nbest: int, language: str, loader: SplitLoader, name: str
) -> Iterator[Utterance]:
    tokenizer, model, search = (
        experiment.trained.tokenizer,
        experiment.trained.model,
        experiment.decoder.searches[language],
    )
    device = next(model.parameters()).device
    for batch in tqdm(loader, name, unit="batch"):
        with torch.inference_mode(), experiment.trained.pathways.activate(language):
            encoder_out, lens = model.encode(batch.inputs.to(device), batch.num_frames.to(device))
            state = search.advance(search.init(len(lens)), encoder_out, lens)
        best = search.results(state)
        alternatives = search.n_best(state) if nbest else [[] for _ in best]
        cuts = zip(batch.cuts, batch.texts, best, alternatives, strict=True)
        for cut, text, found, others in cuts:
            alternative_texts = [_alternative(tokenizer, other) for other in others[:nbest]]
            words = tokenizer.decode([found.tokens])[0].split()
            yield Utterance(cut.id, text.split(), words, alternative_texts)


def _alternative(tokenizer: Tokenizer, found: Hypothesis) -> Alternative:
    symbols = tokenizer.symbols
    return Alternative(
        text=tokenizer.decode([found.tokens])[0],
        score=found.score,
        log_prob=found.log_prob,
        tokens=[symbols[token] for token in found.tokens],
        times=[round(frame * FRAME_SECONDS, 3) for frame in found.timestamps],
    )


def _recognise_streams(
    experiment: Experiment, num_streams: int, timing: Timing, language: str, loader: SplitLoader, name: str
) -> Iterator[Utterance]:
    decoder, cuts, errors = experiment.decoder, loader.cuts, []
    begin = time.perf_counter()
    piece = decoder.model.chunk_shift * decoder.fbank.frame_shift
    sources = (Source(cut, _timed(read_pieces(cut, piece), timing), language) for cut in cuts)
    decoded = decoder.decode(sources, num_streams, on_error=lambda cut, error: errors.append(f"{cut.id}: {error}"))
    for cut, found in tqdm(decoded, name, total=len(cuts), unit="utterance"):
        hypothesis = experiment.trained.tokenizer.decode([found.tokens])[0]
        yield Utterance(cut.id, cut.supervisions[0].text.split(), hypothesis.split())
    timing.total += time.perf_counter() - begin
    timing.audio += sum(cut.duration for cut in cuts)
    if errors:
        raise AudioError(
            f"{name}: {len(errors)} of {len(cuts)} utterances cannot be recognised, so there is no word error rate; "
            f"repair them or take them out of the manifest: {'; '.join(errors[:3])}"
        )


def _timed(pieces: Iterator[Tensor], timing: Timing) -> Iterator[Tensor]:
    """The pieces; the time it takes to read them is told to `timing`."""
    while True:
        begin = time.perf_counter()
        piece = next(pieces, None)
        timing.reading += time.perf_counter() - begin
        if piece is None:
            return
        yield piece
