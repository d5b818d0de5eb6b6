"""The page and its session over HTTP, for the person who started it and nobody else.

    GET  /        the page, which holds no data
    GET  /state   what to show now                              with the token
    POST /rate    {"turn": 12, "choice": "left"} -> the new state    with the token, from this page

A browser lets any site that a person visits send requests to his own machine. Four things keep them
out: the socket is bound to the loopback address; the Host must be a loopback name, so that no
domain can be pointed at it (DNS rebinding); whatever reads or writes needs a random token, which
stands in the printed address behind "#" and is sent as a header; and a POST must have the Origin of
this very page. The page itself cannot load or run anything but its own style and script, whose
hashes stand in its policy. What is refused gets a status of 4xx and a line of JSON.

Next: rating/page.html.
"""

import base64
import hashlib
import hmac
import json
import re
import secrets
import socketserver
import sys
import threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from rating.session import Refusal, Session
from runtime import unique_json
from runtime.errors import InputError, one_line

ADDRESS = "127.0.0.1"
HOST = re.compile(r"(?:127\.0\.0\.1|localhost)(?::[0-9]{1,5})?")  # any port: ssh -L may change it
MAX_BODY = 4096  # bytes of a POST
MAX_WAIT = 20.0  # seconds for a client that sends its request by and by
PAGE = Path(__file__).with_name("page.html").read_text(encoding="utf-8")


def policy(page: str) -> str:
    """The content security policy under which nothing but the page's own code can run."""
    hashes = {}
    for element in ("script", "style"):
        content = re.search(f"<{element}>(.*?)</{element}>", page, re.DOTALL)[1]
        digest = hashlib.sha256(content.encode("utf-8")).digest()
        hashes[element] = f"{element}-src 'sha256-{base64.b64encode(digest).decode()}'"
    rules = ["default-src 'none'", *hashes.values(), "connect-src 'self'", "img-src data:"]
    rules += ["base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"]
    return "; ".join([*rules, "require-trusted-types-for 'script'"])  # no text becomes markup


HEADERS = {
    "Content-Security-Policy": policy(PAGE),
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Server(socketserver.ThreadingTCPServer):
    """Serves a session on the loopback address; `url` is what to open.

    Threads, because a browser opens connections that it does not use yet; the session is asked by
    one at a time. Raises InputError for a port that cannot be had.
    """

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, session: Session, port: int = 0):
        self.session, self.token, self.turns = session, secrets.token_urlsafe(32), threading.Lock()
        try:
            super().__init__((ADDRESS, port), Handler)
        except OSError as error:
            fix = "leave it out for a free one"
            raise InputError(f"--port {port}: cannot be had ({error.strerror}); {fix}") from None

    @property
    def url(self) -> str:
        """With the token behind "#", where a browser sends it to nobody."""
        return f"http://{ADDRESS}:{self.server_address[1]}/#{self.token}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """One line instead of a traceback; none for a browser that has gone away."""
        error = sys.exception()
        if not isinstance(error, ConnectionError | TimeoutError):
            print(f"rating: a request failed ({one_line(error)})", file=sys.stderr)


class Handler(BaseHTTPRequestHandler):
    """One request. HTTP/1.0: every connection ends with its answer."""

    server: Server
    timeout = MAX_WAIT
    default_request_version = "HTTP/1.0"  # a line that is no request gets a status, too

    def do_GET(self) -> None:
        """The page, or the state."""
        if not self._is_for_this_host():
            return
        if self.path == "/":
            self._answer(200, PAGE.encode("utf-8"), "text/html; charset=utf-8")
        elif self.path != "/state":
            self.send_error(404, "no such page")
        elif self._has_token():
            with self.server.turns:
                self._answer_json(200, self.server.session.state())

    def do_POST(self) -> None:
        """Rate, skip or take back; the answer is the new state."""
        if not self._is_for_this_host():
            return
        if self.path != "/rate":
            self.send_error(404, "no such page")
        elif self.headers.get_all("Origin") != [f"http://{self.headers['Host']}"]:
            self.send_error(403, "not from this page")
        elif self._has_token() and (row := self._body()) is not None:
            self._rate(row)

    def _rate(self, row: dict) -> None:
        with self.server.turns:
            try:
                self.server.session.act(row.get("turn"), row.get("choice"))
                self._answer_json(200, self.server.session.state())
            except Refusal as refusal:
                self.send_error(refusal.status, str(refusal))
            except OSError as error:
                what = f"not saved: {self.server.session.file.path}: {error.strerror}"
                self._answer_json(507, {"error": f"{what}; nothing is lost, try again"})

    # ---- who asks --------------------------------------------------------------------------------

    def _is_for_this_host(self) -> bool:
        hosts = self.headers.get_all("Host") or []
        if len(hosts) == 1 and HOST.fullmatch(hosts[0]):
            return True
        self.send_error(403, "this server is for its own machine")
        return False

    def _has_token(self) -> bool:
        token = self.headers.get("X-Token", "").encode("utf-8", "replace")
        if hmac.compare_digest(token, self.server.token.encode()):
            return True
        self.send_error(403, "open the address that rate.py has printed")
        return False

    def _body(self) -> dict | None:
        """The JSON object that was sent; None, and a refusal, for anything else."""
        lengths = self.headers.get_all("Content-Length") or [""]
        if len(lengths) != 1 or not re.fullmatch("[0-9]{1,9}", lengths[0]):
            self.send_error(411, "a length is missing")
        elif int(lengths[0]) > MAX_BODY:
            self.send_error(413, f"more than {MAX_BODY} bytes")
        else:
            try:
                row = unique_json.loads(self.rfile.read(int(lengths[0])).decode("utf-8"))
                if isinstance(row, dict):
                    return row
            except (ValueError, RecursionError):
                pass
            self.send_error(400, "no object of JSON")
        return None

    # ---- answers ---------------------------------------------------------------------------------

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """A refusal; what http.server calls a fault of its own (an unknown method) is one, too."""
        self._answer_json(code if 400 <= code < 500 else 405, {"error": message or "refused"})

    def _answer_json(self, status: int, content: dict) -> None:
        self._answer(status, json.dumps(content).encode(), "application/json")

    def _answer(self, status: int, body: bytes, kind: str) -> None:
        self.send_response_only(status)
        headers = HEADERS | {"Content-Type": kind, "Content-Length": str(len(body))}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing: the terminal has one line, the address."""
