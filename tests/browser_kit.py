"""A real browser for tests: Chromium, driven through a pipe by the DevTools protocol."""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
from pathlib import Path

PATIENCE = 60  # seconds
NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((path for name in NAMES if (path := shutil.which(name))), None)


def pipe() -> list[int]:
    """A pipe whose ends have numbers above those that the browser wants."""
    ends = os.pipe()
    moved = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends]
    for end in ends:
        os.close(end)
    return moved


class Browser:
    """A page in a headless browser.

    Attributes:
        complaints: uncaught exceptions, console errors and warnings, and failed loads.
    """

    def __init__(self, profile: Path, width: int = 1200, height: int = 900):
        to_browser, from_browser = pipe(), pipe()

        def connect() -> None:  # the browser reads from 3 and writes to 4
            os.dup2(to_browser[0], 3)
            os.dup2(from_browser[1], 4)

        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"]
        options += ["--disable-dev-shm-usage"]  # it is small in containers
        options += [f"--user-data-dir={profile}", "--no-first-run", "--disable-extensions"]
        self.process = subprocess.Popen(
            [CHROMIUM, *options, "about:blank"],
            preexec_fn=connect,
            close_fds=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser[0])
        os.close(from_browser[1])
        self.input, self.output = os.fdopen(to_browser[1], "wb"), os.fdopen(from_browser[0], "rb")
        self.rest, self.count, self.session, self.complaints = b"", 0, None, []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Runtime", "Log", "Page"):
            self.call(f"{domain}.enable")
        self.resize(width, height)

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_) -> None:
        self.process.kill()
        self.process.wait()
        self.input.close()
        self.output.close()

    def call(self, method: str, **parameters) -> dict:
        """The result of a command; what the page says meanwhile is noted."""
        self.count += 1
        message = {"id": self.count, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        self.input.write(json.dumps(message).encode() + b"\0")
        self.input.flush()
        while True:
            answer = self.receive()
            if answer.get("id") == self.count:
                assert "error" not in answer, answer
                return answer["result"]

    def receive(self) -> dict:
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.output], [], [], PATIENCE)
            assert ready, f"the browser has said nothing for {PATIENCE} s"
            part = os.read(self.output.fileno(), 1 << 20)
            assert part, "the browser has ended"
            self.rest += part
        text, _, self.rest = self.rest.partition(b"\0")
        message = json.loads(text)
        kind, details = message.get("method"), message.get("params", {})
        if kind == "Runtime.exceptionThrown":
            self.complaints.append(details["exceptionDetails"])
        elif kind == "Runtime.consoleAPICalled" and details["type"] in ("error", "warning"):
            self.complaints.append(details["args"])
        elif kind == "Log.entryAdded" and details["entry"]["level"] in ("error", "warning"):
            self.complaints.append(details["entry"])
        return message

    def open(self, page: Path) -> None:
        """Loads a page and waits until its script has ended."""
        self.call("Page.navigate", url=page.resolve().as_uri())
        while not self.run("document.documentElement?.dataset.ready === 'yes'"):
            pass

    def run(self, expression: str):
        """The value of a JavaScript expression."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def resize(self, width: int, height: int = 900) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **metrics)

    def dark(self) -> None:
        scheme = [{"name": "prefers-color-scheme", "value": "dark"}]
        self.call("Emulation.setEmulatedMedia", features=scheme)

    def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, text=key)

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))
