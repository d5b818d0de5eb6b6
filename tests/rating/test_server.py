"""The server answers its own page and nobody else, and no request makes it fall over."""

import json
import socket
from pathlib import Path

import pytest

from rating.pairs import pairs
from rating.server import MAX_BODY, PAGE
from tests.rating.helpers import ask, completions, rate, serving

ITEMS = pairs(completions(), seed=0, count=10)
ACT = {"turn": 0, "choice": "left"}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("rating") / "ratings.jsonl", ITEMS) as server:
        yield server


@pytest.fixture(autouse=True)
def nothing_is_written(server, capfd):
    yield
    assert server.session.file.path.read_bytes() == b"" and server.session.turn == 0
    assert capfd.readouterr() == ("", "")  # no traceback, no log


def test_it_listens_on_the_loopback_address_alone(server):
    assert server.socket.getsockname()[0] == "127.0.0.1"
    port = server.server_address[1]
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    lines += Path("/proc/net/tcp6").read_text().splitlines()[1:]
    listening = [line.split()[1] for line in lines if line.split()[3] == "0A"]
    assert [place for place in listening if place.endswith(f":{port:04X}")] == [
        f"0100007F:{port:04X}"
    ]


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost@x", "", "10.0.0.1"],
)
def test_a_host_that_is_no_loopback_name_is_refused(server, host):
    for method, path in (("GET", "/"), ("GET", "/state"), ("POST", "/rate")):
        status, answer, _ = ask(server, method, path, ACT, Host=host, Origin=f"http://{host}")
        assert status == 403 and answer == {"error": "this server is for its own machine"}
    assert ask(server, "GET", "/", leave_out=["Host"])[0] == 403


def test_a_tunnel_with_another_port_works(server):
    assert ask(server, "GET", "/state", Host="localhost:9000")[0] == 200


@pytest.mark.parametrize("token", ["", "x", "TOKEN ", "TOKE", "é"])
def test_a_wrong_token_is_refused(server, token):
    token = token.replace("TOKE", server.token[:-1]) if token == "TOKE" else token
    for method, path in (("GET", "/state"), ("POST", "/rate")):
        status, answer, _ = ask(server, method, path, ACT, X_Token=token)
        assert status == 403 and "rate.py has printed" in answer["error"]
        assert ask(server, method, path, ACT, leave_out=["X-Token"])[0] == 403
    assert len(server.token) >= 32 and server.token not in PAGE


def test_a_post_from_another_page_is_refused(server):
    host = server.url.split("/")[2]
    for origin in ("http://evil.example", "null", f"https://{host}", "http://127.0.0.1:1", ""):
        status, answer, _ = ask(server, "POST", "/rate", ACT, Origin=origin)
        assert (status, answer) == (403, {"error": "not from this page"}), origin
    assert ask(server, "POST", "/rate", ACT, leave_out=["Origin"])[0] == 403


@pytest.mark.parametrize(
    "body, status",
    [
        (b"", 400),
        (b"[1]", 400),
        (b"{", 400),
        (b"\xff", 400),
        (b"[" * 4000, 400),
        (b'{"turn": 0, "turn": 0}', 400),
        (b"{}", 409),
        ({"turn": 0}, 400),
        ({"turn": 0, "choice": "both"}, 400),
        ({"turn": 0, "choice": ["left"]}, 400),
        ({"turn": 0, "choice": 1}, 400),
        ({"turn": 0, "choice": "undo"}, 409),
        (b" " * (MAX_BODY + 1), 413),
    ],
)
def test_a_body_that_is_no_act_is_refused(server, body, status):
    assert ask(server, "POST", "/rate", body)[0] == status


def test_lengths_paths_and_methods_that_no_page_sends(server):
    for length, status in (("x", 411), ("-1", 411), ("9" * 30, 411), ("99999", 413)):
        assert ask(server, "POST", "/rate", ACT, Content_Length=length)[0] == status
    assert ask(server, "POST", "/rate", ACT, leave_out=["Content-Length"])[0] == 411
    for path in ("/ratings.jsonl", "/../rate.py", "//x", "/state/", "/rate", "http://x/", "/?a"):
        assert ask(server, "GET", path)[0] == 404, path
    for path in ("/", "/state", "/rate/"):
        assert ask(server, "POST", path, ACT)[0] == 404, path
    for method in ("PUT", "DELETE", "OPTIONS", "TRACE", "BREW"):
        assert ask(server, method, "/rate", ACT)[0] == 405, method


@pytest.mark.parametrize(
    "request_",
    [
        b"\x16\x03\x01\x02\x00\x01\xfc\r\n\r\n",  # TLS
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 200 + b"\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"y" * 70_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
    ],
    ids=range(8),
)
def test_what_is_no_request_gets_4xx(server, request_):
    with socket.create_connection(server.server_address, timeout=10) as client:
        client.sendall(request_)
        client.shutdown(socket.SHUT_WR)
        assert client.recv(100).startswith(b"HTTP/1.0 4")


def test_a_client_that_goes_away_or_is_silent_disturbs_nobody(server):
    with socket.create_connection(server.server_address) as silent:
        with socket.create_connection(server.server_address) as gone:
            gone.sendall(b"POST /rate HTTP/1.1\r\nContent-Length: 100\r\n")
        assert ask(server, "GET", "/state")[0] == 200
        silent.sendall(b"G")


def test_every_answer_has_a_policy_that_runs_nothing_else(server):
    answers = [ask(server, "GET", path) for path in ("/", "/state", "/no")]
    for _, _, headers in answers:
        rules = headers["Content-Security-Policy"].split("; ")
        assert "default-src 'none'" in rules and "require-trusted-types-for 'script'" in rules
        assert not any("unsafe" in rule or "http" in rule or "*" in rule for rule in rules)
        assert headers["Cache-Control"] == "no-store"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer" and "Server" not in headers
    page = answers[0][1]
    assert page == PAGE and "http" not in page.replace("http-equiv", "").lower()
    assert "innerHTML" not in page and "insertAdjacentHTML" not in page and ' style="' not in page
    assert json.dumps(answers[1][1]).isascii()


def test_the_checks_above_can_fail(tmp_path):
    """The same request, unchanged, is done."""
    with serving(tmp_path / "ratings.jsonl", ITEMS) as other:
        assert ask(other, "POST", "/rate", ACT)[0] == 200 and rate(other, "tie")["done"] == 2
