"""Precisions of exported weights."""

from typing import Literal, get_args

Precision = Literal["float32", "float16", "int8"]
"""Precision of the weights; inputs, outputs and states are float32."""

PRECISIONS: tuple[Precision, ...] = get_args(Precision)
