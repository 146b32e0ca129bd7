"""Messages about exceptions raised by other libraries, and about damaged files."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MAX_REASON = 200  # characters; some libraries quote the content of a file
_MAX_QUOTE = 80  # characters


def quote(text: str) -> str:
    """Return the start of a text from a file, in quotation marks."""
    return repr(text if len(text) <= _MAX_QUOTE else f"{text[:_MAX_QUOTE]}...")


@contextmanager
def as_damage(path: Path, error_type: type[ValueError], advice: str) -> Iterator[None]:
    """Report the exceptions inside the context as damage of a file.

    Damaged content causes exceptions of many types, and libraries do not name the file.

    Args:
      path: The file.
      error_type: Type of the exceptions. Those of a subclass of ValueError are not changed, and neither are those of
        ValueError that name the file.
      advice: What to do, the end of the message.

    Raises:
      ValueError: One of `error_type`, for any exception except MemoryError.
    """
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        if isinstance(error, error_type) and (error_type is not ValueError or str(path) in str(error)):
            raise
        reason = f"it lacks {error}" if isinstance(error, KeyError) else first_line(error)
        raise error_type(f"{path} is damaged ({reason[:MAX_REASON]}): {advice}") from error


def first_line(error: BaseException) -> str:
    """Return the first line of an error message, or the name of its class if it has no message.

    torch states the cause in the first line.
    """
    return str(error).strip().split("\n")[0] or type(error).__name__


def root_cause(error: BaseException) -> str:
    """Return the first line of the first exception in a chain: libraries that raise another one may drop its reason."""
    while cause := error.__cause__ or (None if error.__suppress_context__ else error.__context__):
        error = cause
    return first_line(error)


def last_line(error: Exception) -> str:
    """Return the last line of an error message, or the name of its class if it has no message.

    Audio readers state the cause in the last line; Lhotse adds one with the arguments of the call.
    """
    lines = [line for line in str(error).strip().split("\n") if not line.startswith("[extra info]")]
    return (lines[-1] if lines else "") or type(error).__name__


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
