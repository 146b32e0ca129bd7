r"""Serve a model: speech recognition for many clients over websockets and HTTP.

Usage:

  icefall-pathways serve --model exp/pathways
  icefall-pathways serve --model exp/pathways --port 8080 --lang fr --decoding-method modified_beam_search

One process serves all languages. Each client selects its language or has it identified (run calibrate_language_id.py
once before). docs/guide/serving.md describes the protocols: websockets at /v1/stream with partial and final results,
sherpa-onnx's websocket protocol at /, OpenAI's transcription API, and metrics for Prometheus. The server listens on
127.0.0.1 only, unless --host is given. SIGTERM and Ctrl-C end the streams with their final results.
"""

from icefall_pathways.serve.config import ServeConfig as Config
from icefall_pathways.serve.server import serve

__all__ = ["Config", "run"]


def run(config: Config) -> None:
    """Serve until a signal."""
    serve(config)
