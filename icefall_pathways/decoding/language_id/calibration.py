"""Calibration of language identification on the dev split, and its evaluation on the test split."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from tabulate import tabulate
from torch import Tensor
from tqdm import tqdm

from icefall_pathways.decoding.config import StreamingConfig
from icefall_pathways.decoding.cut_audio import read_blocks
from icefall_pathways.decoding.decode_run import LoadedExperiment, load_experiment
from icefall_pathways.decoding.language_id.model import (
    FEATURES,
    LanguageIdFeatures,
    LanguageIdModel,
    Unigrams,
    extract_features,
    unigram_log_probs,
    with_scoring,
)
from icefall_pathways.decoding.scoring import Utterance, score
from icefall_pathways.decoding.streaming import Session, StreamingDecoder
from icefall_pathways.decoding.streaming.decoder import push_next
from icefall_pathways.experiment import layout
from icefall_pathways.files import atomic_write, write_json
from icefall_pathways.languages import scored_by_characters
from icefall_pathways.ranges import PositiveFloat, PositiveInt, parse_numbers

_WEIGHT_DECAY = 1e-3  # keeps weights and offsets at 0 if the dev split does not determine them

#: Name of the model that uses all features.
COMBINED = "all"


@dataclass(frozen=True)
class CalibrationConfig(StreamingConfig):
    """Options of the calibration of language identification."""

    split: Literal["test", "dev"] = "test"
    """Split on which language identification is evaluated; the calibration uses dev."""

    seconds: str = "0.5 1 1.5 2 3"
    """Durations of speech after the first token at which language identification is evaluated, separated by spaces."""

    min_speech_seconds: PositiveFloat = 2.0
    """Seconds of speech after which transcribe.py selects the language."""

    features: Literal[
        "best", "all", "search_per_frame", "search_per_token", "ctc_per_frame", "ctc_per_token", "text_per_token"
    ] = "best"
    """Features that transcribe.py uses: one of them, all, or best: those with the lowest cross entropy on dev."""

    num_decode_streams: PositiveInt = 32
    """Number of utterances to decode in parallel, each through all pathways."""

    @property
    def evaluated_seconds(self) -> list[float]:
        """`seconds` as floats, followed by infinity for whole utterances."""
        return [*parse_numbers("--seconds", self.seconds, float), math.inf]

    def __post_init__(self) -> None:
        super().__post_init__()
        self.evaluated_seconds  # noqa: B018  (checks the option)


@dataclass
class LanguageIdExample:
    """An utterance decoded by all pathways.

    Attributes:
      language: Index of the spoken language.
      reference: Transcript.
      features: Features after each chunk.
    """

    language: int
    reference: str
    features: list[LanguageIdFeatures] = field(default_factory=list)

    def values_after(self, seconds: float) -> Tensor:
        """Return the feature values (languages, FEATURES) after this many seconds of speech."""
        enough = (features.values for features in self.features if features.speech_seconds >= seconds)
        return next(enough, self.features[-1].values)


def calibrate(config: CalibrationConfig) -> str:
    """Calibrate and evaluate the language identification of an experiment, and return the report.

    Writes the model for `transcribe.py --lang auto` to the experiment folder and the report to the results folder.

    Raises:
      ValueError: The checkpoint, masks, tokens or manifests are missing, damaged or inconsistent, or the languages have
        the same pathway.
    """
    experiment = load_experiment(config)
    languages = [language.code for language in experiment.data.languages]
    if experiment.trained.pathways.are_equal(languages):
        raise ValueError(
            f"the model in {config.exp_dir} has no separate pathway per language: language identification compares "
            "pathways"
        )
    unigrams, seconds = _unigrams(experiment), config.evaluated_seconds
    dev = collect_examples(experiment, "dev", config.num_decode_streams, unigrams)
    models = fit_all(dev, languages, seconds, has_ctc=experiment.trained.model.ctc_output is not None)
    losses = {name: cross_entropy(model, dev, languages, seconds) for name, model in models.items()}
    selected = min(losses, key=lambda name: losses[name]) if config.features == "best" else config.features
    if selected not in models:
        raise ValueError(f"--features {selected}: the model has no CTC head")
    model = replace(models[selected], unigrams=unigrams, seconds=config.min_speech_seconds)
    model_path = config.exp_dir / layout.LANGUAGE_ID_FILE
    model.save(model_path)
    print(f"wrote {model_path}: transcribe.py --lang auto can use it now", flush=True)
    test = collect_examples(experiment, config.split, config.num_decode_streams, unigrams)
    figures = {
        "split": config.split,
        "chosen": selected,
        "seconds": seconds,
        "dev_loss": losses,
        "accuracy": {name: [accuracy(model, test, languages, s) for s in seconds] for name, model in models.items()},
        "wer": word_error_rates(experiment, models[selected], test, seconds),
    }
    report = format_report(figures, languages)
    test_set = f"{experiment.data.corpus_cuts.result_name}-{config.split}"
    path = layout.result_file(config.results_dir, "language-id", test_set, experiment.trained.suffix)
    write_json(path.with_suffix(".json"), figures)
    with atomic_write(path) as temporary:
        temporary.write_text(f"{report}\n", encoding="utf-8")
    return report


def _unigrams(experiment: LoadedExperiment) -> dict[str, list[float]]:
    """Return the unigram model of each language, from its training transcripts."""
    tokenizer, data = experiment.trained.tokenizer, experiment.data
    return {
        language.code: unigram_log_probs(
            tokenizer.encode(list(data.texts(language.code, "train"))), tokenizer.vocab_size
        )
        for language in data.languages
    }


def collect_examples(
    experiment: LoadedExperiment, split: str, num_utterances: int, unigrams: Unigrams
) -> list[LanguageIdExample]:
    """Decode every utterance of a split through all pathways, `num_utterances` in parallel."""
    decoder = with_scoring(experiment.decoder)
    examples: list[LanguageIdExample] = []
    for index, language in enumerate(experiment.data.languages):
        cuts = experiment.data.loader(language.code, split).cuts
        block = decoder.model.chunk_shift * decoder.fbank.frame_shift
        for start in tqdm(range(0, len(cuts), num_utterances), f"decoding {language.name} {split}", unit="batch"):
            group = cuts[start : start + num_utterances]
            batch = [LanguageIdExample(index, cut.supervisions[0].text) for cut in group]
            _decode_all_pathways(decoder, batch, [read_blocks(cut, block) for cut in group], unigrams)
            examples += batch
    return examples


def _decode_all_pathways(
    decoder: StreamingDecoder,
    examples: Sequence[LanguageIdExample],
    sources: Sequence[Iterator[Tensor]],
    unigrams: Unigrams,
) -> None:
    """Decode the audio of `sources` and add the features after each chunk to `examples`."""
    sessions = [Session([decoder.open(language) for language in decoder.searches]) for _ in examples]
    active = list(zip(examples, sources, sessions, strict=True))
    while active:
        for _, blocks, session in active:
            while not session.input_finished and not decoder.is_ready(session.candidates[0]):
                push_next(session, blocks)
        decoder.advance(stream for _, _, session in active for stream in session.candidates)
        features = extract_features(decoder, [session.candidates for _, _, session in active], unigrams)
        for (example, _, _), current in zip(active, features, strict=True):
            example.features.append(current)
        active = [entry for entry in active if not decoder.is_done(entry[2].candidates[0])]


def fit_all(
    examples: Sequence[LanguageIdExample], languages: Sequence[str], seconds: Sequence[float], has_ctc: bool
) -> dict[str, LanguageIdModel]:
    """Fit a model of each feature alone, and one of all features."""
    usable = [name for name in FEATURES if has_ctc or not name.startswith("ctc")]
    return {name: fit(examples, languages, seconds, [name]) for name in usable} | {
        COMBINED: fit(examples, languages, seconds, usable)
    }


def fit(
    examples: Sequence[LanguageIdExample], languages: Sequence[str], seconds: Sequence[float], features: Sequence[str]
) -> LanguageIdModel:
    """Fit a logistic regression of the spoken language.

    Args:
      examples: Decoded utterances.
      languages: Language codes.
      seconds: Durations of speech; the regression uses the features of every example after each of them.
      features: Names of the features to use.
    """
    values, targets = _training_data(examples, seconds)
    values = values.double()
    scale = values.std(dim=(0, 1)).clamp(min=1e-6)
    used = torch.tensor([float(name in features) for name in FEATURES], dtype=torch.double)
    weights = torch.zeros(len(FEATURES), dtype=torch.double, requires_grad=True)
    offsets = torch.zeros(len(languages), dtype=torch.double, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights, offsets], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimizer.zero_grad()
        loss = F.cross_entropy(values / scale @ (weights * used) + offsets, targets)
        loss = loss + _WEIGHT_DECAY * (weights.square().sum() + offsets.square().sum())
        loss.backward()
        return float(loss)

    optimizer.step(closure)
    fitted = (weights * used / scale).detach().tolist()
    return LanguageIdModel(
        weights={name: weight for name, weight in zip(FEATURES, fitted, strict=True) if name in features},
        offsets=dict(zip(languages, offsets.detach().tolist(), strict=True)),
        unigrams={},
    )


def _training_data(examples: Sequence[LanguageIdExample], seconds: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Return feature values (N, languages, FEATURES) and language indices (N,) of all examples after each duration."""
    values = torch.stack([example.values_after(s) for s in seconds for example in examples])
    return values, torch.tensor([example.language for _ in seconds for example in examples])


