import pytest
import torch
from public_numbers import load_numbers

from icefall_pathways.optim.learning_rate import Eden, LinearDecay


@pytest.mark.parametrize("start", [0.1, 0.5])
def test_eden_equals_icefall(start):
    numbers = load_numbers("optim")["eden"]
    eden = Eden(
        float(numbers["base_lr"]), numbers["lr_batches"], float(numbers["lr_epochs"]), numbers["warmup_batches"], start
    )
    rates = [[eden(batch, epoch) for epoch in numbers["epochs"]] for batch in numbers["batches"]]
    torch.testing.assert_close(torch.tensor(rates, dtype=torch.float64), numbers[f"warmup_start_{start}"])


def test_eden_warms_up_and_decays_with_updates_and_epochs():
    eden = Eden(1.0, lr_batches=10, lr_epochs=2, warmup=4, warmup_start=0.5)
    assert eden(2, 0) == pytest.approx(0.75 * 1.04**-0.25)
    assert eden(10, 2) == pytest.approx(2**-0.25 * 2**-0.25)


def test_linear_decay_warms_up_and_ends_at_zero():
    rate = LinearDecay(1.0, num_updates=10, warmup=2)
    assert [round(rate(update, 0), 3) for update in (1, 2, 3, 6, 10, 11)] == [0.5, 1.0, 1.0, 0.625, 0.125, 0.0]
