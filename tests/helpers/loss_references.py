"""Reference implementations of the RNN-T loss; a test skips if its reference cannot be imported."""

from collections.abc import Callable
from types import ModuleType

import pytest
from torch import Tensor


def import_k2() -> ModuleType:
    """Return k2, or skip the test if it cannot be imported, for example because it has no build for this torch."""
    module: ModuleType = pytest.importorskip("k2", reason="k2 cannot be imported", exc_type=ImportError)
    return module


def torchaudio_loss() -> Callable[..., Tensor]:
    """Return the RNN-T loss of torchaudio, or skip the test if it cannot be imported."""
    try:
        from torchaudio.functional import rnnt_loss
    except (ImportError, OSError) as error:  # OSError: torchaudio is built for another torch
        pytest.skip(f"the RNN-T loss of torchaudio cannot be imported: {error}")
    return rnnt_loss
