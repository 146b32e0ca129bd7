"""Compare models exported for sherpa-onnx with the streaming decoder, on the test utterances of each language."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F
from lhotse import MonoCut
from tabulate import tabulate
from torch import Tensor

from icefall_pathways.constants import FRAME_SHIFT
from icefall_pathways.data.datamodule import DataConfig, SpeechDataModule
from icefall_pathways.data.features import StreamingFbank
from icefall_pathways.data.tokenizer import WORD_BOUNDARY
from icefall_pathways.decoding.cut_audio import load_samples
from icefall_pathways.decoding.pretrained import TrainedModel
from icefall_pathways.decoding.scoring import Utterance, score
from icefall_pathways.decoding.streaming import StreamEncoder, StreamingDecoder
from icefall_pathways.export.precision import Precision
from icefall_pathways.export.sherpa import Exported
from icefall_pathways.export.sherpa_process import SherpaResult, decode_with_sherpa
from icefall_pathways.models.transducer import Transducer
from icefall_pathways.searches import GreedySearch, ModifiedBeamSearch, Search

_SEARCHES: dict[str, type[GreedySearch | ModifiedBeamSearch]] = {
    "greedy_search": GreedySearch,
    "modified_beam_search": ModifiedBeamSearch,
}


@dataclass(frozen=True)
class Comparison:
    """Results of one language, search and precision.

    Attributes:
      language: The language.
      method: The decoding method.
      precision: Precision of the exported model.
      utterances: Number of utterances.
      equal: Number of utterances with the same tokens.
      wer: Word error rate of sherpa-onnx in percent.
      own_wer: Word error rate of the streaming decoder in percent.
    """

    language: str
    method: str
    precision: Precision
    utterances: int
    equal: int
    wer: float
    own_wer: float


def compare_with_sherpa(
    trained: TrainedModel, exported: Exported, data_config: DataConfig, num_utterances: int
) -> list[Comparison]:
    """Decode test utterances of every exported language by greedy search and by modified beam search.

    Args:
      trained: The model that was exported.
      exported: Its exported files.
      data_config: Options of the data, with the folder of the cuts.
      num_utterances: Utterances per language, the first ones in the order of their ids.

    Raises:
      SherpaError: sherpa-onnx is not installed, or cannot run the files.
      ValueError: There are no cuts.
    """
    data, comparisons = SpeechDataModule(data_config), []
    for language, method in product(exported, _SEARCHES):
        cuts = data.loader(language, "test").cuts[:num_utterances]
        samples = [pad_for_sherpa(trained.model, load_samples(cut)) for cut in cuts]
        search = _SEARCHES[method](trained.model)
        expected = decode_as_sherpa(trained, search, language, samples)
        own_wer = _wer(trained, cuts, ["".join(tokens) for tokens in expected])
        for precision, files in exported[language].items():
            arrays = [sample.numpy() for sample in samples]
            results = decode_with_sherpa(files, arrays, [language] * len(arrays), decoding_method=method)
            wer = _wer(trained, cuts, [result.text for result in results])
            equal = count_equal(results, expected)
            comparisons.append(Comparison(language, method, precision, len(cuts), equal, wer, own_wer))
    return comparisons


def pad_for_sherpa(model: Transducer, samples: Tensor) -> Tensor:
    """Append silence to samples (n,): sherpa-onnx encodes a chunk only if more frames follow it."""
    return F.pad(samples, (0, FRAME_SHIFT * (model.chunk_window + 1)))


def decode_as_sherpa(
    trained: TrainedModel, search: Search, language: str, utterances: Sequence[Tensor]
) -> list[list[str]]:
    """Decode utterances by the streaming decoder, in the chunks that sherpa-onnx encodes.

    Returns:
      The symbols of the tokens of each utterance.
    """
    model = trained.model
    encoder = StreamEncoder(model, trained.pathways, "eager")
    decoder = StreamingDecoder(model, {language: search}, trained.data_config.fbank, trained.pathways, encoder)
    streams = []
    for samples in utterances:
        fbank = StreamingFbank(decoder.fbank)
        features = torch.cat([fbank.accept(samples), fbank.flush()])
        streams.append(decoder.open(language))
        streams[-1].accept_features(features[:-1])  # one frame has to follow the last chunk
    while decoder.advance(streams):
        pass
    return [[trained.tokenizer.symbols[token] for token in hyp.tokens] for hyp in decoder.results(streams)]


def count_equal(results: Sequence[SherpaResult], expected: Sequence[Sequence[str]]) -> int:
    """Return the number of utterances with equal tokens; sherpa-onnx shows word boundaries as spaces."""
    return sum(
        result.tokens == [symbol.replace(WORD_BOUNDARY, " ") for symbol in symbols]
        for result, symbols in zip(results, expected, strict=True)
    )


def _wer(trained: TrainedModel, cuts: Sequence[MonoCut], texts: Sequence[str]) -> float:
    words = trained.tokenizer.words
    pairs = zip(cuts, texts, strict=True)
    return score(Utterance(cut.id, words(cut.supervisions[0].text), words(text.lower())) for cut, text in pairs).wer


def format_comparisons(comparisons: Sequence[Comparison]) -> str:
    """Return a table with a row per language, search and precision."""
    header = ["language", "search", "precision", "same tokens", "WER (%)", "WER of the streaming decoder (%)"]
    rows = [
        [c.language, c.method, c.precision, f"{c.equal} of {c.utterances}", f"{c.wer:.2f}", f"{c.own_wer:.2f}"]
        for c in comparisons
    ]
    return tabulate(rows, header, tablefmt="simple_outline", disable_numparse=True)


def check_equal(comparisons: Sequence[Comparison]) -> None:
    """Check that sherpa-onnx decodes the same tokens with float32.

    Raises:
      ValueError: It does not.
    """
    different = [c for c in comparisons if c.precision == "float32" and c.equal < c.utterances]
    if different:
        names = ", ".join(f"{c.utterances - c.equal} of {c.utterances} ({c.language}, {c.method})" for c in different)
        raise ValueError(
            f"sherpa-onnx decodes other tokens than the streaming decoder in {names} utterances: do not deploy the "
            "export; compare the versions of onnxruntime and sherpa-onnx with docs/guide/export.md"
        )
