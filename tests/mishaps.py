"""Bad luck at a chosen moment, for all that must survive it.

    with mishaps.at_line(37, mishaps.interrupt, run, latent) as place:   # before the 37th line of these modules
    with mishaps.at_write(3, mishaps.disk_full, session, codelog):       # with the 3rd write half done
    with mishaps.at_call(1, mishaps.disk_full, os, "replace"):           # instead of the 1st call

Each happens once; n=0 only counts. `place.count` is how many there were, `place.where` what was hit.
"""

import contextlib
import errno
import os
import sys


class Place:
    def __init__(self, n, happen):
        self.n, self.happen, self.count, self.where = n, happen, 0, None

    def comes(self):
        """Count one more; True if it is the chosen one."""
        self.count += 1
        return self.count == self.n


def interrupt():
    raise KeyboardInterrupt


def disk_full():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextlib.contextmanager
def at_line(n, happen, *modules):
    files, place = {module.__file__ for module in modules}, Place(n, happen)

    def trace(frame, event, _):
        if event == "line" and place.comes():
            place.where = f"{frame.f_code.co_name}:{frame.f_lineno}"
            place.happen()
        return trace

    before = sys.gettrace()
    sys.settrace(lambda frame, event, _: trace if frame.f_code.co_filename in files else None)
    try:
        yield place
    finally:
        sys.settrace(before)


class Torn:
    """A file whose chosen write gets only half of its bytes to the disk."""

    def __init__(self, file, place):
        self.file, self.place = file, place

    def write(self, data):
        if not self.place.comes():
            return self.file.write(data)
        self.place.where = f"write to {os.path.basename(self.file.name)}"
        self.file.write(data[: len(data) // 2])
        self.file.flush()
        self.place.happen()

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()


@contextlib.contextmanager
def at_write(n, happen, *modules):
    place = Place(n, happen)
    for module in modules:
        module.open = lambda *args, **kwargs: Torn(open(*args, **kwargs), place)
    try:
        yield place
    finally:
        for module in modules:
            del module.open


@contextlib.contextmanager
def at_call(n, happen, owner, name):
    place, real = Place(n, happen), getattr(owner, name)

    def call(*args, **kwargs):
        if place.comes():
            place.where = name
            place.happen()
        return real(*args, **kwargs)

    setattr(owner, name, call)
    try:
        yield place
    finally:
        setattr(owner, name, real)
