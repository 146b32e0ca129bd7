"""Calls in another process, which may crash or hang."""

import multiprocessing
import os
import resource
import signal
import traceback
from contextlib import suppress


class IsolatedFunction:
    """Call a function in another process, which is started again after a crash.

    Args:
      function: A function of a module; its result is discarded.
      cpu_seconds: CPU time after which a call counts as hanging; it does not depend on the load of the machine.
      wait_seconds: Time after which a call that does not compute, such as in a deadlock, counts as hanging.
      memory_bytes: Limit of the memory of the process (RLIMIT_DATA).
    """

    def __init__(self, function, cpu_seconds=20.0, wait_seconds=600.0, memory_bytes=4 << 30):
        self.function, self.cpu_seconds, self.wait_seconds = function, cpu_seconds, wait_seconds
        self.memory_bytes = memory_bytes
        self.process = self.connection = None

    def __call__(self, argument):
        """Return None, or the traceback, "crashed with exit code ..." or "hangs ..."."""
        if self.process is None:
            self._start()
        self.connection.send(argument)
        try:
            if self.connection.poll(self.wait_seconds):
                return self.connection.recv()
            failure = f"hangs: no result after {self.wait_seconds} s"
        except EOFError:
            self.process.join(10)
            code = self.process.exitcode
            failure = f"hangs: {self.cpu_seconds} s" if code == -signal.SIGPROF else f"crashed with exit code {code}"
        self.close()
        return failure

    def _start(self):
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        arguments = self.function, other, self.cpu_seconds, self.memory_bytes
        self.process = context.Process(target=_serve, args=arguments, daemon=True)
        self.process.start()
        other.close()

    def close(self):
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.process = None


def _serve(function, connection, cpu_seconds, memory_bytes):
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    with suppress(EOFError, KeyboardInterrupt):
        while True:
            argument = connection.recv()
            signal.setitimer(signal.ITIMER_PROF, cpu_seconds)  # SIGPROF ends the process
            try:
                function(argument)
                result = None
            except Exception:
                result = traceback.format_exc()
            signal.setitimer(signal.ITIMER_PROF, 0)
            connection.send(result)


def misbehave(fault):
    """Hang, crash, take much memory, raise an exception or return, to test `IsolatedFunction`."""
    if fault == "crash":
        os.abort()
    while fault == "hang":
        pass
    if fault == "memory":
        bytearray(8 << 30)
    if fault == "raise":
        raise ValueError(fault)
