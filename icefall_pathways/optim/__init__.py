"""Optimizers that update the active sub-network, learning rate schedules and weight averaging."""
