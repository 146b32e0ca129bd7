r"""Export a trained model for other runtimes.

Usage:

  ./pruned_transducer_pathways/export.py --exp-dir exp/pathways --output-dir exp/pathways/sherpa --languages fr,it
  ./pruned_transducer_pathways/export.py --exp-dir exp/pathways --output-dir exp/pathways/sherpa \
    --precisions float32 float16 int8 --check-utterances 20

--format sherpa-onnx writes one model per language for sherpa-onnx, with the mask multiplied in. With
--check-utterances, sherpa-onnx decodes test utterances, and the tokens are compared with the streaming decoder's.
"""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

from icefall_pathways.decoding.config import ModelSelection, TrainedModelConfig
from icefall_pathways.decoding.pretrained import TrainedModel, load_trained_model
from icefall_pathways.decoding.sherpa_check import check_equal, compare_with_sherpa, format_comparisons
from icefall_pathways.export.proto import Precision
from icefall_pathways.export.sherpa import INDEX_FILE, export_sherpa
from icefall_pathways.languages import LanguageList, normalize_languages

__all__ = ["Config", "run"]

Format = Literal["sherpa-onnx"]


@dataclass(frozen=True)
class Config(ModelSelection):
    """Options of the export."""

    format: Format = "sherpa-onnx"
    """Runtime of the exported model; see above."""

    output_dir: Path = Path("exported")
    """Folder of the exported files; existing ones are replaced."""

    languages: LanguageList = ()
    """Languages to export, for example "fr it"; empty: all languages of the model."""

    precisions: tuple[Precision, ...] = ("float32",)
    """Precisions of the weights, one or several."""

    check_utterances: int = 0
    """Test utterances per language that are decoded with the exported model, to compare the tokens; 0: none."""

    manifest_dir: Path | None = None
    """Folder of the cuts for --check-utterances; None: the one of the experiment."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "languages", normalize_languages(self.languages))


def run(config: Config) -> None:
    """Export the model, and print what was written."""
    selection = {field.name: getattr(config, field.name) for field in fields(ModelSelection)}
    trained = load_trained_model(TrainedModelConfig(**selection))
    print(f"exporting {trained.description}", flush=True)
    trained.check_languages(config.languages)
    _export_for_sherpa(config, trained)


def _export_for_sherpa(config: Config, trained: TrainedModel) -> None:
    if (level_norm := trained.data_config.fbank.level_norm) != "none":
        raise ValueError(
            f"the model was trained with --level-norm {level_norm}, which sherpa-onnx does not compute: train a model "
            "with --level-norm none to export it for sherpa-onnx"
        )
    languages: list[str] = [*config.languages] or trained.languages
    exported = export_sherpa(trained.pathways, trained.tokenizer, languages, config.output_dir, config.precisions)
    for language, by_precision in exported.items():
        for precision, files in by_precision.items():
            sizes = ", ".join(f"{name} {size / 1e6:.2f} MB" for name, size in files.sizes().items())
            print(f"{language} {precision}: {sizes}")
    print(f"files: {config.output_dir / INDEX_FILE}", flush=True)
    if config.check_utterances:
        data_config = replace(
            trained.data_config,
            languages=normalize_languages(languages),
            manifest_dir=config.manifest_dir or trained.data_config.manifest_dir,
        )
        comparisons = compare_with_sherpa(trained, exported, data_config, config.check_utterances)
        print(format_comparisons(comparisons))
        check_equal(comparisons)
