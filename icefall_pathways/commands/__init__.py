"""Commands of `icefall-pathways` and of the recipe's scripts, a module each.

The docstring of a module is the help text, `Config` the dataclass of its options and `run` what it does with them.
"""
