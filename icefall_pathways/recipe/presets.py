"""Presets of the recipe: defaults of the options for the demo, the studies, small corpora and MLS."""

from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from icefall_pathways.recipe.experiments import ExperimentsConfig, prepare_config
from icefall_pathways.recipe.prepare_config import PrepareConfig, corpus_of_folder, languages_of_corpus
from icefall_pathways.recipe.run import RunConfig
from icefall_pathways.recipe.study import StudyConfig

Config = TypeVar("Config", bound=ExperimentsConfig)

_TRAINING = (
    "--max-duration 15 --num-workers 0 --enable-spec-aug 0 --sampling-temperature 2 --lr-schedule linear "
    "--ctc-loss-scale 1.0 --log-interval 25 --valid-interval 500 --valid-wer-cuts 20 --save-every-n 500 --keep-last-k 2"
)
# Fine-tuning alone adds silence, noise and joined cuts: a dense model as short as this one would learn less of speech.
_SPEECH_ONLY = "--silence-perturb 0 --join-perturb 0"
# Constant learning rate: if it decayed to zero, weights would hardly change in the last rounds of a search.
_SEARCH = "--lr-warmup 25 --warm-updates 0 --lr-schedule eden --lr-batches 1000000 --lr-epochs 1000000"

_EMFORMER = (
    "--num-encoder-layers 4 --encoder-dim 48 --nhead 4 --dim-feedforward 192 --cnn-module-kernel 15 --decoder-dim 64 "
    "--joiner-dim 64 --subsampling-channels 8,32 --left-context-length 64 --dropout 0"
)
# For real speech: an update takes hardly longer.
_WIDER_EMFORMER = "--encoder-dim 96 --dim-feedforward 384 --decoder-dim 96 --joiner-dim 96"
# Half a million parameters, twice as many as the Emformer. The Zipformer's schedules take 20,000 batches of
# --ref-duration seconds: they end after two thirds of the training.
_ZIPFORMER = "--zipformer micro --chunk-size 16 --left-context-frames 64"
_ZIPFORMER_TRAINING = f"{_TRAINING} --ref-duration 1.5 --optimizer scaled-adam"


# Options of the model, options of every training, and base learning rates of the dense model, of fine-tuning and of the
# mask search.
_SMALL_MODELS = {
    "emformer": (_EMFORMER, _TRAINING, ("0.0015", "0.004", "0.002")),
    "zipformer": (_ZIPFORMER, _ZIPFORMER_TRAINING, ("0.03", "0.03", "0.03")),
}
# The system small-dense: about as many parameters as a pathway of these models uses at 70 % sparsity, with half the
# width and the same depth, predictor and joiner. The smaller Emformer needs a higher learning rate: RESULTS.md.
_SMALL_DENSE = {
    "emformer": "--encoder-dim 24 --dim-feedforward 128 --base-lr 0.004",
    "zipformer": "--encoder-dim 24,32,32,32 --encoder-unmasked-dim 24,32,32,32 --feedforward-dim 48",
}
_SMALL_CORPORA = ("folder", "stamps")


def _small(config: Config, encoder_type: str) -> Config:
    """Return `config` with a model and trainings sized for two cores and a few hours of speech.

    Less than a quarter of a million parameters (Emformer), many small batches. A dense model of that size confuses the
    languages; pathways reduce that.
    """
    model, training, (dense_lr, finetune_lr, search_lr) = _SMALL_MODELS[encoder_type]
    return replace(
        config,
        encoder_type=encoder_type,
        mask_updates=400,
        finetune_updates=1500,
        train_args=(
            f"{model} {training} --num-updates 3000 --short-first 1 {_SPEECH_ONLY} --base-lr {dense_lr} "
            "--lr-warmup 150 --warm-updates 1000"
        ),
        small_dense_args=_SMALL_DENSE[encoder_type],
        finetune_args=f"{training} --base-lr {finetune_lr} --lr-warmup 50 --warm-updates 0",
        search_args=f"{training} {_SPEECH_ONLY} --base-lr {search_lr} {_SEARCH}",
        decode_args="--max-duration 100",
    )


def _stamps(config: Config) -> Config:
    """Return `config` with the settings for real speech; RESULTS.md compares them with others on dev."""
    training = f"{_TRAINING} {_SPEECH_ONLY} --valid-interval 1000"
    return replace(
        _small(config, "emformer"),
        data_dir=Path("data/stamps"),
        vocab_size=200,
        ngram_order=6,
        prepare_args="--perturb-speed 1",
        synthetic_updates=4000,
        synthetic_args="--content 'transcripts names' --hours-per-language 0.5 --dev-utterances 40 --test-utterances 1",
        at_once=2,
        mask_updates=160,
        finetune_updates=5000,
        train_args=(
            f"{_EMFORMER} {_WIDER_EMFORMER} {training} --num-updates 5000 --short-first 1 --base-lr 0.003 "
            "--lr-warmup 150 --warm-updates 500"
        ),
        small_dense_args="--encoder-dim 48 --dim-feedforward 296 --base-lr 0.004",
        finetune_args=f"{training} --base-lr 0.003 --lr-warmup 50 --warm-updates 0",
        search_args=f"{training} --base-lr 0.002 {_SEARCH}",
        # Models of so few updates delete many tokens, and fusion adds to that: the penalty compensates both.
        decode_args="--max-duration 100 --ngram-lm-scale 0.4 --blank-penalty 1.5",
    )


