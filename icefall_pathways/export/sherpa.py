"""A folder of models for sherpa-onnx, one per language.

```
FOLDER/
  tokens.txt, bpe.model, bpe.vocab    tokens of all languages; bpe.vocab splits hotwords
  joiner.onnx                         joiner of all languages
  decoder.onnx                        predictor of all languages, unless masks cover it
  LANGUAGE/encoder.onnx               encoder, with the language's mask multiplied in
  LANGUAGE/decoder.onnx               predictor, if masks cover it
  sherpa-onnx.json                    the files of each language and precision
```

Precisions other than float32 are part of the name: `encoder.fp16.onnx`, `encoder.int8.onnx`. Languages with equal masks
share the files of the first one.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from icefall_pathways.data.features import FbankConfig
from icefall_pathways.data.level import LevelNorm
from icefall_pathways.data.tokenizer import Tokenizer
from icefall_pathways.experiment import layout
from icefall_pathways.export.graphs import encoder_graph, joiner_graph, predictor_graph
from icefall_pathways.export.language_model import language_model
from icefall_pathways.export.onnx import write_graphs
from icefall_pathways.export.onnx_precision import convert
from icefall_pathways.export.precision import Precision
from icefall_pathways.export.sherpa_states import sherpa_states
from icefall_pathways.export.tokens import VOCABULARY_FILE, write_token_files
from icefall_pathways.files import write_json
from icefall_pathways.models.transducer import Transducer
from icefall_pathways.pathways.activation import FoldedPathways

INDEX_FILE = "sherpa-onnx.json"

_SUFFIXES: dict[Precision, str] = {"float32": ".onnx", "float16": ".fp16.onnx", "int8": ".int8.onnx"}
_PREDICTOR = "decoder."  # prefix of its parameters


@dataclass(frozen=True)
class SherpaFiles:
    """Arguments of sherpa-onnx's `OnlineRecognizer.from_transducer` that are files.

    Attributes:
      encoder: The encoder.
      decoder: The predictor.
      joiner: The joiner.
      tokens: Symbols and ids.
      bpe_vocab: Pieces and scores, for hotwords.
    """

    encoder: Path
    decoder: Path
    joiner: Path
    tokens: Path
    bpe_vocab: Path

    def sizes(self) -> dict[str, int]:
        """Return the bytes of the three graphs by their names."""
        return {name: getattr(self, name).stat().st_size for name in ("encoder", "decoder", "joiner")}


Exported = dict[str, dict[Precision, SherpaFiles]]
"""The files of each language and precision."""


def export_sherpa(
    pathways: FoldedPathways,
    tokenizer: Tokenizer,
    languages: Sequence[str],
    folder: Path,
    precisions: Sequence[Precision] = ("float32",),
    level_norm: LevelNorm = "none",
) -> Exported:
    """Write the models of several languages.

    Args:
      pathways: The languages' sub-networks of a transducer, none of which is active.
      tokenizer: The tokenizer of the model.
      languages: The languages to export.
      folder: See the module; existing files are replaced.
      precisions: Precisions of the weights.
      level_norm: Normalization of the features that the model was trained on.

    Raises:
      ValueError: sherpa-onnx cannot run the encoder.
      MasksError: There is no pathway for a language.
    """
    model = pathways.model
    assert isinstance(model, Transducer)
    sherpa_states(model)  # raises before anything is written
    owners = {language: _owner(pathways, language) for language in languages}
    write_token_files(tokenizer, folder)
    _write(folder / "joiner", joiner_graph(language_model(pathways, languages[0])), precisions)
    own_predictor = pathways.masks is not None and bool(pathways.masks.below(_PREDICTOR).names)
    for owner, language in {owner: language for language, owner in reversed(owners.items())}.items():
        masked = language_model(pathways, language)
        _write(folder / owner / "encoder", encoder_graph(masked, level_norm), precisions)
        if own_predictor or language == languages[0]:
            _write(folder / (owner if own_predictor else "") / "decoder", predictor_graph(masked), precisions)
    exported: Exported = {
        language: {
            precision: SherpaFiles(
                encoder=_path(folder / owner / "encoder", precision),
                decoder=_path(folder / (owner if own_predictor else "") / "decoder", precision),
                joiner=_path(folder / "joiner", precision),
                tokens=folder / layout.TOKENS_FILE,
                bpe_vocab=folder / VOCABULARY_FILE,
            )
            for precision in precisions
        }
        for language, owner in owners.items()
    }
    write_json(folder / INDEX_FILE, _index(folder, exported))
    return exported


def _owner(pathways: FoldedPathways, language: str) -> str:
    """Return the name of the folder with the files of a language; "" if all languages have the same files."""
    if pathways.has_language_values:
        return language
    return "" if pathways.masks is None else pathways.masks.canonical_language(language)


def _write(stem: Path, graph: bytes, precisions: Iterable[Precision]) -> None:
    write_graphs((_path(stem, precision), convert(graph, precision)) for precision in precisions)


def _path(stem: Path, precision: Precision) -> Path:
    return stem.with_name(stem.name + _SUFFIXES[precision])


def _index(folder: Path, exported: Mapping[str, Mapping[Precision, SherpaFiles]]) -> dict[str, Any]:
    """Return the content of the index file; paths are relative to the folder."""
    features = FbankConfig()
    return {
        "recognizer": {
            "sample_rate": features.sample_rate,
            "feature_dim": features.num_bins,
            "low_freq": features.low_freq,
            "high_freq": features.high_freq,
            "dither": 0.0,
            "snip_edges": False,
            "modeling_unit": "bpe",
        },
        "languages": {
            language: {
                precision: {name: str(path.relative_to(folder)) for name, path in asdict(files).items()}
                for precision, files in by_precision.items()
            }
            for language, by_precision in exported.items()
        },
    }
