"""Drives the fleet page in headless Chromium, against ten thousand made-up nodes that change all the time.

    python3 e2e/page/drive.py [FOLDER]     screenshots go there

Prints "page: N passed, 0 failed"; says loudly that nothing was tested where there is no Chromium.
"""

import base64
import http.server
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time

NODES = 10_000
PAGE = pathlib.Path(__file__).parents[2] / "src/telemetry/page"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def node(i, state=None):
    state = state or ("not_ready" if i % 101 == 7 else "ready")
    reason = "ProviderUnreachable" if state == "not_ready" else ""
    pods = {"total": i % 50, "running": i % 50, "pending": 0, "failed": 0}
    return {"name": f"sim-{i:05}", "state": state, "reason": reason, "provider": "mock", "shard": f"vnode-{i % 3}",
            "zone": "abcd"[i % 4], "endpoint": f"10.0.0.1:{20000 + i}", "cordoned": i % 500 == 3, "pods": pods}  # fmt: skip


class Server(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"

    def log_message(self, *_):
        pass

    def do_GET(self):
        path = self.path.split("?")[0]
        if path == "/fleet/stream":
            if self.headers.get("authorization") != "Bearer right":
                return self.reply(401, "text/plain", b"Unauthorized")
            self.head(200, "text/event-stream")
            try:
                self.tell("all", [node(i) for i in range(NODES)], [])
                while True:
                    time.sleep(0.2)
                    self.tell("change", [node(random.randrange(100, NODES)) for _ in range(500)], [])
            except OSError:
                return None
        if path.startswith("/fleet/nodes/"):
            row = node(int(path[-5:]))
            row["name"] = path.rsplit("/", 1)[1]
            condition = {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z",
                         "message": "<img src=x onerror=alert(1)>"}  # fmt: skip
            pod = {"namespace": "default", "name": "web-1", "phase": "Running", "ready": 1, "containers": 1,
                   "restarts": 0, "created": "2026-01-01T00:00:00Z"}  # fmt: skip
            detail = {"node": row, "conditions": [condition], "capacity": {"cpu": "4"}, "listed": True, "podList": [pod]}
            return self.reply(200, "application/json", json.dumps(detail).encode())
        file = PAGE / ("index.html" if path == "/fleet" else pathlib.Path(path).name)
        if not file.is_file():
            return self.reply(404, "text/plain", b"")
        kinds = {".html": "text/html; charset=utf-8", ".css": "text/css", ".js": "text/javascript"}
        return self.reply(200, kinds[file.suffix], file.read_bytes())

    def head(self, code, kind):
        self.send_response(code)
        self.send_header("content-type", kind)
        self.send_header("content-security-policy", "default-src 'none'; script-src 'self'; style-src 'self'; "
                         "connect-src 'self'; img-src data:")  # fmt: skip
        self.end_headers()

    def reply(self, code, kind, body):
        self.head(code, kind)
        self.wfile.write(body)

    def tell(self, event, changed, gone):
        self.wfile.write(f"event: {event}\ndata: {json.dumps({'set': changed, 'gone': gone})}\n\n".encode())


class Browser:
    """Chromium over its debugging pipe: JSON messages that end with a zero."""

    def __init__(self, folder):
        (theirs_in, self.out), (self.inp, theirs_out) = os.pipe(), os.pipe()

        def hand_over():
            # 3 and 4 may be ends of these very pipes.
            a, b = os.dup2(theirs_in, 90), os.dup2(theirs_out, 91)
            os.dup2(a, 3)
            os.dup2(b, 4)

        self.process = subprocess.Popen(
            [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe",
             f"--user-data-dir={folder}", "--window-size=1500,900", "about:blank"],
            preexec_fn=hand_over, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(theirs_in)
        os.close(theirs_out)
        self.rest, self.id, self.session, self.errors = b"", 0, None, []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method, **params):
        self.id += 1
        message = {"id": self.id, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self.rest:
                read = os.read(self.inp, 1 << 16)
                if not read:
                    raise RuntimeError("Chromium has ended")
                self.rest += read
            text, self.rest = self.rest.split(b"\0", 1)
            answer = json.loads(text)
            if answer.get("method") == "Runtime.exceptionThrown":
                self.errors.append(json.dumps(answer["params"]["exceptionDetails"])[:400])
            if answer.get("id") == self.id:
                if "error" in answer:
                    raise RuntimeError(answer["error"])
                return answer["result"]

    def run(self, script):
        result = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in result:
            raise RuntimeError(result["exceptionDetails"])
        return result["result"].get("value")

    def key(self, key, text=None):
        codes = {"ArrowDown": 40, "End": 35, "Home": 36, "Enter": 13, "Escape": 27, "Tab": 9}
        extra = {"windowsVirtualKeyCode": codes[key]} if key in codes else {"text": text or key}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **extra)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def until(self, script, patience=15):
        end = time.monotonic() + patience
        while time.monotonic() < end:
            if self.run(script):
                return True
            time.sleep(0.1)
        return False

    def shot(self, file):
        data = self.call("Page.captureScreenshot", format="png")["data"]
        file.write_bytes(base64.b64decode(data))


def main():
    if not CHROMIUM:
        print("!!! THE FLEET PAGE IS NOT TESTED: there is no chromium", file=sys.stderr)
        return 0
    out = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
    out.mkdir(parents=True, exist_ok=True)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    browser = Browser(tempfile.mkdtemp())
    passed, failed = 0, []

    def check(what, truth):
        nonlocal passed
        if truth:
            passed += 1
        else:
            failed.append(what)
            print("FAILED:", what)

    text = "document.querySelector('%s').textContent"
    try:
        browser.call("Page.navigate", url=f"http://127.0.0.1:{server.server_port}/fleet?group=zone")
        check("without a token it asks for one", browser.until("document.querySelector('dialog')?.open"))
        log_in = "document.querySelector('#token').value='%s';document.querySelector('#login button').click()"
        browser.run(log_in % "wrong")
        check("a wrong token is refused with a word",
              browser.until("document.querySelector('#login').open && document.querySelector('#refused').textContent"))  # fmt: skip
        browser.run(log_in % "right")
        check("ten thousand nodes are counted", browser.until(text % "#summary" + ".includes('of 10000 nodes ready')"))
        check("it says that it is live", browser.run(text % "#link") == "live")
        check("few rows are elements", browser.run("document.querySelectorAll('.row').length") < 60)
        browser.run("document.querySelector('#list').focus()")
        browser.key("End")
        check("End goes to the last node", browser.until("document.querySelector('[aria-selected=true]').dataset.name === 'sim-09999'"))
        browser.key("Home")
        browser.key("ArrowDown")
        check("arrows move and the active row is announced", browser.run(
            "document.getElementById(document.querySelector('#list').getAttribute('aria-activedescendant'))?.dataset.name"
        ) == "sim-00004")  # fmt: skip
        browser.key("Enter")
        check("Enter opens the node and moves the focus there", browser.until("document.activeElement.id === 'detail'"))
        check("what the cluster says is text, never markup", browser.run("!document.querySelector('#detail img')")
              and "onerror" in browser.run(text % "#detail"))  # fmt: skip
        check("pods are listed", "default/web-1" in browser.run(text % "#detail"))
        browser.shot(out / "light.png")
        browser.key("Escape")
        check("Escape closes it", browser.until("document.querySelector('#detail').hidden && document.activeElement.id === 'list'"))
        browser.key("/")
        check("/ goes to the search", browser.run("document.activeElement.id") == "query")
        for letter in "zone:b 004":
            browser.key(letter)
        check("a search by field and name narrows the list", browser.until(text % "#summary" + ".includes('shown')"))
        check("the address keeps the view", "q=zone" in browser.run("location.search"))
        browser.run("document.querySelector('[data-filter=cordoned]').click()")
        check("nothing found is said", browser.until("!document.querySelector('#none').hidden || document.querySelectorAll('.row').length < 3"))
        browser.run("document.querySelector('[data-filter=cordoned]').click();"
                    "document.querySelector('#query').value='';document.querySelector('#query').dispatchEvent(new Event('input'))")  # fmt: skip
        # While changes come in and the list scrolls, frames must still come.
        frames = browser.run(
            "new Promise((done) => { let n = 0; const start = performance.now(); const box = document.querySelector('#list');"
            "const frame = () => { n += 1; box.scrollTop += 97; performance.now() - start > 3000 ? done(n / 3) :"
            "requestAnimationFrame(frame); }; requestAnimationFrame(frame); })"
        )
        print(f"page: {frames:.0f} frames a second with {NODES} nodes, 2,500 changes a second and a scrolling list")
        check("it stays fluid", frames > 20)
        browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
        time.sleep(0.5)
        browser.shot(out / "dark.png")
        browser.call("Emulation.setDeviceMetricsOverride", width=420, height=850, deviceScaleFactor=2, mobile=True)
        time.sleep(0.5)
        browser.shot(out / "narrow.png")
        check("no error was thrown", not browser.errors)
        for error in browser.errors:
            print(error)
    finally:
        browser.process.kill()
        browser.process.wait()
    print(f"page: {passed} passed, {len(failed)} failed")
    return 1 if failed else 0


sys.exit(main())
