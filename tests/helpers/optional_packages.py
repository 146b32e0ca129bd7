"""Packages that not every environment has: k2 and torchaudio, which are built for one version of torch."""

from collections.abc import Callable
from types import ModuleType

import pytest
from torch import Tensor

from icefall_pathways.models.losses import resolve_rnnt_loss

#: Mark of tests that need k2.
needs_k2 = pytest.mark.skipif(resolve_rnnt_loss("auto") == "builtin", reason="k2 cannot be imported")


def import_k2() -> ModuleType:
    """Return k2, or skip the test if it cannot be imported, for example because it has no build for this torch."""
    module: ModuleType = pytest.importorskip("k2", reason="k2 cannot be imported", exc_type=ImportError)
    return module


def import_torchaudio() -> ModuleType:
    """Return torchaudio, or skip the test if it cannot be imported; it is built for one version of torch."""
    try:
        import torchaudio
    except (ImportError, OSError) as error:  # OSError: a library of that torch is missing
        pytest.skip(f"torchaudio cannot be imported: {error}")
    module: ModuleType = torchaudio
    return module


def torchaudio_loss() -> Callable[..., Tensor]:
    """Return the RNN-T loss of torchaudio, or skip the test if it cannot be imported."""
    loss: Callable[..., Tensor] = import_torchaudio().functional.rnnt_loss
    return loss
