"""Decoding runs: decode and score every language of an experiment, and summarize them in one table."""

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from icefall_pathways.constants import FRAME_SHIFT, SAMPLE_RATE
from icefall_pathways.data.datamodule import SpeechDataModule, SplitLoader
from icefall_pathways.data.tokenizer import Tokenizer
from icefall_pathways.data.usable_cuts import drop_report, has_dropped
from icefall_pathways.decoding.config import (
    CommonConfig,
    DecodeConfig,
    DistributedConfig,
    StreamingDecodeConfig,
    TrainedModelConfig,
)
from icefall_pathways.decoding.cut_audio import read_blocks
from icefall_pathways.decoding.divided_test_sets import Decoded, DividedTestSet, Part, Timing, decode_parts, divide
from icefall_pathways.decoding.pretrained import TrainedModel, load_trained_model
from icefall_pathways.decoding.scoring import Alternative, Utterance, write_results
from icefall_pathways.decoding.streaming import FRAME_SECONDS, AudioError, Source, StreamingDecoder
from icefall_pathways.decoding.summary import LanguageResult, ResultSummary
from icefall_pathways.experiment import layout
from icefall_pathways.files import exclusive_lock, sha256
from icefall_pathways.launch.progress import SharedProgress
from icefall_pathways.launch.ranks import Rank, launch
from icefall_pathways.launch.signals import Stopped, stop_requests
from icefall_pathways.models.encoder import Encoder
from icefall_pathways.options import to_dict
from icefall_pathways.searches import Hypothesis
from icefall_pathways.searches.config import SearchConfig
from icefall_pathways.searches.token_scorer import path_for_language


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


def decode(config: DecodeConfig) -> None:
    """Decode whole utterances; the main rank prints the table of all languages.

    Results are written to `<exp_dir>/<decoding_method>`.

    Raises:
      ValueError: The checkpoint, masks, tokens or manifests are missing, damaged or inconsistent.
    """
    launch(decode_rank, config.world_size, config.master_port, config)


def decode_streaming(config: StreamingDecodeConfig) -> None:
    """Decode audio chunk by chunk; the main rank prints the table of all languages and the real-time factor.

    Results are written to `<exp_dir>/streaming/<decoding_method>`.

    Raises:
      ValueError: The checkpoint, masks, tokens or manifests are missing, damaged or inconsistent.
    """
    launch(decode_rank, config.world_size, config.master_port, config)


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


def decode_rank(rank: Rank, config: DecodeConfig | StreamingDecodeConfig) -> None:
    """Decode on one rank; the main rank writes and prints the results."""
    decode_part: Callable[[LoadedExperiment, Any, Part, SharedProgress], Decoded]
    decode_part = _decode_streams if isinstance(config, StreamingDecodeConfig) else _decode_offline
    with stop_requests(_stop), ExitStack() as locks:
        experiment = load_experiment(config)
        # Read all manifests first, so that a missing file stops the run before hours of decoding, not after.
        test_sets = _divide(rank, config, experiment)
        if rank.is_main:
            for test_set in test_sets:
                locks.enter_context(exclusive_lock(test_set.lock_file))
            print(f"decoding with {experiment.trained.description}", flush=True)
            _report_finished(test_sets)
        if isinstance(config, DecodeConfig):
            limit_context(experiment.trained.model.encoder, config.max_context_seconds)
            if rank.is_main:
                _report_long_utterances(experiment.trained.model.encoder, config.max_context_seconds, test_sets)
        names = " ".join(test_set.language.code for test_set in test_sets)
        decode_parts(rank, test_sets, partial(decode_part, experiment, config), f"decoding {config.split} {names}")
        if rank.is_main:
            print(_write_results(config, experiment, test_sets), flush=True)
            for test_set in test_sets:
                shutil.rmtree(test_set.folder)


def _stop(signum: int) -> None:
    raise Stopped(signum)  # at once: finished parts are stored


def _divide(rank: Rank, config: DistributedConfig, experiment: LoadedExperiment) -> list[DividedTestSet]:
    settings = _settings(config, experiment.trained)
    loaders: dict[str, SplitLoader] = {
        language.code: experiment.data.loader(language.code, config.split) for language in experiment.data.languages
    }
    if rank.is_main and has_dropped(loaders):
        print(f"unusable cuts are not decoded:\n{drop_report(loaders, config.split)}", flush=True)
    test_sets = []
    for language in experiment.data.languages:
        loader = loaders[language.code]
        folder = layout.result_file(config.results_dir, "parts", loader.test_set, experiment.trained.suffix, "")
        own_settings = settings | {"language": language.code, "files": _file_hashes(config, language.code)}
        test_sets.append(divide(loader, language, folder, own_settings, config.part_duration))
    return test_sets


def _settings(config: DistributedConfig, trained: TrainedModel) -> dict[str, Any]:
    """Return what determines the hypotheses of a part: model, tokens, options and computing environment."""
    # The weights stand for the options that select them, and the cuts for those that select and group them.
    ignored = {field.name for field in fields(TrainedModelConfig)} - {field.name for field in fields(SearchConfig)}
    ignored |= {"languages", "split", "manifest_dir", "world_size", "master_port", "part_duration"}
    return {
        "options": {name: value for name, value in to_dict(config).items() if name not in ignored},
        "model": trained.hash(),
        "tokens": trained.tokenizer.symbols,
        "environment": [torch.__version__, next(trained.model.parameters()).device.type],
    }


def _file_hashes(config: DistributedConfig, language: str) -> list[str]:
    """Return the hashes of the files that the search reads for a language: hotwords and language models."""
    paths = [value for value in vars(config.search_options).values() if isinstance(value, Path)]
    return [sha256(path_for_language(path, language)) for path in paths]


