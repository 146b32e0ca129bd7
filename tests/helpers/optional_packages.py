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


def torchaudio_loss() -> Callable[..., Tensor]:
    """Return the RNN-T loss of torchaudio, or skip the test if it cannot be imported."""
    try:
        from torchaudio.functional import rnnt_loss
    except (ImportError, OSError) as error:  # OSError: torchaudio is built for another torch
        pytest.skip(f"the RNN-T loss of torchaudio cannot be imported: {error}")
    return rnnt_loss
