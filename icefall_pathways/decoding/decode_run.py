"""Decoding runs: decode and score every language of an experiment, and summarize them in one table."""

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
from icefall_pathways.decoding.cut_audio import read_blocks
from icefall_pathways.decoding.pretrained import TrainedModel, load_trained_model
from icefall_pathways.decoding.scoring import Alternative, Score, Utterance, summarize, write_results, write_summary
from icefall_pathways.decoding.streaming import FRAME_SECONDS, AudioError, Source, StreamingDecoder
from icefall_pathways.searches import Hypothesis


@dataclass(frozen=True)
class LoadedExperiment:
    """A trained model with the data and the decoder of a run.

    Attributes:
      trained: The model with its tokenizer and masks.
      data: Data of the languages to decode.
      decoder: Decoder for these languages.
    """

    trained: TrainedModel
    data: SpeechDataModule
    decoder: StreamingDecoder


@dataclass
class Timing:
    """Durations of streaming decoding in seconds.

    Attributes:
      total: Time spent, including `reading`.
      reading: Time spent on reading audio from disk.
      audio: Duration of the decoded audio.
    """

    total: float = 0.0
    reading: float = 0.0
    audio: float = 0.0

    @property
    def real_time_factor(self) -> float:
        """Seconds of computation per second of audio, from samples to tokens."""
        return (self.total - self.reading) / self.audio


def decode(config: DecodeConfig) -> str:
    """Decode whole utterances and return the table of all languages.

    Results are written to `<exp_dir>/<decoding_method>`, those of a language as soon as it is decoded.

    Raises:
      ValueError: The checkpoint, masks, tokens or manifests are missing, damaged or inconsistent.
    """
    experiment = load_experiment(config)
    print(f"decoding with {experiment.trained.description}", flush=True)
    scores = _decode_languages(config, experiment, partial(_decode_offline, experiment, config.nbest))
    summary = summarize(config.split, config.decoding_method, scores)
    return write_summary(config.results_dir, experiment.data.corpus, experiment.trained.suffix, summary)


def decode_streaming(config: StreamingDecodeConfig) -> str:
    """Decode audio chunk by chunk and return the table of all languages with the real-time factor.

    Results are written to `<exp_dir>/streaming/<decoding_method>`, those of a language as soon as it is decoded.

    Raises:
      ValueError: The checkpoint, masks, tokens or manifests are missing, damaged or inconsistent.
    """
    experiment, timing = load_experiment(config), Timing()
    print(f"decoding with {experiment.trained.description}", flush=True)
    decode_split = partial(_decode_streams, experiment, config.num_decode_streams, timing)
    scores = _decode_languages(config, experiment, decode_split)
    figures = {"real_time_factor": timing.real_time_factor}
    summary = summarize(config.split, config.decoding_method, scores, figures)
    table = write_summary(config.results_dir, experiment.data.corpus, experiment.trained.suffix, summary)
    return f"{table}\nreal-time factor: {timing.real_time_factor:.4f} for {timing.audio:.0f} s of audio"


def load_experiment(config: CommonConfig) -> LoadedExperiment:
    """Load the experiment that `config` selects, and its data.

    Raises:
      ValueError: The checkpoint, masks or tokens are missing, damaged or inconsistent.
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
    return LoadedExperiment(trained, data, trained.build_decoder(config, codes))


def _decode_languages(
    config: CommonConfig,
    experiment: LoadedExperiment,
    decode_split: Callable[[str, SplitLoader, str], Iterator[Utterance]],
) -> dict[str, Score]:
    """Decode and score every language through its pathway, and write its results."""
    # Create all loaders first, so that a missing file stops the run before hours of decoding, not after.
    languages = experiment.data.languages
    loaders = {language: experiment.data.loader(language.code, config.split) for language in languages}
    scores: dict[str, Score] = {}
    for language, loader in loaders.items():
        utterances = list(decode_split(language.code, loader, f"decoding {language.name} {config.split}"))
        scores[language.code] = write_results(
            config.results_dir, loader.test_set, experiment.trained.suffix, utterances
        )
    return scores


def _decode_offline(
    experiment: LoadedExperiment, nbest: int, language: str, loader: SplitLoader, description: str
) -> Iterator[Utterance]:
    """Decode whole utterances of one language in batches."""
    tokenizer, model = experiment.trained.tokenizer, experiment.trained.model
    search = experiment.decoder.searches[language]
    device = next(model.parameters()).device
    for batch in tqdm(loader, description, unit="batch"):
        with torch.inference_mode(), experiment.trained.pathways.activate(language):
            encoder_out, lens = model.encode(batch.inputs.to(device), batch.num_frames.to(device))
            state = search.advance(search.init(len(lens)), encoder_out, lens)
        best = search.results(state)
        n_best = search.n_best(state) if nbest else [[] for _ in best]
        for cut, text, hypothesis, hypotheses in zip(batch.cuts, batch.texts, best, n_best, strict=True):
            alternatives = [_alternative(tokenizer, alternative) for alternative in hypotheses[:nbest]]
            words = tokenizer.decode([hypothesis.tokens])[0].split()
            yield Utterance(cut.id, text.split(), words, alternatives)


def _alternative(tokenizer: Tokenizer, hypothesis: Hypothesis) -> Alternative:
    symbols = tokenizer.symbols
    return Alternative(
        text=tokenizer.decode([hypothesis.tokens])[0],
        score=hypothesis.score,
        log_prob=hypothesis.log_prob,
        tokens=[symbols[token] for token in hypothesis.tokens],
        times=[round(frame * FRAME_SECONDS, 3) for frame in hypothesis.timestamps],
    )


def _decode_streams(
    experiment: LoadedExperiment, num_streams: int, timing: Timing, language: str, loader: SplitLoader, description: str
) -> Iterator[Utterance]:
    """Decode utterances of one language in parallel streams, from their audio."""
    decoder, cuts, errors = experiment.decoder, loader.cuts, []
    start = time.perf_counter()
    block = decoder.model.chunk_shift * decoder.fbank.frame_shift
    sources = (Source(cut, _timed(read_blocks(cut, block), timing), language) for cut in cuts)
    decoded = decoder.decode(sources, num_streams, on_error=lambda cut, error: errors.append(f"{cut.id}: {error}"))
    for cut, hypothesis in tqdm(decoded, description, total=len(cuts), unit="utterance"):
        text = experiment.trained.tokenizer.decode([hypothesis.tokens])[0]
        yield Utterance(cut.id, cut.supervisions[0].text.split(), text.split())
    timing.total += time.perf_counter() - start
    timing.audio += sum(cut.duration for cut in cuts)
    if errors:
        raise AudioError(
            f"{description}: {len(errors)} of {len(cuts)} utterances cannot be decoded, so there is no word error "
            f"rate; repair them or remove them from the manifest: {'; '.join(errors[:3])}"
        )


def _timed(blocks: Iterator[Tensor], timing: Timing) -> Iterator[Tensor]:
    """Yield the blocks, and add the time spent on reading them to `timing`."""
    while True:
        start = time.perf_counter()
        block = next(blocks, None)
        timing.reading += time.perf_counter() - start
        if block is None:
            return
        yield block
