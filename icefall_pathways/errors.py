"""Messages about exceptions raised by other libraries."""


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


def k2_error(feature: str, error: ImportError, alternative: str) -> ValueError:
    """Return the error for a feature that needs k2 if k2 cannot be imported.

    Args:
      feature: The option and its value that need k2.
      error: The error raised by the import.
      alternative: The option and its value that do not need k2.
    """
    return ValueError(
        f"{feature} needs k2, which cannot be imported ({first_line(error)}): install the build for your torch, see "
        f"https://k2-fsa.github.io/k2/installation, or use {alternative}"
    )
