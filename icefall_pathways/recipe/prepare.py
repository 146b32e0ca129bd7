"""Data preparation, from audio to features and tokens: its stages, their done marks and jobs."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

from icefall_pathways.corpora.mini_text import check_content, parse_content
from icefall_pathways.corpora.registry import get_corpus
from icefall_pathways.data.sample_config import SampleConfig
from icefall_pathways.files import read_text
from icefall_pathways.languages import LanguageCode, codes_of, is_language_code, parse_languages
from icefall_pathways.recipe import prepare_commands
from icefall_pathways.recipe.jobs import Job, Step
from icefall_pathways.recipe.prepare_config import PrepareConfig
from icefall_pathways.recipe.programs import as_typed
from icefall_pathways.sharding.executors import ArrayPart

_SHARDED_STAGES = (1, 3, 7)
_RETRAINED = ", retrained on "  # in the done marks of tokenizer and index, followed by the tokenizer's languages


@dataclass(frozen=True)
class _Stage:
    """A stage of the preparation.

    Attributes:
      index: Number of the stage, for --stage and --stop-stage.
      name: Name of its job.
      title: Printed when it starts.
      options: Options that its result depends on, besides the languages; they are stored in its done marks.
      command: Returns program and arguments for a list of languages; empty if there is nothing to do.
      per_language: It has a done mark for each language instead of a single one.
      variant: Suffix of the done marks, for a stage that can be run with several values of an option.
      message: Printed before the command runs.
    """

    index: int
    name: str
    title: str
    options: tuple[str, ...]
    command: Callable[[str], tuple[str, ...]]
    per_language: bool = True
    variant: str = ""
    message: str = ""

    @property
    def mark(self) -> str:
        """Name of its done mark; a language has a suffix."""
        return f".done-{self.index}{self.variant}"

    @property
    def mark_text(self) -> str:
        """Content of its done marks."""
        return " ".join(self.options)

    def languages_of(self, previous_mark: str) -> list[LanguageCode]:
        """Return the languages of a mark of previous versions, which is one for all languages; [] if options differ."""
        corpus, folder, *options = self.options
        rest = " ".join(options).partition(_RETRAINED)[0]
        pattern = " ".join([re.escape(f"{corpus} {folder}"), "(.+?)", re.escape(rest)])
        match = re.fullmatch(pattern, previous_mark)
        return codes_of(match[1]) if match else []


def prepare_jobs(config: PrepareConfig) -> list[Job]:
    """Return the jobs of the selected stages; each depends on the previous one.

    Raises:
      ValueError: A stage was finished in this folder with other options, the MUSAN folder does not exist, the corpus
        does not offer a language or has no case or punctuation to keep, sentences of --content cannot be synthesized,
        or --shard is not K/N or used with several stages.
    """
    spec = get_corpus(config.corpus)
    languages = parse_languages(config.languages)
    spec.check_languages(languages)
    if config.corpus == "mini" and not config.has_corpus:
        content = parse_content(config.content, config.transcripts_dir)
        for language in languages:
            check_content(language, content)
    spec.text_options(config.keep_case, config.keep_punctuation)
    ArrayPart.parse(config.shard)  # here, because a job that fails adds a second message
    if config.shard and not (config.stage == config.stop_stage and config.stage in _SHARDED_STAGES):
        expected = " or ".join(f"--stage {stage} --stop-stage {stage}" for stage in _SHARDED_STAGES)
        raise ValueError(f"--shard {config.shard} needs one stage that is divided into shards: expected {expected}")
    jobs: list[Job] = []
    for stage in _stages(config):
        if config.stage <= stage.index <= config.stop_stage:
            after = (jobs[-1].name,) if jobs else ()
            heading = f"Stage {stage.index}{stage.variant}: {stage.title}"
            jobs.append(Job(stage.name, (_step(config, stage),), after, heading=heading))
    return jobs


def _step(config: PrepareConfig, stage: _Stage) -> Step:
    """Return the step of a stage, for the languages that it is not finished for."""
    languages = codes_of(config.languages)
    finished = _finished_languages(config, stage)
    missing = [language for language in languages if language not in finished]
    command = stage.command(" ".join(missing)) if missing else ()
    if config.shard:
        return Step(command)
    names = [f"{stage.mark}-{language}" for language in languages] if stage.per_language else [stage.mark]
    mark, *more_marks = (config.data_dir / name for name in names)
    return Step(command, mark, stage.mark_text, stage.message, tuple(more_marks))


def _finished_languages(config: PrepareConfig, stage: _Stage) -> set[LanguageCode]:
    """Return the languages that a stage is finished for.

    Raises:
      ValueError: It was finished with other options, for these or other languages.
    """
    finished: set[LanguageCode] = set()
    for mark in sorted(config.data_dir.glob(f"{stage.mark}*")):
        suffix = mark.name.removeprefix(stage.mark).removeprefix("-")
        if suffix and not is_language_code(suffix):
            continue  # of another variant
        text = read_text(mark).strip()
        languages = [LanguageCode(suffix)] if suffix else codes_of(config.languages)
        if stage.per_language and not suffix:
            languages = stage.languages_of(text)
        elif text.partition(_RETRAINED)[0] != stage.mark_text.partition(_RETRAINED)[0]:
            languages = []
        if not languages:
            raise ValueError(
                f"stage {stage.index} ({stage.title}) was finished in {config.data_dir} with other options: "
                f"({text}), now ({stage.mark_text}); use another --data-dir, or remove {config.data_dir}"
            )
        if _RETRAINED not in stage.mark_text or text == stage.mark_text:
            finished.update(languages)
    return finished


def _stages(config: PrepareConfig) -> Iterator[_Stage]:
    corpus = _corpus_options(config)
    speed = str(int(config.perturb_speed))
    command, message = prepare_commands.corpus_command(config)
    # Stage 0 runs for all languages, not only for missing ones: it completes an existing corpus.
    yield _Stage(0, "corpus", "get the corpus", corpus, lambda _: command, message=message)
    yield _Stage(1, "manifests", "manifests", corpus, partial(prepare_commands.manifests_command, config))
    musan = (config.musan_dir,)
    if config.musan_dir:
        musan_manifests = prepare_commands.musan_manifests_command(config)
        yield _Stage(2, "musan-manifests", "MUSAN manifests", musan, lambda _: musan_manifests, per_language=False)
    stored = speed if config.store_feats else f"{speed}, not stored"
    title = "features, validation, statistics"
    yield _Stage(3, "features", title, (*corpus, stored), partial(prepare_commands.features_command, config))
    if config.musan_dir:
        musan_features = prepare_commands.musan_features_command(config)
        yield _Stage(4, "musan-features", "MUSAN features", musan, lambda _: musan_features, per_language=False)
    title = f"SentencePiece, {config.vocab_size} tokens"
    variant = f"-{config.vocab_size}"
    tokenizer = _retraining(config, variant)
    options = (*corpus, speed + _sample_options(config) + tokenizer)
    tokens = prepare_commands.tokens_command(config)  # of all languages: they share the tokenizer
    yield _Stage(5, "tokens", title, options, lambda _: tokens, variant=variant)
    index = partial(prepare_commands.index_command, config)
    yield _Stage(6, "index", "index of the training cuts", (*corpus, stored + tokenizer), index, variant=variant)
    if config.store == "shar":
        title = "training cuts in tar files"
        yield _Stage(7, "shar", title, (*corpus, stored), partial(prepare_commands.shar_command, config))
    if config.ngram_order:
        order = f"order {config.ngram_order}"
        ngram, variant = partial(prepare_commands.ngram_command, config), f"{variant}-{config.ngram_order}"
        yield _Stage(8, "ngram", f"n-gram models, {order}", (*corpus, order + tokenizer), ngram, variant=variant)


def _corpus_options(config: PrepareConfig) -> tuple[str, ...]:
    """Return the options that determine the content of the manifests: the corpus, its folder, and others."""
    values = (as_typed(getattr(config, name)) for name in get_corpus(config.corpus).content_options)
    # Done marks of earlier versions do not have this option.
    transcripts = (config.transcripts_dir,) if config.transcripts_dir else ()
    return config.corpus, config.corpus_folder, *values, *transcripts, *config.text_options


def _sample_options(config: PrepareConfig) -> str:
    """Return the options of the tokenizer's texts that differ from the defaults."""
    changed = [
        f", {field.name} {as_typed(getattr(config, field.name))}"
        for field in fields(SampleConfig)
        if getattr(config, field.name) != field.default
    ]
    return "".join(changed)


def _retraining(config: PrepareConfig, variant: str) -> str:
    """Return the suffix of done marks with the languages on which the tokenizer was trained again; "" if it was not.

    An index whose done mark has another suffix belongs to another tokenizer.
    """
    if config.retrain_tokenizer:
        return _RETRAINED + config.languages
    marks = [config.data_dir / f".done-5{variant}", *config.data_dir.glob(f".done-5{variant}-[a-z]*")]
    newest = max(filter(Path.exists, marks), key=lambda mark: mark.stat().st_mtime_ns, default=None)
    return "".join(read_text(newest).strip().partition(_RETRAINED)[1:]) if newest else ""
