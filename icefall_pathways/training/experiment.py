"""Whole runs: one training, and the search for masks, which is one training per language."""

import logging
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import torch

from icefall_pathways.data.datamodule import SpeechDataModule
from icefall_pathways.data.tokenizer import Tokenizer
from icefall_pathways.files import write_json
from icefall_pathways.languages import parse_languages
from icefall_pathways.models.config import ModelConfig
from icefall_pathways.models.transducer import Transducer, build_model
from icefall_pathways.options import from_dict, to_dict
from icefall_pathways.pathways.masks import MasksError, PathwayMasks
from icefall_pathways.pathways.schedules import PruningSchedule
from icefall_pathways.training import checkpoints
from icefall_pathways.training.config import ExperimentConfig, MaskSearchConfig
from icefall_pathways.training.distributed import Rank, launch
from icefall_pathways.training.trainer import Trainer

logger = logging.getLogger("icefall_pathways")
