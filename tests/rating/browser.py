"""A headless chromium that tests drive: messages of JSON, ended by a zero byte, over two pipes."""

import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = "--headless --no-sandbox --disable-gpu --no-first-run --remote-debugging-pipe".split()
PATIENCE = 30.0  # seconds


class Browser:
    """One browser with one window. `console` has what it complained about: errors, policies."""

    def __init__(self, profile: Path):
        ours, theirs = zip(*(os.pipe()[:: 1 - 2 * i] for i in range(2)), strict=True)
        theirs = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in theirs]  # out of the way of 3, 4
        self.read_end, self.write_end = ours[0], ours[1]
        self.process = subprocess.Popen(
            [PROGRAM, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            close_fds=False,
            preexec_fn=lambda: (os.dup2(theirs[1], 3), os.dup2(theirs[0], 4)),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for end in theirs:
            os.close(end)
        self.buffer, self.count, self.session, self.console = b"", 0, None, []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> dict:
        self.count += 1
        message = {"id": self.count, "method": method, "params": params}
        message |= {} if self.session is None else {"sessionId": self.session}
        os.write(self.write_end, json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != self.count:
            if answer.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.console.append(json.dumps(answer["params"]))
        assert "error" not in answer, answer
        return answer["result"]

    def _receive(self) -> dict:
        while b"\0" not in self.buffer:
            assert select.select([self.read_end], [], [], PATIENCE)[0], "the browser is silent"
            data = os.read(self.read_end, 1 << 16)
            assert data, "the browser has ended"
            self.buffer += data
        message, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(message)

    def open(self, url: str, width: int = 1300, height: int = 900, dark: bool = False) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.send("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        self.send("Page.navigate", url="about:blank")  # a new token behind # is no new page
        self.console.clear()
        self.send("Page.navigate", url=url)
        self.wait("document.readyState == 'complete' && !!document.querySelector('nav button')")

    def value(self, script: str) -> Any:
        result = self.send("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, script: str) -> None:
        end = time.monotonic() + PATIENCE
        while not self.value(script):
            assert time.monotonic() < end, f"never true: {script}"
            time.sleep(0.01)

    def press(self, key: str, **more: Any) -> None:
        self.send("Input.dispatchKeyEvent", type="keyDown", key=key, text=key, **more)
        self.send("Input.dispatchKeyEvent", type="keyUp", key=key)

    def click(self, words: str) -> None:
        """Click at the button whose text has these words."""
        button = (
            f"[...document.querySelectorAll('button')].find(b => b.innerText.includes({words!r}))"
        )
        x, y = self.value(
            f"(r => [r.x + r.width / 2, r.y + r.height / 2])({button}.getBoundingClientRect())"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def close(self) -> None:
        os.close(self.write_end)  # chromium ends with its pipe
        try:
            self.process.wait(PATIENCE)
        finally:
            self.process.kill()
            self.process.wait()
            os.close(self.read_end)
