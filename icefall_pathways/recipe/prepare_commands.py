"""Commands of the stages of the data preparation."""

import sys
from dataclasses import fields
from pathlib import Path

from icefall_pathways.corpora.registry import CORPORA, get_corpus
from icefall_pathways.data.sample_config import SampleConfig
from icefall_pathways.recipe.prepare_config import PrepareConfig
from icefall_pathways.recipe.programs import option_words, program
from icefall_pathways.sharding.executors import ExecutionConfig


def corpus_command(config: PrepareConfig) -> tuple[tuple[str, ...], str]:
    """Return the command that gets the corpus, or no command and a message if the corpus exists.

    Raises:
      ValueError: The corpus cannot be downloaded or synthesized, and --corpus-dir is not an existing folder.
    """
    spec = get_corpus(config.corpus)
    is_download = bool(spec.download_mark) and Path(config.corpus_folder, spec.download_mark).exists()
    if not spec.synthetic and not is_download and config.has_corpus:
        return (), f"The corpus is in {config.corpus_folder}"
    if spec.acquire_command is None:
        raise _missing_corpus(config)
    words = () if spec.acquire_command != "get_corpus" else option_words(corpus=config.corpus)
    words += option_words(corpus_dir=config.corpus_folder, languages=config.languages)
    values = {name: getattr(config, name) for name in spec.acquire_options}
    words += option_words(**{name: value for name, value in values.items() if value != ""})  # "" is the default
    is_new = config.corpus_dir and not config.has_corpus
    message = f"Creating {Path(config.corpus_folder).absolute()} for --corpus {config.corpus}" if is_new else ""
    return program("local", spec.acquire_command) + words, message


def _missing_corpus(config: PrepareConfig) -> ValueError:
    """Return the error for a corpus that can be neither downloaded nor synthesized, and whose folder does not exist."""
    spec = get_corpus(config.corpus)
    option = "--manifests" if config.manifests else "--corpus-dir"
    missing = ", ".join(str(path.absolute()) for path in config.typed_folders if not path.exists())
    creators = ", ".join(name for name, other in CORPORA.items() if other.acquire_command is not None)
    return ValueError(
        f"{option}: {missing + ' does not exist' if missing else 'none given'}; --corpus {spec.name} needs an existing "
        f"folder ({spec.description}). Only {creators}, selected with --corpus, are created in a new folder"
    )


def manifests_command(config: PrepareConfig, languages: str) -> tuple[str, ...]:
    """Return the command that writes the manifests of some languages."""
    return program("local", "prepare_manifests") + option_words(
        corpus=config.corpus,
        corpus_dir=config.corpus_folder,
        output_dir=config.data_dir / "manifests",
        languages=languages,
        subset=config.subset,
        **config.text_options,
        max_dropped_share=_max_dropped_share(config),
        num_jobs=config.num_jobs,
        **{name: value for name in get_corpus(config.corpus).manifest_options if (value := getattr(config, name))},
        **_execution_options(config),
    )


def features_command(config: PrepareConfig, languages: str) -> tuple[str, ...]:
    """Return the command that computes, validates and describes the features of some languages."""
    return program("local", "compute_fbank") + option_words(
        manifest_dir=config.data_dir / "manifests",
        output_dir=config.data_dir / "fbank",
        languages=languages,
        store_feats=config.store_feats,
        perturb_speed=config.perturb_speed,
        max_dropped_share=_max_dropped_share(config),
        num_jobs=config.num_jobs,
        **_execution_options(config),
    )


def musan_manifests_command(config: PrepareConfig) -> tuple[str, ...]:
    """Return the command that writes the manifests of MUSAN.

    Raises:
      ValueError: The folder of MUSAN does not exist.
    """
    if not Path(config.musan_dir).is_dir():
        raise ValueError(f"--musan-dir {config.musan_dir}: expected an existing folder")
    lhotse = str(Path(sys.executable).with_name("lhotse"))
    return lhotse, "prepare", "musan", config.musan_dir, str(config.data_dir / "manifests")


def musan_features_command(config: PrepareConfig) -> tuple[str, ...]:
    """Return the command that computes the features of MUSAN."""
    return program("local", "compute_fbank_musan") + option_words(
        manifest_dir=config.data_dir / "manifests", output_dir=config.data_dir / "fbank", num_jobs=config.num_jobs
    )


def tokens_command(config: PrepareConfig) -> tuple[str, ...]:
    """Return the command that trains the tokenizer of all languages."""
    defaults = SampleConfig()
    sample = {field.name: getattr(config, field.name) for field in fields(SampleConfig)}
    return program("local", "train_bpe") + option_words(
        cuts_dir=config.data_dir / "fbank",
        languages=config.languages,
        vocab_size=config.vocab_size,
        output_dir=config.lang_dir,
        keep_model=not config.retrain_tokenizer,
        **{name: value for name, value in sample.items() if value != getattr(defaults, name)},
    )


def index_command(config: PrepareConfig, languages: str) -> tuple[str, ...]:
    """Return the command that indexes the training cuts of some languages."""
    return program("local", "index_cuts") + option_words(
        manifest_dir=config.data_dir / "fbank",
        languages=languages,
        bpe_model=config.lang_dir / "bpe.model",
    )


def shar_command(config: PrepareConfig, languages: str) -> tuple[str, ...]:
    """Return the command that copies the training cuts of some languages to tar files."""
    return program("local", "export_shar") + option_words(
        manifest_dir=config.data_dir / "fbank",
        languages=languages,
        bpe_model=config.lang_dir / "bpe.model",
        field="features" if config.store_feats else "recording",
        num_jobs=config.num_jobs,
        **_execution_options(config),
    )


def ngram_command(config: PrepareConfig, languages: str) -> tuple[str, ...]:
    """Return the command that trains the n-gram models of some languages."""
    return program("local", "train_ngram") + option_words(
        cuts_dir=config.data_dir / "fbank",
        languages=languages,
        bpe_model=config.lang_dir / "bpe.model",
        order=config.ngram_order,
        ngram_lm=config.ngram_lm,
    )


def _max_dropped_share(config: PrepareConfig) -> float:
    return max(config.max_dropped_share, get_corpus(config.corpus).expected_dropped_share)


def _execution_options(config: PrepareConfig) -> dict[str, str]:
    """Return the options of many machines that are used."""
    values = {"executor": config.executor, "dask_scheduler": config.dask_scheduler, "shard": config.shard}
    defaults = ExecutionConfig()
    return {name: value for name, value in values.items() if value != getattr(defaults, name)}
