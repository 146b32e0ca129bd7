"""Engines that encode the chunks of streams: eager torch, and ONNX Runtime on CPUs, in about half the time.

One ONNX graph serves all languages: their masked weights are its inputs, in the memory that eager torch uses, too.
"""

import warnings
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from icefall_pathways.errors import first_line
from icefall_pathways.export.stream import export_stream, language_weights
from icefall_pathways.models.transducer import Transducer
from icefall_pathways.pathways.activation import FoldedPathways, FoldedWeights

if TYPE_CHECKING:
    import numpy as np

Engine = Literal["auto", "onnx", "eager"]
"""Name of an engine; auto: eager torch at first, ONNX Runtime when that has paid off and works, see `StreamEncoder`."""

_LOG_ERRORS = 3  # log level of ONNX Runtime

Encoded = tuple[Tensor, Tensor, list[Tensor]]
"""Result of `Transducer.stream`."""


class EngineError(ValueError):
    """ONNX Runtime cannot run the model."""


class OnnxEncoder:
    """`Transducer.stream` by ONNX Runtime, with the threads of torch.

    Later changes of the model, its weights, masks or chunk size have no effect.

    Args:
      model: A transducer in eval mode on a CPU.
      pathways: The languages' sub-networks of `model`; None to run the dense model.
      language: Any of the languages.

    Raises:
      EngineError: ONNX Runtime is not installed, or the model cannot be exported.
    """

    def __init__(self, model: Transducer, pathways: FoldedPathways | None, language: str) -> None:
        self._model = model
        self._pathways = FoldedPathways(model, None) if pathways is None else pathways
        self._weights: WeakKeyDictionary[FoldedWeights, dict[str, np.ndarray]] = WeakKeyDictionary()
        try:
            import onnxruntime
        except ImportError as error:
            raise EngineError(
                f"onnxruntime cannot be imported ({first_line(error)}): install it, or pass --engine eager"
            ) from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = _LOG_ERRORS
        try:
            graph = export_stream(model, self._pathways.weights(language))
            with TemporaryDirectory() as folder:  # a session of serialized bytes would keep them in memory
                path = Path(folder) / "encoder.onnx"
                path.write_bytes(graph.onnx)
                self._session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
        except Exception as error:  # the exporter and the runtime raise many kinds of exceptions
            raise EngineError(
                f"the encoder cannot run in ONNX Runtime ({type(error).__name__}: {first_line(error)}): "
                "pass --engine eager"
            ) from error
        self._graph = replace(graph, onnx=b"")
        self._inputs = {value.name for value in self._session.get_inputs()}  # without those that have no effect

    def stream(self, language: str, x: Tensor, x_lens: Tensor, states: list[Tensor]) -> Encoded:
        """Encode one chunk of every stream of a language; see `Transducer.stream`."""
        tensors = zip(self._graph.inputs, [x, x_lens, *states], strict=True)
        inputs = {name: tensor.numpy() for name, tensor in tensors if name in self._inputs}
        outputs = self._session.run(self._graph.outputs, inputs | self._language_weights(language))
        out, lens, *new_states = map(torch.from_numpy, outputs)
        return out, lens, new_states

    def _language_weights(self, language: str) -> "dict[str, np.ndarray]":
        masked = self._pathways.weights(language)
        if masked not in self._weights:
            weights = language_weights(self._model, masked, self._graph.weights)
            self._weights[masked] = {name: weight.numpy() for name, weight in weights.items() if name in self._inputs}
        return self._weights[masked]


class StreamEncoder:
    """Encode chunks by the engine of choice.

    Exporting the model to ONNX takes seconds. With "auto", this happens after `onnx_after` batches, by when ONNX
    Runtime would have saved about that time. If it fails, a warning says why, and eager torch remains the engine.

    Args:
      model: The transducer, in eval mode and on its device.
      pathways: The languages' sub-networks of `model`; None to run the dense model.
      engine: The engine; "auto" is "eager" on GPUs.
      onnx_after: Number of batches before ONNX Runtime is used with "auto".

    Raises:
      EngineError: The engine is "onnx" and the model is on a GPU.
    """

    def __init__(
        self, model: Transducer, pathways: FoldedPathways | None, engine: Engine = "auto", onnx_after: int = 300
    ) -> None:
        device = next(model.parameters()).device
        if engine == "onnx" and device.type != "cpu":
            raise EngineError(
                f"the engine onnx runs on CPUs, and the model is on {device}: pass --engine auto or eager"
            )
        self.model = model
        self.pathways = pathways
        self.engine = "eager" if device.type != "cpu" else engine
        self.onnx_after = 0 if engine == "onnx" else onnx_after
        self._num_batches = 0
        self._onnx: OnnxEncoder | None = None

    @property
    def current_engine(self) -> Literal["onnx", "eager"]:
        """The engine that encoded the last chunk."""
        return "eager" if self._onnx is None else "onnx"

    def stream(self, language: str, x: Tensor, x_lens: Tensor, states: list[Tensor]) -> Encoded:
        """Encode one chunk of every stream of a language, whose sub-network is active; see `Transducer.stream`.

        Raises:
          EngineError: ONNX Runtime cannot run the model, and the engine is "onnx".
        """
        if self._num_batches >= self.onnx_after:
            self.start_onnx(language)
        self._num_batches += 1
        if self._onnx is None:
            return self.model.stream(x, x_lens, states)
        return self._onnx.stream(language, x, x_lens, states)

    def start_onnx(self, language: str) -> None:
        """Export the model, unless the engine is "eager"; a further call has no effect.

        Args:
          language: Any of the languages.

        Raises:
          EngineError: ONNX Runtime cannot run the model, and the engine is "onnx".
        """
        if self._onnx is not None or self.engine == "eager":
            return
        try:
            self._onnx = OnnxEncoder(self.model, self.pathways, language)
        except EngineError as error:
            if self.engine == "onnx":
                raise
            self.engine = "eager"
            warnings.warn(f"{error} (continuing with eager torch, which takes about twice the time)", stacklevel=2)
