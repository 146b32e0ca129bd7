"""Parse per-layer sparsities of options and masks headers."""


def parse_layer_sparsity(text: str) -> dict[str, float]:
    """Parse per-layer sparsities "PATTERN=SPARSITY ...", where patterns are shell-style patterns of parameter names.

    A pattern that matches a module applies to all of its parameters.

    Returns:
      Sparsity by pattern, in the order of the text.

    Raises:
      ValueError: An item does not have this form, or a sparsity is not at least 0 (dense) and below 1.
    """
    sparsities = {}
    for word in text.replace(",", " ").split():
        pattern, _, value = word.partition("=")
        try:
            sparsity = float(value)
        except ValueError:
            sparsity = -1.0
        if not pattern or not 0 <= sparsity < 1:
            raise ValueError(
                f'{word!r} is not a layer sparsity: expected entries such as "encoder.emformer_layers.0=0.5", '
                "at least 0 and below 1"
            )
        sparsities[pattern] = sparsity
    return sparsities
