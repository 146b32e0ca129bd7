"""End of worker processes together with the process that started them."""

import os
import threading
from multiprocessing import parent_process


def exit_with_parent() -> None:
    """Exit this process when the process that started it has ended, even if that was killed.

    For processes of `multiprocessing`, on all systems. Without it, the workers of a killed pool wait for tasks forever.
    """
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
