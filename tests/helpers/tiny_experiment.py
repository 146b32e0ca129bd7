"""An experiment folder with a random model, two languages and a few cuts of noise."""

from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from lhotse import CutSet, LilcomChunkyWriter, MonoCut, Recording, SupervisionSegment

from icefall_pathways.corpora.layout import SplitFiles
from icefall_pathways.data.datamodule import DataConfig
from icefall_pathways.data.features import FbankConfig
from icefall_pathways.data.tokenizer import train_tokenizer
from icefall_pathways.experiment import checkpoints, layout
from icefall_pathways.languages import get_language
from icefall_pathways.models.config import ModelConfig
from icefall_pathways.models.transducer import build_model
from icefall_pathways.options import to_dict
from icefall_pathways.pathways.masks import PathwayMasks
from icefall_pathways.training.config import ExperimentConfig, TrainingConfig

MODEL = ModelConfig(
    num_encoder_layers=1,
    encoder_dim=16,
    nhead=2,
    dim_feedforward=16,
    subsampling_channels="2,4",
    decoder_dim=16,
    joiner_dim=16,
    segment_length=16,
    left_context_length=16,
)
VOCAB_SIZE = 24
TEXTS = ["one two three", "four five", "een twee drie", "vier vijf zes"]


def _cut(folder, code, index, rng):
    """Return a cut of noise bursts with stored features."""
    cut_id = f"{code}-{index}"
    samples = rng.standard_normal(8000 + 3000 * index) * 0.1
    samples *= np.arange(len(samples)) // 2000 % 2 + 0.01
    soundfile.write(folder / f"{cut_id}.wav", samples, 16000)
    recording = Recording.from_file(folder / f"{cut_id}.wav", recording_id=cut_id)
    supervision = SupervisionSegment(
        cut_id, cut_id, 0.0, recording.duration, text=TEXTS[index], language=code, speaker="x"
    )
    cut = MonoCut(cut_id, 0.0, recording.duration, 0, supervisions=[supervision], recording=recording)
    extractor = FbankConfig().extractor()
    with LilcomChunkyWriter(folder / f"{cut_id}-feats") as writer:
        return cut.compute_and_store_features(extractor, writer)


def make_experiment(folder: Path, model_config: ModelConfig = MODEL, **data: Any) -> None:
    """Write exp/checkpoint-5.pt, bpe.model, and test cuts of English and Dutch to `folder`.

    Args:
      folder: The folder.
      model_config: Options of the model.
      **data: Options of the data.
    """
    rng = np.random.default_rng(1)
    for code in ("en", "nl"):
        cuts = CutSet.from_cuts(_cut(folder, code, index, rng) for index in range(3))
        cuts.to_file(SplitFiles(folder, "mls", get_language(code), "test").cuts)
    train_tokenizer(TEXTS, VOCAB_SIZE, folder)
    config = ExperimentConfig(
        training=TrainingConfig(exp_dir=folder / "exp", bpe_model=folder / "bpe.model", average_period=5),
        data=DataConfig(manifest_dir=folder, languages="en nl", **data),
        model=model_config,
    )
    torch.manual_seed(3)
    model = build_model(model_config, VOCAB_SIZE, config.data.languages)
    with torch.no_grad():
        model.joiner.encoder_proj.weight *= 8
        model.joiner.output_linear.weight *= 8
    weights = model.state_dict()
    tensors = {"model": weights, "model_avg": weights, "optimizer": {}, "masks": {}}
    plain = {"update": 5, "epoch": 1, "vocab_size": VOCAB_SIZE, "config": to_dict(config)}
    checkpoints.save(tensors | plain, layout.batch_checkpoint(folder / "exp", 5))


def write_complementary_masks(exp_dir: Path) -> PathwayMasks:
    """Write complementary masks of two languages, each with half of every weight, and return them."""
    model = build_model(MODEL, VOCAB_SIZE)
    masks = PathwayMasks.dense(model, ["en", "nl"], ["encoder_embed", "encoder", "decoder"])
    for name in masks.names:
        keep = torch.rand(masks.codes[name].shape) < 0.5
        masks.set_mask(name, "en", keep)
        masks.set_mask(name, "nl", ~keep)
    masks.save(exp_dir / layout.MASKS_FILE)
    return masks
