"""The Zipformer, with the parameter names and shapes of icefall's recipe.

What a mask prunes: the kernels of all linear and convolution layers of the front end and of the stacks
(`pathways.masks.prunable_parameters` finds them). What it never prunes: biases; norms (`norm`, `out_norm`); gates
(`bypass_scale`, `chunkwise_conv_scale`) and the weights of `downsample`; the positional projection `linear_pos`. The
position queries are rows of `self_attn_weights.in_proj` and pruned with it.
"""
