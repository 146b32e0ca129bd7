"""Pathways: masks, pruning and activation of sub-networks, for any `nn.Module`."""
