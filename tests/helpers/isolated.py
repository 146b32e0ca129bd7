"""Calls in another process, which may crash or hang."""

import multiprocessing
import traceback
from contextlib import suppress


class IsolatedFunction:
    """Call a function in another process, which is started again after a crash or a timeout.

    Args:
      function: A function of a module; its result is discarded.
      timeout: Seconds after which a call counts as hanging.
    """

    def __init__(self, function, timeout=30.0):
        self.function, self.timeout = function, timeout
        self.process = self.connection = None

    def __call__(self, argument):
        """Return None, or the traceback, "crashed with exit code ..." or "no result after ... s"."""
        if self.process is None:
            self._start()
        self.connection.send(argument)
        try:
            if self.connection.poll(self.timeout):
                return self.connection.recv()
            failure = f"no result after {self.timeout} s"
        except EOFError:
            self.process.join(10)
            failure = f"crashed with exit code {self.process.exitcode}"
        self.close()
        return failure

    def _start(self):
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(self.function, other), daemon=True)
        self.process.start()
        other.close()

    def close(self):
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.process = None


def _serve(function, connection):
    with suppress(EOFError, KeyboardInterrupt):
        while True:
            argument = connection.recv()
            try:
                function(argument)
            except Exception:
                connection.send(traceback.format_exc())
            else:
                connection.send(None)
