"""Mirrors on this machine that misbehave as those of the world do.

    with mirrors.serve(data) as mirror:
        mirror.url("cut short")         # an address; MANNERS lists them all
        mirror.requests                 # (manner, where the client began, "Range" or "") of each request so far
"""

import contextlib
import re
import socket
import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote, unquote

PAGE = b"<!DOCTYPE html><html><body>Link does not exist.</body></html>"


class Mirror(ThreadingHTTPServer):
    """Serves `data` under every manner of MANNERS."""

    daemon_threads = True

    def __init__(self, data):
        super().__init__(("127.0.0.1", 0), Handler)
        self.data, self.requests, self.headers_seen = data, [], []
        self.over = threading.Event()  # lets go of those that hang
        self.burst = 200_000  # bytes that "stalls" gives each time

    def url(self, manner):
        return f"http://127.0.0.1:{self.server_port}/{quote(manner)}/model.ckpt"

    def handle_error(self, request, client_address):
        """A client that hangs up is what some tests are about."""


@contextlib.contextmanager
def serve(data):
    mirror = Mirror(data)
    thread = threading.Thread(target=mirror.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield mirror
    finally:
        mirror.over.set()
        mirror.shutdown()
        thread.join()
        mirror.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        manner = unquote(re.sub(r"^\w+://[^/]+", "", self.path)).split("/")[1]  # a proxy is asked for whole addresses
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        self.start = int(asked[1]) if asked else 0
        self.seen = sum(name == manner for name, _, _ in self.server.requests)
        self.server.requests.append((manner, self.start, "Range" if asked else ""))
        self.server.headers_seen.append(dict(self.headers))
        MANNERS[manner](self)
        self.wfile.flush()

    def head(self, status, length, **headers):
        self.send_response(status)
        if length is not None:
            self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def begin(self, declared=None, ranges=True, data=None, **headers):
        """Answer the request for a range, or for all; returns the bytes that should follow."""
        data = self.server.data if data is None else data
        whole = len(data) if declared is None else declared
        if ranges and self.start:
            if self.start >= len(data):
                self.head(416, 0, Content_Range=f"bytes */{len(data)}")
                return b""
            self.head(206, whole - self.start, Content_Range=f"bytes {self.start}-{whole - 1}/{whole}", **headers)
            return data[self.start :]
        self.head(200, whole, **headers)
        return data

    def hang_up(self, reset=False):
        self.wfile.flush()
        if reset:  # RST instead of FIN
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        self.close_connection = True

    def log_message(self, *_):
        pass


def good(h):
    h.wfile.write(h.begin())


def no_range(h):
    h.wfile.write(h.begin(ranges=False))


def missing(h):
    h.head(404, len(PAGE), Content_Type="text/html")
    h.wfile.write(PAGE)


def web_page(h):
    h.head(200, len(PAGE), Content_Type="text/html; charset=utf-8")
    h.wfile.write(PAGE)


def web_page_of_the_right_length(h):
    page = PAGE.ljust(len(h.server.data))
    h.wfile.write(h.begin(data=page, ranges=False, Content_Type="application/octet-stream"))


def wrong_bytes(h):
    data = bytearray(h.server.data)
    data[len(data) // 2] ^= 1
    h.wfile.write(h.begin(data=bytes(data)))


def another_file(h):
    h.wfile.write(h.begin(data=h.server.data[:-1000]))


def cut_short(h):
    body = h.begin()
    h.wfile.write(body[: max(len(body) // 2, 20_000)])
    h.hang_up()


def cut_short_without_range(h):
    body = h.begin(ranges=False)
    h.wfile.write(body[: len(body) // 2])
    h.hang_up()


def reset(h):
    body = h.begin()
    h.wfile.write(body[: max(len(body) // 2, 20_000)])
    h.hang_up(reset=True)


def reset_at_once(h):
    h.hang_up(reset=True)


def length_too_large(h):
    h.wfile.write(h.begin(declared=len(h.server.data) + 1000))
    h.hang_up()


def length_too_small(h):
    h.wfile.write(h.begin(declared=len(h.server.data) - 1000)[: -1000])
    h.hang_up()


def no_length(h):
    h.send_response(200)
    h.end_headers()
    h.wfile.write(h.server.data)
    h.hang_up()


def chunks(h):
    h.head(200, None, Transfer_Encoding="chunked")
    for at in range(0, len(h.server.data), 70_001):
        piece = h.server.data[at : at + 70_001]
        h.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
    h.wfile.write(b"0\r\n\r\n")


def endless(h):
    h.head(200, None, Transfer_Encoding="chunked")
    while not h.server.over.is_set():
        h.wfile.write(b"%x\r\n%b\r\n" % (len(h.server.data), h.server.data))


def slow(h):
    body = h.begin()
    for at in range(0, len(body), 997):
        h.wfile.write(body[at : at + 997])
        h.wfile.flush()


def stalls(h):
    """A burst each time, and then nothing until the client gives up."""
    body = h.begin()
    h.wfile.write(body[: h.server.burst])
    h.wfile.flush()
    if len(body) > h.server.burst:
        h.server.over.wait(20)
    h.close_connection = True


def silent(h):
    h.server.over.wait(20)
    h.close_connection = True


def redirects(h):
    h.head(302, 0, Location="/good/model.ckpt")


def redirects_in_circles(h):
    h.head(302, 0, Location=h.path)


def another_piece(h):
    if not h.start:
        return good(h)
    h.start -= 5
    h.wfile.write(h.begin())


def busy(h):
    h.head(503, 0)


def busy_at_first(h):
    busy(h) if h.seen == 0 else good(h)


def web_page_in_place_of_a_piece(h):
    web_page(h) if h.start else cut_short(h)


MANNERS = {
    name.replace("_", " "): manner
    for name, manner in list(globals().items())
    if callable(manner) and getattr(manner, "__code__", None) and manner.__code__.co_varnames[:1] == ("h",)
}
