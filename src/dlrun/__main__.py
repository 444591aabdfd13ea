"""The `dlrun` command as a process of its own; also `python -m dlrun`."""

import gc
import threading

from dlrun.cli import main

_SHORT_SECONDS = 20.0


def program() -> None:
    """`main`, without looking for garbage where there is none.

    Importing torch and its like makes a million objects that stay: looking through them again and again while they are
    made is a sixth of what importing them takes. A command that lasts collects as usual.
    """
    gc.disable()
    later = threading.Timer(_SHORT_SECONDS, gc.enable)
    later.daemon = True
    later.start()
    main()


if __name__ == "__main__":
    program()
