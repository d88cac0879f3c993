"""A notebook's page without a browser: runs cells in a real kernel, and moves and presses their widgets.

with Front(command) as front:
    front.run("import ipywidgets; slider = ipywidgets.FloatSlider(); slider")
    cell = front.send_cell("await studio.run()")
    message = front.set(front.find(_model_name="FloatSliderModel"), value=0.5)
    front.wait(lambda: message in front.idle)
"""

import contextlib
import os
import queue
import sys
import time

from jupyter_client.manager import KernelManager

PATIENCE = 300  # seconds until a test gives up; says nothing of how long a thing takes


class Front:
    def __init__(self, python=sys.executable, **environment):
        self.manager = KernelManager(kernel_name="python3")
        self.manager.kernel_spec.argv[0] = python
        self.environment = environment
        self.models, self.idle, self.replies, self.printed = {}, set(), {}, ""
        self.said = []  # all that HTML widgets ever showed
        self.counts = False  # whether Play widgets count, as they do in a page that is heard

    def __enter__(self):
        self.manager.start_kernel(env={**os.environ, **self.environment})
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=PATIENCE)
        return self

    def __exit__(self, *_):
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)

    def pump(self, seconds=0.1):
        """Take in what the kernel says."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._take(self.client.get_iopub_msg(timeout=seconds))
        with contextlib.suppress(queue.Empty):
            while True:
                reply = self.client.get_shell_msg(timeout=0)
                self.replies[reply["parent_header"].get("msg_id")] = reply["content"]
        if self.counts:
            for key, state in self.models.items():
                if state.get("_model_name") == "PlayModel" and state.get("playing", state.get("_playing")):
                    state["value"] += 1
                    self.set(key, value=state["value"])

    def _take(self, message):
        kind, content = message["msg_type"], message["content"]
        if kind == "comm_open":
            self.models[content["comm_id"]] = dict(content["data"].get("state", {}))
        elif kind == "comm_msg" and content["data"].get("method") == "update":
            model = self.models.setdefault(content["comm_id"], {})
            model.update(content["data"]["state"])
            if model.get("_model_name") == "HTMLModel":
                self.said.append(model.get("value", ""))
            buffers = zip(content["data"].get("buffer_paths", ()), message["buffers"], strict=False)
            self.models[content["comm_id"]].update({path[0]: bytes(data) for path, data in buffers})
        elif kind == "status" and content["execution_state"] == "idle":
            self.idle.add(message["parent_header"].get("msg_id"))
        elif kind == "stream":
            self.printed += content["text"]

    def wait(self, condition, what="it"):
        """Take in messages until the condition holds."""
        until = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < until, f"{what} did not come; printed: {self.printed[-2000:]}"
            self.pump(0.05)

    def send_cell(self, code):
        return self.client.execute(code)

    def run(self, code):
        """Run a cell to its end: its reply."""
        cell = self.send_cell(code)
        self.wait(lambda: cell in self.idle and cell in self.replies, "the end of the cell")
        return self.replies[cell]

    def find(self, **traits):
        """The newest widget with these traits."""
        return [key for key, state in self.models.items() if all(state.get(k) == v for k, v in traits.items())][-1]

    def set(self, widget, **state):
        """Move a widget, as its page would: the message's id."""
        return self._say(widget, {"method": "update", "state": state, "buffer_paths": []})

    def click(self, widget):
        return self._say(widget, {"method": "custom", "content": {"event": "click"}})

    def _say(self, widget, data):
        message = self.client.session.msg("comm_msg", {"comm_id": widget, "data": data})
        self.client.shell_channel.send(message)
        return message["header"]["msg_id"]

    def text(self):
        """All that HTML widgets show."""
        shown = (state["value"] for state in self.models.values() if state.get("_model_name") == "HTMLModel")
        return "\n".join(shown)
