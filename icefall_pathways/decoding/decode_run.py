"""Whole decoding runs: every language of an experiment, recognised, scored and put in one table."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from lhotse import MonoCut
from torch import Tensor
from tqdm import tqdm

from icefall_pathways.data.datamodule import DataConfig, SpeechDataModule, SplitLoader
from icefall_pathways.data.features import FbankConfig
from icefall_pathways.data.tokenizer import Tokenizer
from icefall_pathways.decoding.config import CommonConfig, DecodeConfig, StreamingDecodeConfig
from icefall_pathways.decoding.scoring import Alternative, Score, Utterance, summarise, write_results, write_summary
from icefall_pathways.decoding.search_config import make_search
from icefall_pathways.decoding.searches import Hypothesis, Search
from icefall_pathways.decoding.streaming import StreamingDecoder
from icefall_pathways.languages import Language
from icefall_pathways.models.subsampling import FACTOR
from icefall_pathways.models.transducer import Transducer
from icefall_pathways.options import from_dict
from icefall_pathways.pathways.activation import activate
from icefall_pathways.pathways.masks import PathwayMasks
from icefall_pathways.training import checkpoints

FRAME_SECONDS = FACTOR * FbankConfig.frame_shift / FbankConfig.sample_rate
"""Duration of an encoder frame."""


@dataclass(frozen=True)
class Experiment:
    """What decoding needs of a trained experiment.

    Attributes:
      model: In eval mode, on the device where it runs.
      masks: The languages' sub-networks; None for a dense model.
      data: Of the languages to decode.
      tokenizer: The model's.
      suffix: The settings, as they end the names of the result files.
    """

    model: Transducer
    masks: PathwayMasks | None
    data: SpeechDataModule
    tokenizer: Tokenizer
    suffix: str


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
    summary = summarise(config.split, config.decoding_method, scores)
    return write_summary(config.results_dir, experiment.suffix, summary)


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
    summary = summarise(config.split, config.decoding_method, scores, figures)
    table = write_summary(config.results_dir, experiment.suffix, summary)
    return f"{table}\nreal-time factor: {timing.real_time_factor:.4f} for {timing.audio:.0f} s of audio"


def load_experiment(config: CommonConfig) -> Experiment:
    """Read back the experiment that `config` names.

    Raises:
      ValueError: The checkpoint, masks or tokens are missing, damaged or do not fit together.
    """
    epoch, iteration = _chosen_checkpoint(config)
    model, options = checkpoints.load_model(config.exp_dir, epoch, iteration, config.avg, config.use_averaged_model)
    data_config = from_dict(DataConfig, options["data"])
    data_config = replace(
        data_config,
        languages=config.languages or data_config.languages,
        max_duration=config.max_duration,
        manifest_dir=config.manifest_dir or data_config.manifest_dir,
    )
    data = SpeechDataModule(data_config)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Experiment(
        model=model.to(device),
        masks=_load_masks(config, model, data.languages),
        data=data,
        tokenizer=_load_tokenizer(config.bpe_model or Path(options["training"]["bpe_model"]), model),
        suffix=_suffix(config, f"iter-{iteration}" if iteration else f"epoch-{epoch}"),
    )


def _chosen_checkpoint(config: CommonConfig) -> tuple[int, int]:
    """The epoch and the update to decode, one of them 0; the newest checkpoint's where the options name none."""
    if config.epoch or config.iter:
        return (0, config.iter) if config.iter else (config.epoch, 0)
    path, _ = checkpoints.find(config.exp_dir)
    kind, number = path.stem.split("-")
    return (int(number), 0) if kind == "epoch" else (0, int(number))


def _suffix(config: CommonConfig, checkpoint: str) -> str:
    """What distinguishes this result from others in its folder, as icefall names it."""
    parts = [checkpoint, f"avg-{config.avg}", config.search_suffix]
    if config.use_averaged_model:
        parts.append("use-averaged-model")
    if config.masks:
        parts.append("dense" if config.masks == "none" else f"{Path(config.masks).absolute().parent.name}-masks")
    return "-".join(parts)


def _load_masks(config: CommonConfig, model: Transducer, languages: list[Language]) -> PathwayMasks | None:
    path = Path(config.masks or config.exp_dir / "masks.safetensors")
    if config.masks == "none" or not (config.masks or path.exists()):
        return None
    masks = PathwayMasks.load(path)
    masks.check(model, [language.code for language in languages])
    return masks.to(next(model.parameters()).device)


