"""What errors of other libraries say, in one line."""


def first_line(error: Exception) -> str:
    """The first line of an error's text, which tells most of torch's; its kind if it has no text."""
    return str(error).strip().split("\n")[0] or type(error).__name__


def last_line(error: Exception) -> str:
    """The last line of an error's text, where readers of audio say the cause; its kind if it has no text."""
    return str(error).strip().split("\n")[-1] or type(error).__name__
