"""The Zipformer, with the parameter names and shapes of icefall's recipe.

The weights of all linear and convolution layers of the subsampling and the stacks are prunable. The following are never
pruned: biases, norms (`norm`, `out_norm`), gates (`bypass_scale`, `chunkwise_conv_scale`), the weights of `downsample`,
and the positional projection `linear_pos`. Position queries are rows of `self_attn_weights.in_proj` and are pruned with
it.
"""
