"""One-line summaries of exceptions raised by other libraries."""


def first_line(error: Exception) -> str:
    """Return the first line of an error message, or the name of its class if it has no message.

    torch states the cause in the first line.
    """
    return str(error).strip().split("\n")[0] or type(error).__name__


def last_line(error: Exception) -> str:
    """Return the last line of an error message, or the name of its class if it has no message.

    Audio readers state the cause in the last line.
    """
    return str(error).strip().split("\n")[-1] or type(error).__name__
