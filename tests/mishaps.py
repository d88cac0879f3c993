"""Bad luck at a chosen moment: something happens just before the n-th line of given modules runs.

    with mishaps.at_line(37, interrupt, run, latent) as lines:
        next(painting)
    lines.count                            # how many there were, to choose n below
"""

import contextlib
import sys


class Lines:
    count = 0
    where = None  # the function and line at which it happened


def interrupt():
    raise KeyboardInterrupt


@contextlib.contextmanager
def at_line(n, happen, *modules):
    """Within the block, call `happen` once, before the n-th line (from 1) of `modules`; n=0 only counts."""
    files, lines = {module.__file__ for module in modules}, Lines()

    def trace(frame, event, _):
        if event == "line":
            lines.count += 1
            if lines.count == n:
                lines.where = f"{frame.f_code.co_name}:{frame.f_lineno}"
                happen()
        return trace

    before = sys.gettrace()
    sys.settrace(lambda frame, event, _: trace if frame.f_code.co_filename in files else None)
    try:
        yield lines
    finally:
        sys.settrace(before)