def cross_entropy(
    model: LanguageIdModel, examples: Sequence[LanguageIdExample], languages: Sequence[str], seconds: Sequence[float]
) -> float:
    """Return the mean negative log-probability of the spoken language, in nats."""
    values, targets = _training_data(examples, seconds)
    return float(F.cross_entropy(model.logits(values, languages), targets))


def predict(
    model: LanguageIdModel, examples: Sequence[LanguageIdExample], languages: Sequence[str], seconds: float
) -> list[int]:
    """Return the index of the language with the largest logit after this many seconds, for each example."""
    values = torch.stack([example.values_after(seconds) for example in examples])
    indices: list[int] = model.logits(values, languages).argmax(1).tolist()
    return indices


def accuracy(
    model: LanguageIdModel, examples: Sequence[LanguageIdExample], languages: Sequence[str], seconds: float
) -> float:
    """Return the percentage of examples whose language is identified correctly."""
    pairs = zip(examples, predict(model, examples, languages, seconds), strict=True)
    return 100 * sum(example.language == predicted for example, predicted in pairs) / len(examples)


def word_error_rates(
    experiment: LoadedExperiment,
    model: LanguageIdModel,
    examples: Sequence[LanguageIdExample],
    seconds: Sequence[float],
) -> dict[str, list[float]]:
    """Return word error rates (%) per language: with the language given, and identified after each duration."""
    languages = [language.code for language in experiment.data.languages]
    tokenizer = experiment.trained.tokenizer
    texts = [
        tokenizer.decode([hypothesis.tokens for hypothesis in example.features[-1].hypotheses]) for example in examples
    ]

    def rates(selected: Sequence[int]) -> list[float]:
        groups: list[list[Utterance]] = [[] for _ in languages]
        for i, example in enumerate(examples):
            words = tokenizer.words(example.reference), tokenizer.words(texts[i][selected[i]])
            utterance = Utterance(str(i), *words)
            groups[example.language].append(utterance)
        return [score(group, scored_by_characters(code)).wer for group, code in zip(groups, languages, strict=True)]

    columns = [rates([example.language for example in examples])]
    columns += [rates(predict(model, examples, languages, s)) for s in seconds]
    return {language: [column[index] for column in columns] for index, language in enumerate(languages)}


def format_report(figures: Mapping[str, Any], languages: Sequence[str]) -> str:
    """Format two tables: the accuracy of each set of features, and the word error rates of the selected one."""
    durations = ["whole" if math.isinf(s) else f"{s:g} s" for s in figures["seconds"]]
    accuracies = [[name, figures["dev_loss"][name], *figures["accuracy"][name]] for name in figures["accuracy"]]
    rates = [[language, *figures["wer"][language]] for language in languages]
    average = [sum(column) / len(languages) for column in zip(*(row[1:] for row in rates), strict=True)]
    tables = [
        tabulate(accuracies, ["features", "dev loss", *durations], tablefmt="pipe", floatfmt=("", ".3f", *[".1f"] * 9)),
        tabulate([*rates, ["average", *average]], ["language", "given", *durations], tablefmt="pipe", floatfmt=".2f"),
    ]
    return (
        f"Accuracy on {figures['split']} (%), by seconds of speech from the first token on\n\n{tables[0]}\n\n"
        f"Word error rate (%) with the language identified by {figures['chosen']}\n\n{tables[1]}"
    )
