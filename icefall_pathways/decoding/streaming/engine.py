"""Engines that encode the chunks of streams: eager torch, and ONNX Runtime on CPUs, in half the time or less.

The model is exported once. Each language has a session of ONNX Runtime, with its masked weights as constants.
"""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from icefall_pathways.errors import first_line
from icefall_pathways.export.stream_graph import StreamGraph, export_stream, language_weights
from icefall_pathways.models.transducer import Transducer
from icefall_pathways.pathways.activation import FoldedPathways
from icefall_pathways.pathways.language_cache import LanguageCache

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

Engine = Literal["auto", "onnx", "eager"]
"""Name of an engine; auto: eager torch at first, ONNX Runtime when that has paid off and works, see `StreamEncoder`."""

_LOG_ERRORS = 3  # log level of ONNX Runtime

Encoded = tuple[Tensor, Tensor, list[Tensor]]
"""Result of `Transducer.stream`."""


class EngineError(ValueError):
    """ONNX Runtime cannot run the model."""


class OnnxEncoder:
    """`Transducer.stream` by ONNX Runtime, with the threads of torch.

    Weights are constants of a session, which ONNX Runtime packs in advance and without which it cannot choose the
    layout of convolutions: inputs in their place would take one and a half times as long. Later changes of the model,
    its weights, masks or chunk size have no effect.

    Args:
      model: A transducer in eval mode on a CPU.
      pathways: The languages' sub-networks of `model`; its memory limit applies to the masked weights in the sessions.
        None runs the dense model.
      language: The first language.

    Attributes:
      masked: Names of the parameters of the encoder that differ between languages.

    Raises:
      EngineError: ONNX Runtime is not installed, or the model cannot be exported.
    """

    def __init__(self, model: Transducer, pathways: FoldedPathways | None, language: str) -> None:
        self._model = model
        self._pathways = FoldedPathways(model, None) if pathways is None else pathways
        self.masked, num_bytes = _masked_weights(model, self._pathways)
        self._sessions: LanguageCache[_Session] = LanguageCache(self._pathways.max_bytes, lambda _: num_bytes)
        with _engine_errors():
            self._graph = export_stream(model, self.masked)
            self._session(language)
        if not self.masked:
            self._graph = replace(self._graph, onnx=b"")  # no other session follows

    def prepare(self, languages: Iterable[str]) -> None:
        """Create the sessions of languages, which otherwise happens at their first use and takes up to seconds."""
        for language in languages:
            self._session(language)

    def stream(self, language: str, x: Tensor, x_lens: Tensor, states: list[Tensor]) -> Encoded:
        """Encode one chunk of every stream of a language; see `Transducer.stream`."""
        return self._session(language).stream(x, x_lens, states)

    def _session(self, language: str) -> "_Session":
        key = language if self.masked else ""
        return self._sessions.get(key, lambda: self._create_session(language))

    def _create_session(self, language: str) -> "_Session":
        weights = {}
        if self.masked:
            weights = language_weights(self._model, self._pathways.weights(language), self._graph.weights)
        return _Session(self._graph, weights)


def _masked_weights(model: Transducer, pathways: FoldedPathways) -> tuple[list[str], int]:
    """Return the names of the parameters of the encoder that differ between languages, and their bytes."""
    parameters = dict(model.named_parameters())
    names = [name for name in pathways.names if name.startswith("encoder")]
    return names, sum(parameters[name].numel() * parameters[name].element_size() for name in names)


class _Session:
    """A session of ONNX Runtime that runs a graph with the weights of one language."""

    def __init__(self, graph: StreamGraph, weights: dict[str, Tensor]) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = _LOG_ERRORS
        options.enable_cpu_mem_arena = False  # each session would keep the memory of its largest batch
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(weight.numpy()) for weight in weights.values()]
        options.add_external_initializers(list(weights), values)
        with TemporaryDirectory() as folder:  # a session of serialized bytes would keep them in memory
            path = Path(folder) / "encoder.onnx"
            path.write_bytes(graph.onnx)
            self._session: InferenceSession = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
        used = {value.name for value in self._session.get_inputs()}  # without those that have no effect
        self._inputs = [(index, name) for index, name in enumerate(graph.inputs) if name in used]
        self._outputs = graph.outputs

    def stream(self, x: Tensor, x_lens: Tensor, states: list[Tensor]) -> Encoded:
        tensors = [x, x_lens, *states]
        outputs = self._session.run(self._outputs, {name: tensors[index].numpy() for index, name in self._inputs})
        out, lens, *new_states = map(torch.from_numpy, outputs)
        return out, lens, new_states


@contextmanager
def _engine_errors() -> Iterator[None]:
    """Raise all exceptions as `EngineError`: the exporter and the runtime raise many kinds of them."""
    try:
        yield
    except ImportError as error:
        raise EngineError(
            f"onnxruntime cannot be imported ({first_line(error)}): install it, or pass --engine eager"
        ) from error
    except Exception as error:
        raise EngineError(
            f"the encoder cannot run in ONNX Runtime ({type(error).__name__}: {first_line(error)}): pass --engine eager"
        ) from error


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
        if self._onnx is None and self._num_batches >= self.onnx_after:
            self.start_onnx([language])
        self._num_batches += 1
        if self._onnx is None:
            return self.model.stream(x, x_lens, states)
        return self._onnx.stream(language, x, x_lens, states)

    def start_onnx(self, languages: Sequence[str]) -> None:
        """Prepare ONNX Runtime for languages, unless the engine is "eager"; others follow at their first use.

        If the memory of pathways is too small for them at the first call, "auto" becomes "eager", with a warning.

        From then on, `pathways` activates the predictor's sub-networks only.

        Raises:
          EngineError: ONNX Runtime cannot run the model, and the engine is "onnx".
        """
        if self._onnx is None and self.engine == "auto":
            self._check_memory(languages)
        if self._onnx is None and self.engine != "eager":
            self._onnx = self._try_onnx(languages[0])
        if self._onnx is not None:
            self._onnx.prepare(languages)

    def _check_memory(self, languages: Sequence[str]) -> None:
        """Replace "auto" by "eager", with a warning, if the memory of pathways is too small for these sessions.

        Each would be created again and again, which takes the time of many chunks.
        """
        if self.pathways is None or len(languages) < 2:
            return
        num_bytes = len(languages) * _masked_weights(self.model, self.pathways)[1]
        if num_bytes > self.pathways.max_bytes:
            self.engine = "eager"
            warnings.warn(
                f"the masked weights of {len(languages)} languages take {num_bytes / 1e6:.0f} MB, more than "
                f"--pathway-memory {self.pathways.max_bytes / 1e6:g}: continuing with eager torch; a larger value "
                "makes ONNX Runtime possible",
                stacklevel=3,
            )

    def _try_onnx(self, language: str) -> OnnxEncoder | None:
        try:
            encoder = OnnxEncoder(self.model, self.pathways, language)
        except EngineError as error:
            if self.engine == "onnx":
                raise
            self.engine = "eager"
            warnings.warn(f"{error} (continuing with eager torch, which takes at least twice the time)", stacklevel=2)
            return None
        if self.pathways is not None:
            self.pathways.exclude(encoder.masked)
        return encoder
