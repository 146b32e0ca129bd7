"""Sparsities of single layers, as an option and masks headers write them."""


def parse_layer_sparsity(text: str) -> dict[str, float]:
    """Read sparsities of single layers: "PATTERN=SPARSITY ...", patterns as the shell's, of parameter names.

    A pattern that names a module stands for all parameters in it.

    Raises:
      ValueError: An entry is not of this form, or a sparsity is not within 0 (dense) and below 1.
    """
    found = {}
    for word in text.replace(",", " ").split():
        pattern, _, number = word.partition("=")
        try:
            sparsity = float(number)
        except ValueError:
            sparsity = -1.0
        if not pattern or not 0 <= sparsity < 1:
            raise ValueError(
                f'{word!r} is no sparsity of a layer: expected entries such as "encoder.emformer_layers.0=0.5", '
                "at least 0 and below 1"
            )
        found[pattern] = sparsity
    return found
