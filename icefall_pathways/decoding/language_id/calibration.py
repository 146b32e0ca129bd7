"""Finding out how to tell languages apart, on the dev split, and how well it works, on the test split."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from tabulate import tabulate
from torch import Tensor
from tqdm import tqdm

from icefall_pathways.decoding.config import StreamingDecodeConfig
from icefall_pathways.decoding.cut_audio import read_pieces
from icefall_pathways.decoding.decode_run import Experiment, load_experiment
from icefall_pathways.decoding.language_id.model import (
    FEATURES,
    LanguageIdFeatures,
    LanguageIdModel,
    Unigrams,
    gather,
    unigram_log_probs,
    with_scoring,
)
from icefall_pathways.decoding.scoring import Utterance, score
from icefall_pathways.decoding.streaming import Session, StreamingDecoder
from icefall_pathways.experiment import layout
from icefall_pathways.files import atomic_write, write_json

_DECAY = 1e-3  # of weights and offsets, so that what the dev split does not tell stays at 0
COMBINED = "all"


@dataclass(frozen=True)
class CalibrationConfig(StreamingDecodeConfig):
    """How to find out how languages are told apart."""

    split: Literal["test", "dev"] = "test"
    """The part of the corpus on which the choice is judged; it is calibrated on dev."""

    seconds: str = "0.5 1 1.5 2 3"
    """For how long speech is heard, from its first token on, each a line of the report."""

    listen_seconds: float = 2.0
    """For how long transcribe.py shall listen before it chooses."""

    features: Literal[
        "best", "all", "search_per_frame", "search_per_token", "ctc_per_frame", "ctc_per_token", "text_per_token"
    ] = "best"
    """What transcribe.py shall choose by; best: what is surest of the right languages of dev."""

    num_decode_streams: int = 32
    """Utterances decoded at the same time, each through all pathways."""

    @property
    def heard(self) -> list[float]:
        """`seconds` as numbers, and infinity for whole utterances."""
        return [*map(float, self.seconds.split()), math.inf]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(word.replace(".", "", 1).isdecimal() for word in self.seconds.split()) or self.listen_seconds <= 0:
            raise ValueError(f'--seconds {self.seconds!r} and --listen-seconds: expected seconds, such as "0.5 1 2"')


@dataclass
class LanguageIdExample:
    """An utterance as all pathways heard it.

    Attributes:
      language: Place of the language that is spoken.
      reference: What is said.
      evidence: After each chunk.
    """

    language: int
    reference: str
    evidence: list[LanguageIdFeatures] = field(default_factory=list)

    def after(self, seconds: float) -> Tensor:
        """The features (languages, FEATURES) by which one would choose after so many seconds."""
        enough = (one.features for one in self.evidence if one.heard >= seconds)
        return next(enough, self.evidence[-1].features)


def calibrate(config: CalibrationConfig) -> str:
    """Calibrate the choice of an experiment's language and judge it; returns the report.

    What `transcribe.py --lang auto` needs is written to the experiment's folder, the report to the results.

    Raises:
      ValueError: The checkpoint, masks, tokens or manifests are missing, damaged or do not fit together, or
        there are no pathways that differ.
    """
    experiment = load_experiment(config)
    languages = [language.code for language in experiment.data.languages]
    masks = experiment.trained.masks
    if masks is None or masks.share_mask(languages):
        raise ValueError(
            f"the model in {config.exp_dir} has no pathway for each language, so none is surer than another"
        )
    unigrams = _unigrams(experiment)
    dev = listen(experiment, "dev", config.num_decode_streams, unigrams)
    models = fit_all(dev, languages, config.heard, has_ctc=experiment.trained.model.ctc_output is not None)
    losses = {name: loss_of(model, dev, languages, config.heard) for name, model in models.items()}
    chosen = min(losses, key=lambda name: losses[name]) if config.features == "best" else config.features
    if chosen not in models:
        raise ValueError(f"--features {chosen}: the model has no CTC head")
    replace(models[chosen], unigrams=unigrams, seconds=config.listen_seconds).save(
        config.exp_dir / layout.LANGUAGE_ID_FILE
    )
    test = listen(experiment, config.split, config.num_decode_streams, unigrams)
    accuracies = {name: [accuracy(model, test, languages, s) for s in config.heard] for name, model in models.items()}
    rates = word_error_rates(experiment, models[chosen], test, config.heard)
    figures = {
        "split": config.split,
        "chosen": chosen,
        "seconds": config.heard,
        "dev_loss": losses,
        "accuracy": accuracies,
        "wer": rates,
    }
    report = format_report(figures, languages)
    path = layout.result_file(
        config.results_dir, "language-choice", f"{experiment.data.corpus}-{config.split}", experiment.trained.suffix
    )
    write_json(path.with_suffix(".json"), figures)
    with atomic_write(path) as temporary:
        temporary.write_text(f"{report}\n", encoding="utf-8")
    return report


def _unigrams(experiment: Experiment) -> dict[str, list[float]]:
    """Of the training transcripts of each language."""
    tokenizer, data = experiment.trained.tokenizer, experiment.data
    return {
        language.code: unigram_log_probs(
            tokenizer.encode(list(data.texts(language.code, "train"))), tokenizer.vocab_size
        )
        for language in data.languages
    }


def listen(experiment: Experiment, split: str, num_utterances: int, unigrams: Unigrams) -> list[LanguageIdExample]:
    """Let all pathways hear every utterance of a split."""
    decoder = with_scoring(experiment.decoder)
    heard: list[LanguageIdExample] = []
    for place, language in enumerate(experiment.data.languages):
        cuts = experiment.data.loader(language.code, split).cuts
        piece = decoder.model.chunk_shift * decoder.fbank.frame_shift
        for begin in tqdm(range(0, len(cuts), num_utterances), f"hearing {language.name} {split}", unit="batch"):
            group = cuts[begin : begin + num_utterances]
            entries = [LanguageIdExample(place, cut.supervisions[0].text) for cut in group]
            _decode_all_pathways(decoder, entries, [read_pieces(cut, piece) for cut in group], unigrams)
            heard += entries
    return heard


def _decode_all_pathways(
    decoder: StreamingDecoder,
    entries: Sequence[LanguageIdExample],
    sources: Sequence[Iterator[Tensor]],
    unigrams: Unigrams,
) -> None:
    sessions = [Session([decoder.open(language) for language in decoder.searches]) for _ in entries]
    active = list(zip(entries, sources, sessions, strict=True))
    while active:
        for _, pieces, session in active:
            while not session.input_finished and not decoder.is_ready(session.candidates[0]):
                piece = next(pieces, None)
                if piece is None:
                    session.finish()
                else:
                    session.accept_samples(piece)
        decoder.advance(stream for _, _, session in active for stream in session.candidates)
        told = gather(decoder, [session.candidates for _, _, session in active], unigrams)
        for (entry, _, _), evidence in zip(active, told, strict=True):
            entry.evidence.append(evidence)
        active = [item for item in active if not decoder.is_done(item[2].candidates[0])]


def fit_all(
    heard: Sequence[LanguageIdExample], languages: Sequence[str], seconds: Sequence[float], has_ctc: bool
) -> dict[str, LanguageIdModel]:
    """A model by each feature alone, and one by all of them."""
    usable = [name for name in FEATURES if has_ctc or not name.startswith("ctc")]
    return {name: fit(heard, languages, seconds, [name]) for name in usable} | {
        COMBINED: fit(heard, languages, seconds, usable)
    }


def fit(
    heard: Sequence[LanguageIdExample], languages: Sequence[str], seconds: Sequence[float], features: Sequence[str]
) -> LanguageIdModel:
    """Logistic regression of the language that is spoken, from what was heard after each of `seconds`."""
    evidence = torch.stack([one.after(s) for s in seconds for one in heard]).double()
    target = torch.tensor([one.language for _ in seconds for one in heard])
    scale = evidence.std(dim=(0, 1)).clamp(min=1e-6)
    mask = torch.tensor([float(name in features) for name in FEATURES], dtype=torch.double)
    weights = torch.zeros(len(FEATURES), dtype=torch.double, requires_grad=True)
    offsets = torch.zeros(len(languages), dtype=torch.double, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights, offsets], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimizer.zero_grad()
        loss = F.cross_entropy(evidence / scale @ (weights * mask) + offsets, target)
        loss = loss + _DECAY * (weights.square().sum() + offsets.square().sum())
        loss.backward()
        return float(loss)

    optimizer.step(closure)
    found = (weights * mask / scale).detach().tolist()
    return LanguageIdModel(
        weights={name: weight for name, weight in zip(FEATURES, found, strict=True) if name in features},
        offsets=dict(zip(languages, offsets.detach().tolist(), strict=True)),
        unigrams={},
    )


def loss_of(
    model: LanguageIdModel, heard: Sequence[LanguageIdExample], languages: Sequence[str], seconds: Sequence[float]
) -> float:
    """Mean negative log-probability of the right language, in nats."""
    evidence = torch.stack([one.after(s) for s in seconds for one in heard])
    target = torch.tensor([one.language for _ in seconds for one in heard])
    return float(F.cross_entropy(model.logits(evidence, languages), target))


def choices(
    model: LanguageIdModel, heard: Sequence[LanguageIdExample], languages: Sequence[str], seconds: float
) -> list[int]:
    """Places of the languages chosen after so many seconds."""
    places: list[int] = model.logits(torch.stack([one.after(seconds) for one in heard]), languages).argmax(1).tolist()
    return places


def accuracy(
    model: LanguageIdModel, heard: Sequence[LanguageIdExample], languages: Sequence[str], seconds: float
) -> float:
    """Per cent of the utterances whose language is found."""
    pairs = zip(heard, choices(model, heard, languages, seconds), strict=True)
    return 100 * sum(one.language == choice for one, choice in pairs) / len(heard)


def word_error_rates(
    experiment: Experiment, model: LanguageIdModel, heard: Sequence[LanguageIdExample], seconds: Sequence[float]
) -> dict[str, list[float]]:
    """Per language, its word error rate if it is known and if it is chosen after each of `seconds`."""
    languages = [language.code for language in experiment.data.languages]
    tokenizer = experiment.trained.tokenizer
    texts = [tokenizer.decode([found.tokens for found in one.evidence[-1].found]) for one in heard]

    def rates(chosen: Sequence[int]) -> list[float]:
        told = [
            Utterance(str(number), one.reference.split(), texts[number][chosen[number]].split())
            for number, one in enumerate(heard)
        ]
        groups = [[told[n] for n, one in enumerate(heard) if one.language == place] for place in range(len(languages))]
        return [score(group).wer for group in groups]

    columns = [rates([one.language for one in heard])]
    columns += [rates(choices(model, heard, languages, s)) for s in seconds]
    return {language: [column[place] for column in columns] for place, language in enumerate(languages)}


def format_report(figures: Mapping[str, Any], languages: Sequence[str]) -> str:
    """Two tables: accuracy of each way to choose, and word error rates of the one that was taken."""
    heard = ["whole" if math.isinf(s) else f"{s:g} s" for s in figures["seconds"]]
    accuracies = [[name, figures["dev_loss"][name], *figures["accuracy"][name]] for name in figures["accuracy"]]
    rates = [[language, *figures["wer"][language]] for language in languages]
    average = [sum(column) / len(languages) for column in zip(*(row[1:] for row in rates), strict=True)]
    tables = [
        tabulate(accuracies, ["chosen by", "dev loss", *heard], tablefmt="pipe", floatfmt=("", ".3f", *[".1f"] * 9)),
        tabulate([*rates, ["average", *average]], ["language", "known", *heard], tablefmt="pipe", floatfmt=".2f"),
    ]
    return (
        f"Right languages of {figures['split']} (%), by the seconds heard from the first token on\n\n{tables[0]}\n\n"
        f"Word error rate (%) where the language is chosen by {figures['chosen']}\n\n{tables[1]}"
    )
