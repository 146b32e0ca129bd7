"""The Zipformer, with the parameter names and shapes of icefall's recipe.

Prunable are the kernels of all linear and convolution layers of the subsampling and of the stacks. Never pruned are
biases; norms (`norm`, `out_norm`); gates (`bypass_scale`, `chunkwise_conv_scale`) and the weights of `downsample`; and
the positional projection `linear_pos`. The position queries are rows of `self_attn_weights.in_proj` and pruned with it.
"""