def _mini(config: Config, encoder_type: str) -> Config:
    """Return `config` with the embedded corpus, number words in four languages, and the settings for small corpora."""
    return replace(
        _small(config, encoder_type),
        corpus="mini",
        data_dir=Path("data/demo"),
        vocab_size=100,
        hours="en=1.4 fr=0.9 it=0.4 nl=0.9",
        prepare_args="--content numbers --dev-utterances 100 --test-utterances 150",
    )


_DEMO = RunConfig(
    demo=True,
    exp_root=Path("exp/demo"),
    at_once=3,
    systems="dense-continued dense-language small-dense lap pathways",
)

#: Multilingual LibriSpeech.
MLS = RunConfig()
#: `make demo`: 15 to 25 minutes on two cores.
DEMO = _mini(_DEMO, "emformer")
#: `make demo ENCODER=zipformer`.
DEMO_ZIPFORMER = _mini(_DEMO, "zipformer")
#: The study of the embedded corpus.
STUDY = _mini(StudyConfig(), "emformer")
STUDY_ZIPFORMER = _mini(StudyConfig(), "zipformer")
#: The study of Multilingual LibriSpeech.
STUDY_MLS = StudyConfig(corpus="mls")
#: The study of real speech.
STUDY_STAMPS = replace(
    _stamps(STUDY_MLS),
    corpus="stamps",
    languages=languages_of_corpus(PrepareConfig(corpus="stamps")),
    study_dir=Path("exp/study-stamps"),
)

_DEMOS = {preset.encoder_type: preset for preset in (DEMO, DEMO_ZIPFORMER)}
_STUDIES = {preset.encoder_type: preset for preset in (STUDY, STUDY_ZIPFORMER)}


def named_preset(config: RunConfig, default: RunConfig) -> RunConfig:
    """Return the defaults that --preset selects."""
    if config.preset == "stamps":
        return replace(default, corpus="stamps")
    return replace(default, demo=config.preset == "demo")


def demo_preset(config: RunConfig, default: RunConfig) -> RunConfig:
    """Return the defaults of the demo, if --demo selects it.

    Raises:
      ValueError: The demo has no preset for the encoder.
    """
    return _preset_for_encoder(config, _DEMOS) if config.demo else default


def implied_corpus(config: Config, default: Config) -> Config:
    """Return the defaults with the corpus that --corpus-dir implies, unless --demo or --preset selects one."""
    is_selected = isinstance(config, RunConfig) and (config.demo or config.preset)
    corpus = None if is_selected else corpus_of_folder(config.corpus_dir)
    return replace(default, corpus=corpus) if corpus else default


def corpus_preset(config: RunConfig, default: RunConfig) -> RunConfig:
    """Return the defaults for the corpus: its languages, and model and trainings if it is a small one.

    Raises:
      ValueError: The languages of the corpus cannot be determined, or the options of the preparation are not valid.
    """
    if config.corpus in _SMALL_CORPORA:
        presets = {name: _small(default, name) for name in _SMALL_MODELS}
        if config.corpus == "stamps":
            stamps = _stamps(default)
            presets["emformer"] = replace(stamps, exp_root=Path("exp/stamps"), systems=f"{stamps.systems} dynamic")
        default = _preset_for_encoder(config, presets)
    if config.languages != default.languages:
        return default
    return replace(default, languages=languages_of_corpus(prepare_config(config)))


def study_preset(config: StudyConfig, default: StudyConfig) -> StudyConfig:
    """Return the preset that the options select.

    Raises:
      ValueError: The study of the corpus has no preset for the encoder.
    """
    if config.corpus == "mini":
        return _preset_for_encoder(config, _STUDIES)
    if config.corpus == "stamps":
        return _preset_for_encoder(config, {"emformer": STUDY_STAMPS})
    return replace(STUDY_MLS, corpus=config.corpus)


def _preset_for_encoder(config: Config, presets: dict[str, Config]) -> Config:
    if config.encoder_type not in presets:
        raise ValueError(
            f"--encoder-type is {config.encoder_type}, and corpora of this size have presets for {', '.join(presets)} "
            "only: use one of these, or add a preset to recipe/presets.py"
        )
    return presets[config.encoder_type]
