r"""Export a trained model for other runtimes.

Usage:

  ./pruned_transducer_pathways/export.py --exp-dir exp/pathways --output-dir exp/pathways/sherpa --languages fr,it
  ./pruned_transducer_pathways/export.py --exp-dir exp/pathways --output-dir exp/pathways/sherpa \
    --precisions float32 float16 int8 --check-utterances 20

  ./pruned_transducer_pathways/export.py --exp-dir exp/pathways --format package --output-dir pathways-fr-it \
    --languages fr,it --precisions int8 --license CC-BY-4.0
  ./pruned_transducer_pathways/export.py --exp-dir exp/pathways --format icefall --output-dir exp/pathways/icefall
  ./pruned_transducer_pathways/export.py --exp-dir exp/pathways --format onnx --output-dir exp/pathways/onnx
  ./pruned_transducer_pathways/export.py --exp-dir exp/pathways --format sherpa-onnx-multilingual --check-utterances 20

--format sherpa-onnx writes one model per language for sherpa-onnx, with the mask multiplied in. With
--check-utterances, sherpa-onnx decodes test utterances, and the tokens are compared with the streaming decoder's.
--format package writes one folder for all languages: entropy-coded masks, the weights that a language uses, tokenizer
and model card. Pathways.from_pretrained, and --exp-dir of the commands that decode, accept it as well.
--format icefall writes LANGUAGE/pretrained.pt, bpe.model and tokens.txt for icefall's own scripts, for Zipformers.
--format onnx writes one model for all languages for ONNX Runtime; the language of each stream is an input.
--format sherpa-onnx-multilingual writes one model for all languages for sherpa-onnx, as a NeMo transducer.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

from icefall_pathways.data.datamodule import DataConfig
from icefall_pathways.decoding.config import ModelSelection, TrainedModelConfig
from icefall_pathways.decoding.language_id.model import LanguageIdModel
from icefall_pathways.decoding.pretrained import TrainedModel, load_trained_model
from icefall_pathways.experiment import layout
from icefall_pathways.experiment.model_files import copy_tokenizer
from icefall_pathways.export.icefall import export_icefall, features_note
from icefall_pathways.export.model_card import make_card
from icefall_pathways.export.package import write_package
from icefall_pathways.export.precision import Precision
from icefall_pathways.languages import LanguageList, normalize_languages
from icefall_pathways.pathways.masks import PathwayMasks

__all__ = ["Config", "run"]

Format = Literal["sherpa-onnx", "package", "icefall", "onnx", "sherpa-onnx-multilingual"]


@dataclass(frozen=True)
class Config(ModelSelection):
    """Options of the export."""

    format: Format = "sherpa-onnx"
    """Format of the exported model; the text above describes each."""

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

    license: str = "unspecified"
    """License of the weights, for the model card of a package, for example CC-BY-4.0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "languages", normalize_languages(self.languages))


def run(config: Config) -> None:
    """Export the model, and print what was written.

    Raises:
      ValueError: The output folder is that of the model, or an option is not valid for the model.
    """
    if config.output_dir.resolve() == config.exp_dir.resolve():
        raise ValueError(
            f"--output-dir {config.output_dir} is the folder of --exp-dir, which would then hold two models: use "
            "another folder"
        )
    selection = {field.name: getattr(config, field.name) for field in fields(ModelSelection)}
    trained = load_trained_model(TrainedModelConfig(**selection))
    print(f"exporting {trained.description}", flush=True)
    trained.check_languages(config.languages)
    _EXPORTS[config.format](config, trained)


def _export_for_sherpa(config: Config, trained: TrainedModel) -> None:
    from icefall_pathways.decoding.sherpa_check import check_equal, compare_with_sherpa, format_comparisons
    from icefall_pathways.export.sherpa import (
        INDEX_FILE,
        export_sherpa,
    )  # imports onnx, which other formats do not need

    languages, level_norm = _languages(config, trained), trained.data_config.fbank.level_norm
    exported = export_sherpa(
        trained.pathways, trained.tokenizer, languages, config.output_dir, config.precisions, level_norm
    )
    for language, by_precision in exported.items():
        for precision, files in by_precision.items():
            sizes = ", ".join(f"{name} {size / 1e6:.2f} MB" for name, size in files.sizes().items())
            print(f"{language} {precision}: {sizes}")
    print(f"files: {config.output_dir / INDEX_FILE}", flush=True)
    if config.check_utterances:
        data_config = _data_config(config, trained)
        comparisons = compare_with_sherpa(trained, exported, data_config, config.check_utterances)
        print(format_comparisons(comparisons))
        check_equal(comparisons)


