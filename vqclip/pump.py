"""Letting widgets answer while a cell runs.

A kernel takes messages one after the other: what a slider says waits until the cell has ended. Within
`async with Pump() as pump`, every `await pump()` lets the messages of widgets through, and only those; cells that were
queued stay queued. This needs the inside of ipykernel, which is not the same everywhere:

- ipykernel 6 (Colab has 6.17) keeps messages in `kernel.msg_queue`: those of widgets are taken out and dispatched.
- ipykernel 7.4 dispatches them itself while a cell awaits, but never says that it is done with one; ipywidgets waits
  for that word before it sends the next value of the same widget. So it is said here.
- elsewhere nothing is done. Whether messages arrive is asked of the page, see `hearing.py`.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from typing import Any

COMMS = ("comm_open", "comm_msg", "comm_close")


class Pump:
    """Lets the messages of widgets through while an async cell runs; does nothing where there is no kernel."""

    def __init__(self, kernel: Any = None):
        self.kernel = kernel or _kernel()
        self._handlers: dict[str, Any] = {}  # those that were replaced, by message type
        self._queue = None

    async def __aenter__(self) -> Pump:
        kernel = self.kernel
        if kernel is None:
            return self
        if hasattr(kernel, "msg_queue"):
            self._queue = kernel.msg_queue
            ident = kernel._parent_ident  # by channel, in later versions of 6
            self._cell = (ident.get("shell") if isinstance(ident, dict) else ident), kernel.get_parent("shell")
        elif "concurrent" in inspect.signature(kernel.dispatch_shell).parameters:  # since 7.4
            cell, here = kernel.get_parent("shell"), threading.current_thread()
            for kind in COMMS:
                self._handlers[kind] = kernel.shell_handlers[kind]
                kernel.shell_handlers[kind] = self._saying_idle(self._handlers[kind], cell, here)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._handlers:
            self.kernel.shell_handlers.update(self._handlers)

    async def __call__(self, seconds: float = 0.03) -> None:
        """Let through what came, then sleep."""
        if self._queue is not None:
            await self._dispatch_queued()
        await asyncio.sleep(seconds)

    def _saying_idle(self, handler: Any, cell: dict, here: threading.Thread) -> Any:
        kernel = self.kernel

        async def handle(stream: Any, ident: Any, message: dict) -> None:
            try:
                result = handler(stream, ident, message)
                if inspect.isawaitable(result):
                    await result
            finally:
                if threading.current_thread() is here:  # else a subshell has it, which says so itself
                    for state, parent in (("idle", message), ("busy", cell)):
                        kernel.session.send(kernel.iopub_socket, "status", {"execution_state": state}, parent=parent,
                                            ident=kernel._topic("status"))  # fmt: skip

        return handle

    async def _dispatch_queued(self) -> None:
        """Dispatch the widgets' messages of ipykernel 6's queue; the others stay in it, in their order."""
        waiting = [self._queue.get_nowait() for _ in range(self._queue.qsize())]
        for item in waiting:
            _, dispatch, args = item
            if self._kind(args) not in COMMS:
                self._queue.put_nowait(item)
                continue
            try:
                await dispatch(*args)
            finally:
                self.kernel.set_parent(*self._cell, "shell")  # what is printed belongs to the running cell

    def _kind(self, args: tuple) -> str | None:
        """The type of a queued message; None for what is no message, such as the end of an abort."""
        try:
            _, parts = self.kernel.session.feed_identities(args[0], copy=False)
            return self.kernel.session.unpack(parts[1].bytes)["msg_type"]
        except Exception:  # whatever it is, it is for the kernel to judge
            return None


def _kernel() -> Any:
    """The kernel that this runs in; None in a terminal."""
    try:
        from IPython import get_ipython
    except ImportError:
        return None
    return getattr(get_ipython(), "kernel", None)
