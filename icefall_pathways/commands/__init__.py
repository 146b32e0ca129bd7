"""Commands of `icefall-pathways` and of the recipe's scripts, one module per command.

The docstring of a module is its help text, `Config` is the dataclass of its options, and `run(config)` runs it.
"""
