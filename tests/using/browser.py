"""Headless Chromium over its debugging pipe: a page, what it complains of, keys and clicks."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

_FLAGS = ["--no-sandbox", "--headless=new", "--disable-gpu", "--remote-debugging-pipe"]


class Browser:
    """One page; `complaints` has what its console says, `requests` what it fetched."""

    def __init__(self, chromium: str, folder: Path) -> None:
        down, up = os.pipe(), os.pipe()
        command = f'exec "$0" "$@" 3<&{down[0]} 4>&{up[1]}'
        words = [chromium, *_FLAGS, f"--user-data-dir={folder}", "about:blank"]
        self._process = subprocess.Popen(
            ["bash", "-c", command, *words],
            pass_fds=(down[0], up[1]),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(down[0])
        os.close(up[1])
        self._write, self._read = os.fdopen(down[1], "wb", 0), os.fdopen(up[0], "rb")
        self._number, self._session = 0, {}
        self.complaints: list[str] = []
        self.requests: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._session = {"sessionId": session}
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and return its result."""
        self._number += 1
        body = {"id": self._number, "method": method, "params": params, **self._session}
        self._write.write(json.dumps(body).encode() + b"\0")
        while (message := self._message()).get("id") != self._number:
            pass
        assert "error" not in message, message["error"]
        return message["result"]

    def open(self, path: Path) -> None:
        """Go to a file and wait until it is loaded."""
        self.call("Page.navigate", url=path.as_uri())
        while self._message().get("method") != "Page.loadEventFired":
            pass

    def value(self, expression: str) -> Any:
        """Return what a JavaScript expression gives."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        return found["result"].get("value")

    def press(self, key: str, code: int) -> None:
        """Press a key as a person does."""
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code
            )

    def click(self, x: float, y: float) -> None:
        """Press and release the mouse at a place of the window, pixels."""
        for kind in ("mousePressed", "mouseReleased"):
            more = {"button": "left", "clickCount": 1, "buttons": int(kind == "mousePressed")}
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def close(self) -> None:
        """End the browser."""
        self._write.close()
        self._process.terminate()
        self._process.wait(10)
        self._read.close()

    def _message(self) -> dict[str, Any]:
        data = bytearray()
        while (byte := self._read.read(1)) != b"\0":
            assert byte, "the browser has ended"
            data += byte
        message = json.loads(data)
        method, params = message.get("method"), message.get("params", {})
        if method in ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled"):
            self.complaints.append(json.dumps(params))
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"][:60])
        return message
