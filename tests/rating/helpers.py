"""Completions to rate, a server in a thread, and a rater who is simulated."""

import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from data.examples import Example
from rating.pairs import Completion, Item
from rating.ratings_file import RatingsFile
from rating.server import Server
from rating.session import Session


def completions(questions: int = 12, steps: int = 2, texts: int = 4) -> list[Completion]:
    """Completions of a run, some of them equal."""
    return [
        Completion(f"q{q}", step, f"<think>t{q}.{n}</think><answer>{'x' * n}</answer>")
        for step in range(1, steps + 1)
        for q in range(questions)
        for n in [*range(texts), 0]
    ]


def examples(
    ids, question: str = "Which flower?", pictures: int = 1, target: str = "secret target"
) -> dict[str, Example]:
    images = tuple(Image.new("RGB", (64, 48), (40 * n, 90, 200)) for n in range(pictures))
    return {id: Example(id, images, question, target) for id in ids}


@contextmanager
def serving(path: Path, items: list[Item], scale: int | None = None, **more) -> Iterator[Server]:
    """A server in this process, with the file unlocked at its end."""
    file = RatingsFile(path)
    about = examples({item.id for item in items}, **more)
    session = Session(items, about, file, "simulated", scale)
    try:
        with Server(session) as server:
            thread = threading.Thread(target=server.serve_forever, args=(0.05,))
            thread.start()
            try:
                yield server
            finally:
                server.shutdown()
                thread.join()
    finally:
        file.close()


def ask(
    server_or_url, method: str, path: str, body: object = None, leave_out=(), **changed: str
) -> tuple[int, dict | str, dict]:
    """(status, content, headers) of a request as the page sends it, but for what is changed."""
    url = server_or_url if isinstance(server_or_url, str) else server_or_url.url
    host, token = url.removeprefix("http://").split("/#")
    headers = {"Host": host, "X-Token": token, "Origin": f"http://{host}"}
    headers |= {name.replace("_", "-"): value for name, value in changed.items()}
    data = b"" if body is None else body
    data = data if isinstance(data, bytes) else json.dumps(data).encode()
    headers.setdefault("Content-Length", str(len(data)))
    connection = http.client.HTTPConnection(host, timeout=10)
    connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    for name in headers.keys() - set(leave_out):
        connection.putheader(name, headers[name])
    connection.endheaders(data)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    is_json = answer.headers["Content-Type"] == "application/json"
    return answer.status, json.loads(text) if is_json else text, dict(answer.headers)


def rate(server, choice) -> dict:
    """One act, as the page would do it now; returns the new state."""
    _, state, _ = ask(server, "GET", "/state")
    status, new, _ = ask(server, "POST", "/rate", {"turn": state["turn"], "choice": choice})
    assert status == 200, new
    return new


def simulated_choice(state: dict) -> str:
    """What the simulated rater says of a pair: the longer text is better."""
    left, right = map(len, state["texts"])
    return "tie" if left == right else "left" if left > right else "right"