def _export_multilingual_for_sherpa(config: Config, trained: TrainedModel) -> None:
    from icefall_pathways.decoding.sherpa_check import compare_with_sherpa, format_comparisons
    from icefall_pathways.export.sherpa_multilingual import export_sherpa_multilingual

    masks, precision = _masks_and_precision(config, trained)
    features = trained.data_config.fbank
    files = export_sherpa_multilingual(config.output_dir, trained.model, masks, trained.tokenizer, features, precision)
    sizes = ", ".join(f"{name} {size / 1e6:.2f} MB" for name, size in files.sizes().items())
    print(f"{config.output_dir}: {sizes} for {' '.join(masks.languages)}", flush=True)
    if config.check_utterances:
        exported = {language: {precision: files} for language in masks.languages}
        data_config = _data_config(config, trained)
        print(format_comparisons(compare_with_sherpa(trained, exported, data_config, config.check_utterances)))


def _data_config(config: Config, trained: TrainedModel) -> DataConfig:
    """Return the options of the data for --check-utterances."""
    return replace(
        trained.data_config,
        languages=normalize_languages(_languages(config, trained)),
        manifest_dir=config.manifest_dir or trained.data_config.manifest_dir,
    )


def _export_package(config: Config, trained: TrainedModel) -> None:
    masks, precision = _masks_and_precision(config, trained)
    features, vocab_size = trained.data_config.fbank, trained.tokenizer.vocab_size
    card = make_card(masks, trained.options, features, vocab_size, config.exp_dir, config.license)
    language_id = _language_id(config, trained, masks.languages)
    paths = write_package(config.output_dir, card, trained.model, masks, trained.tokenizer, precision)
    language_id_file = config.output_dir / layout.LANGUAGE_ID_FILE
    language_id_file.unlink(missing_ok=True)  # that of an earlier export
    if language_id is not None:
        language_id.save(language_id_file)
        paths.append(language_id_file)
    size = sum(path.stat().st_size for path in paths)
    print(f"{config.output_dir}: {size / 1e6:.2f} MB for {' '.join(masks.languages)}")


def _language_id(config: Config, trained: TrainedModel, languages: Sequence[str]) -> LanguageIdModel | None:
    """Return language identification restricted to these languages; None if it is missing or lacks one of them."""
    path = layout.language_id_file(config.exp_dir)
    if not path.is_file():
        return None
    language_id = LanguageIdModel.load(path)
    if reason := language_id.mismatch(languages, trained.tokenizer.vocab_size):
        print(
            f"note: the package has no {layout.LANGUAGE_ID_FILE} ({path}: {reason}); to identify languages, calibrate "
            f"it with icefall-pathways calibrate-language-id --exp-dir {shlex.quote(str(config.output_dir))} "
            "--manifest-dir MANIFESTS"
        )
        return None
    return language_id.restrict(languages)


def _export_for_icefall(config: Config, trained: TrainedModel) -> None:
    for language in _languages(config, trained):
        path = export_icefall(trained.pathways, language, config.output_dir)
        tokenizer_files = copy_tokenizer(trained.tokenizer.model_path, path.parent)
        print(" ".join(map(str, [path, *tokenizer_files])))
    print(f"note: {features_note(trained.data_config.fbank)}")


def _export_for_onnx_runtime(config: Config, trained: TrainedModel) -> None:
    from icefall_pathways.export.multilingual_folder import export_multilingual

    masks, precision = _masks_and_precision(config, trained)
    features = trained.data_config.fbank
    paths = export_multilingual(config.output_dir, trained.model, masks, trained.tokenizer, features, precision)
    sizes = ", ".join(f"{path.name} {path.stat().st_size / 1e6:.2f} MB" for path in paths)
    print(f"{config.output_dir}: {sizes} for {' '.join(masks.languages)}")


def _masks_and_precision(config: Config, trained: TrainedModel) -> tuple[PathwayMasks, Precision]:
    """Return the masks and the precision of a model for all languages."""
    if len(config.precisions) != 1:
        raise ValueError(
            f"--precisions {' '.join(config.precisions)}: a model for all languages has one precision with "
            f"--format {config.format}"
        )
    if trained.masks is None:
        raise ValueError(
            f"{config.exp_dir} has no masks: --format {config.format} needs pathways; use another --format"
        )
    return trained.masks.restrict(_languages(config, trained)), config.precisions[0]


def _languages(config: Config, trained: TrainedModel) -> list[str]:
    return [*config.languages] or trained.languages


_EXPORTS = {
    "sherpa-onnx": _export_for_sherpa,
    "package": _export_package,
    "icefall": _export_for_icefall,
    "onnx": _export_for_onnx_runtime,
    "sherpa-onnx-multilingual": _export_multilingual_for_sherpa,
}