def _report_finished(test_sets: Sequence[DividedTestSet]) -> None:
    finished = [part.path.exists() for test_set in test_sets for part in test_set.parts]
    if any(finished):
        print(f"resuming: {sum(finished)} of {len(finished)} parts have been decoded by an earlier run", flush=True)


def limit_context(encoder: Encoder, seconds: float) -> None:
    """Make `encode` compute utterances of more than `seconds` in blocks."""
    encoder.max_context = max(1, int(seconds * SAMPLE_RATE / FRAME_SHIFT))


def _report_long_utterances(encoder: Encoder, seconds: float, test_sets: Sequence[DividedTestSet]) -> None:
    cuts = [cut for test_set in test_sets for part in test_set.parts for cut in part.batches.cuts]
    durations = [cut.duration for cut in cuts if cut.duration > seconds]
    effects = {
        "exact": "with the same result, since the attention of this model is limited",
        "approximate": "which overlap by a quarter; words at their borders can change. A larger --max-context-seconds "
        "avoids this, with memory that grows with its square",
    }
    if durations and encoder.block_encoding in effects:
        print(
            f"{len(durations)} of {len(cuts)} utterances, of up to {max(durations):.0f} s, are longer than "
            f"--max-context-seconds {seconds:g} and are encoded in blocks, {effects[encoder.block_encoding]}",
            flush=True,
        )


def _write_results(config: DistributedConfig, experiment: LoadedExperiment, test_sets: Sequence[DividedTestSet]) -> str:
    """Score and write the results of every language, and return the table of all languages.

    Raises:
      AudioError: Some utterances could not be decoded; the results of the other languages are written.
    """
    suffix = experiment.trained.suffix
    results: dict[str, LanguageResult] = {}
    errors = []
    for test_set in test_sets:
        decoded = test_set.load()
        if decoded.errors:
            errors.append(_describe_errors(test_set, config.split, decoded.errors))
            continue
        by_characters = test_set.language.scored_by_characters
        result = write_results(config.results_dir, test_set.name, suffix, decoded.utterances, by_characters)
        results[test_set.language.code] = LanguageResult(result, decoded.timing)
    if errors:
        raise AudioError("; ".join(errors))
    summary = ResultSummary(
        config.results_dir, experiment.data.corpus_cuts.result_name, config.split, suffix, experiment.trained.hash()
    )
    return summary.write(config.decoding_method, results, experiment.trained.data_config.languages)


def _describe_errors(test_set: DividedTestSet, split: str, errors: Mapping[str, str]) -> str:
    first = "; ".join(f"{cut_id}: {error}" for cut_id, error in list(errors.items())[:3])
    return (
        f"decoding {test_set.language.name} {split}: {len(errors)} of {test_set.num_cuts} utterances cannot be "
        f"decoded, so there is no word error rate; repair them or remove them from the manifest: {first}"
    )


def _decode_offline(
    experiment: LoadedExperiment, config: DecodeConfig, part: Part, progress: SharedProgress
) -> Decoded:
    """Decode whole utterances in batches."""
    tokenizer, model = experiment.trained.tokenizer, experiment.trained.model
    search = experiment.decoder.searches[part.language]
    device = next(model.parameters()).device
    utterances = []
    for batch in part.batches:
        with torch.inference_mode(), experiment.trained.pathways.activate(part.language):
            encoder_out, lens = model.encode(batch.inputs.to(device), batch.num_frames.to(device))
            state = search.advance(search.init(len(lens)), encoder_out, lens)
        best = search.results(state)
        n_best = search.n_best(state) if config.nbest else [[] for _ in best]
        for cut, text, hypothesis, hypotheses in zip(batch.cuts, batch.texts, best, n_best, strict=True):
            alternatives = [_alternative(tokenizer, alternative) for alternative in hypotheses[: config.nbest]]
            decoded = tokenizer.decode([hypothesis.tokens])[0]
            utterances.append(Utterance(cut.id, tokenizer.words(text), tokenizer.words(decoded), alternatives))
        progress.update(len(batch))
    return Decoded(utterances)


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
    experiment: LoadedExperiment, config: StreamingDecodeConfig, part: Part, progress: SharedProgress
) -> Decoded:
    """Decode utterances in parallel streams, from their audio."""
    decoder, tokenizer, cuts = experiment.decoder, experiment.trained.tokenizer, part.batches.cuts
    # Now, since after some batches the rounding of results would depend on the parts decoded before.
    decoder.encoder.start_onnx([part.language])
    timing = Timing(audio=sum(cut.duration for cut in cuts))
    utterances: list[Utterance] = []
    errors: dict[str, str] = {}
    block = decoder.model.chunk_shift * decoder.fbank.frame_shift
    sources = (Source(cut, _timed(read_blocks(cut, block), timing), part.language) for cut in cuts)
    start = time.perf_counter()
    for cut, hypothesis in decoder.decode(
        sources, config.num_decode_streams, on_error=lambda cut, error: errors.update({cut.id: str(error)})
    ):
        decoded = tokenizer.decode([hypothesis.tokens])[0]
        reference = cut.supervisions[0].text
        utterances.append(Utterance(cut.id, tokenizer.words(reference), tokenizer.words(decoded)))
        progress.update()
    timing.total = time.perf_counter() - start
    progress.update(len(errors))
    return Decoded(utterances, errors, timing)


def _timed(blocks: Iterator[Tensor], timing: Timing) -> Iterator[Tensor]:
    """Yield the blocks, and add the time spent on reading them to `timing`."""
    while True:
        start = time.perf_counter()
        block = next(blocks, None)
        timing.reading += time.perf_counter() - start
        if block is None:
            return
        yield block