def _load_tokenizer(path: Path, model: Transducer) -> Tokenizer:
    tokenizer, expected = Tokenizer(path), model.joiner.output_linear.out_features
    if tokenizer.vocab_size != expected:
        raise ValueError(
            f"{path} has {tokenizer.vocab_size} tokens and the model {expected}: give the SentencePiece model it was "
            "trained with by --bpe-model"
        )
    return tokenizer


def _decode_languages(
    config: CommonConfig, experiment: Experiment, recognise: Callable[[Search, SplitLoader, str], Iterator[Utterance]]
) -> dict[str, Score]:
    """Recognise and score every language through its pathway, and write its results."""
    # Loaders and searches first, so that a missing file stops the run before hours of decoding, not after.
    languages = experiment.data.languages
    loaders = {language: experiment.data.loader(language.code, config.split) for language in languages}
    searches = {
        language: make_search(config, experiment.model, experiment.tokenizer, language.code) for language in languages
    }
    scores = {}
    for language, loader in loaders.items():
        with pathway(experiment, language.code):
            utterances = list(recognise(searches[language], loader, f"decoding {language.name} {config.split}"))
        test_set = f"mls-{language.name}-{config.split}"
        scores[language.code] = write_results(config.results_dir, test_set, experiment.suffix, utterances)
    return scores


def pathway(experiment: Experiment, language: str) -> AbstractContextManager[None]:
    """Run the model through a language's sub-network; a dense model as it is."""
    if experiment.masks is None:
        return nullcontext()
    return activate(experiment.model, experiment.masks, language)


def _recognise_offline(
    experiment: Experiment, nbest: int, search: Search, loader: SplitLoader, name: str
) -> Iterator[Utterance]:
    device = next(experiment.model.parameters()).device
    for batch in tqdm(loader, name, unit="batch"):
        supervisions = batch["supervisions"]
        with torch.inference_mode():
            encoder_out, lens = experiment.model.encode(
                batch["inputs"].to(device), supervisions["num_frames"].to(device)
            )
            state = search.advance(search.init(len(lens)), encoder_out, lens)
        best = search.results(state)
        alternatives = search.n_best(state) if nbest else [[] for _ in best]
        cuts = zip(supervisions["cut"], supervisions["text"], best, alternatives, strict=True)
        for cut, text, found, others in cuts:
            alternative_texts = [_alternative(experiment.tokenizer, other) for other in others[:nbest]]
            words = experiment.tokenizer.decode([found.tokens])[0].split()
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
    experiment: Experiment, num_streams: int, timing: Timing, search: Search, loader: SplitLoader, name: str
) -> Iterator[Utterance]:
    decoder = StreamingDecoder(experiment.model, search, FbankConfig())
    cuts = all_cuts(loader)
    begin = time.perf_counter()
    decoded = decoder.decode(_read_audio(decoder, timing, cuts), num_streams)
    for cut, found in tqdm(decoded, name, total=len(cuts), unit="utterance"):
        hypothesis = experiment.tokenizer.decode([found.tokens])[0]
        yield Utterance(cut.id, cut.supervisions[0].text.split(), hypothesis.split())
    timing.total += time.perf_counter() - begin


def _read_audio(
    decoder: StreamingDecoder, timing: Timing, cuts: list[MonoCut]
) -> Iterator[tuple[MonoCut, tuple[Tensor, ...]]]:
    """Each cut with its samples in pieces of one chunk."""
    piece = decoder.model.chunk_shift * decoder.fbank.frame_shift
    for cut in cuts:
        begin = time.perf_counter()
        samples = load_samples(cut)
        timing.audio += cut.duration
        timing.reading += time.perf_counter() - begin
        yield cut, samples.split(piece)


def all_cuts(loader: SplitLoader) -> list[MonoCut]:
    """The cuts of a split, ordered by their ids."""
    return sorted((cut for batch in loader for cut in batch["supervisions"]["cut"]), key=lambda cut: cut.id)


def load_samples(cut: MonoCut) -> Tensor:
    """The samples (n,) of a cut, channels mixed to one."""
    samples = cut.recording.load_audio(offset=cut.start, duration=cut.duration).mean(axis=0)
    return torch.from_numpy(samples)
