#!/usr/bin/env python3
"""A provider for vnode in Python, by interface V2 (docs/provider-http.yaml). Only the standard library is needed.

Pods are processes of this machine. `endpoint.py --listen 127.0.0.1:3000`, then a VirtualNode of type web with
`url: http://127.0.0.1:3000`. With --token-file, requests must bring that token; --cert, --key and --client-ca are for TLS.
"""

import argparse
import fcntl
import hmac
import http.server
import json
import os
import platform
import pty
import re
import select
import signal
import ssl
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import urllib.parse

from pods import Node, Problem, connect, not_found
from websocket import WebSocket

FEATURES = """configMapVolumes secretVolumes downwardAPIVolumes projectedVolumes serviceAccountTokens clusterTrustBundles
    volumeUpdates emptyDir subPath initContainers multipleContainers restartPolicy gracePeriod serviceLinks stdin""".split()
ABOUT = {
    "interface": "vnode.dev/provider",
    "versions": ["v2"],
    "abilities": {
        "logs": True, "exec": True, "attach": True, "portForward": True, "stats": True, "watch": True, "volumeFiles": "Live",
    },
    "podFeatures": FEATURES,
}
LARGEST = 64 << 20
ALIVE = 10
POD = r"/v2/nodes/(?P<node>[^/]+)/pods/(?P<pod>[^/]+)"
CONTAINER = POD + r"/containers/(?P<container>[^/]+)"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Longer than the peer's pings are apart.
    timeout = 120
    disable_nagle_algorithm = True

    # What each path is, in the order of the interface's description.
    routes = [
        ("GET", r"/v2/capabilities", "capabilities"),
        ("GET", r"/v2/nodes/(?P<node>[^/]+)", "describe"),
        ("GET", r"/v2/nodes/(?P<node>[^/]+)/stats", "stats"),
        ("GET", r"/v2/nodes/(?P<node>[^/]+)/events", "events"),
        ("GET", r"/v2/nodes/(?P<node>[^/]+)/pods", "list"),
        ("POST", r"/v2/nodes/(?P<node>[^/]+)/pods", "create"),
        ("GET", POD, "get"),
        ("PUT", POD, "update"),
        ("DELETE", POD, "remove"),
        ("POST", POD + "/stop", "stop"),
        ("GET", POD + "/portforward", "port_forward"),
        ("GET", CONTAINER + "/logs", "logs"),
        ("GET", CONTAINER + "/exec", "exec"),
        ("GET", CONTAINER + "/attach", "attach"),
    ]

    def handle_request(self):
        path, _, query = self.path.partition("?")
        self.query = urllib.parse.parse_qs(query, keep_blank_values=True)
        self.headers_sent = False
        size = int(self.headers.get("Content-Length") or 0)
        if size > LARGEST:
            self.close_connection = True
            return self.answer_problem(Problem(413, "rejected", "the request is too large", reason="TooLarge"))
        body = self.rfile.read(size)
        try:
            if not self.is_known():
                raise Problem(401, "unauthorized", "the bearer token is not the one that this service knows")
            for method, pattern, name in self.routes:
                found = re.fullmatch(pattern, path)
                if found and method == self.command:
                    parts = {key: urllib.parse.unquote(value) for key, value in found.groupdict().items()}
                    if "node" in parts:
                        parts["node"] = self.server.node(parts["node"])
                        if self.command != "GET":
                            parts["node"].check_epoch(int(self.headers.get("Vnode-Epoch") or 0))
                    if "pod" in parts:
                        parts["pod"] = parts["node"].pod(parts["pod"])
                    if "container" in parts:
                        parts["container"] = parts["pod"].container(parts["container"])
                    if size:
                        parts["body"] = json.loads(body)
                    return getattr(self, name)(**parts)
            raise Problem(404, "no-such-path", f"{self.command} {path} is no path of this interface")
        except Problem as problem:
            self.answer_problem(problem)
        except (BrokenPipeError, ConnectionResetError, TimeoutError):
            self.close_connection = True
        except (KeyError, ValueError, TypeError) as error:
            self.answer_problem(Problem(400, "bad-request", f"{type(error).__name__}: {error}"))

    do_GET = do_POST = do_PUT = do_DELETE = handle_request

    def is_known(self):
        if not self.server.token_file:
            return True
        # Read each time, so that a new token needs no restart.
        with open(self.server.token_file) as file:
            wanted = f"Bearer {file.read().strip()}"
        return hmac.compare_digest(self.headers.get("Authorization", "").encode(), wanted.encode())

    def log_message(self, *args):
        if self.server.verbose:
            super().log_message(*args)

    # Answers.

    def answer(self, body=None, status=200, kind="application/json"):
        data = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        if data:
            self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def answer_problem(self, problem):
        if self.headers_sent:
            self.close_connection = True
            return
        self.answer(problem.body, problem.status, "application/problem+json")

    def begin(self, kind):
        """An answer that goes on, in chunks."""
        self.headers_sent = True
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.flush()

    def chunk(self, data):
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def end(self):
        self.wfile.write(b"0\r\n\r\n")

    def value(self, name, default=None):
        return self.query.get(name, [default])[0]

    def flag(self, name):
        return self.value(name, "false") == "true"

    # The node.

    def capabilities(self):
        self.answer(ABOUT)

    def describe(self, node):
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        arch = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
        self.answer({
            "capacity": {"cpu": str(os.cpu_count()), "memory": f"{memory >> 10}Ki", "pods": "50"},
            "operatingSystem": "linux", "architecture": arch, "version": f"python {platform.python_version()}",
        })

    def stats(self, node):
        with node.changed:
            pods = list(node.pods.values())
        used = []
        for pod in pods:
            containers = [c.usage() for c in pod.containers.values()]
            meta = pod.given["pod"]["metadata"]
            used.append({
                "uid": meta["uid"], "namespace": meta["namespace"], "name": meta["name"], "startTime": pod.started,
                "containers": [c for c in containers if c],
            })
        self.answer({"pods": used})

    def events(self, node):
        try:
            cursor = int(self.headers.get("Last-Event-ID") or node.sequence)
        except ValueError:
            cursor = -1
        self.begin("text/event-stream")
        while not self.server.stopping.is_set():
            with node.changed:
                events = node.since(cursor)
                if events == []:
                    node.changed.wait(ALIVE)
                    events = node.since(cursor)
            if events is None:
                self.chunk(b"event: reset\ndata: {}\n\n")
                break
            for cursor, kind, data in events:
                self.chunk(f"id: {cursor}\nevent: {kind}\ndata: {json.dumps(data)}\n\n".encode())
            if not events:
                self.chunk(b": still here\n\n")
        self.end()

    # Pods.

    def list(self, node):
        with node.changed:
            pods = [pod.state(node.sequence) for pod in node.pods.values()]
            self.answer({"pods": pods, "cursor": str(node.sequence)})

    def create(self, node, body):
        self.answer(None, 201 if node.create(body) else 200)

    def get(self, node, pod):
        with node.changed:
            self.answer(pod.state(node.sequence))

    def update(self, node, pod, body):
        pod.update(body)
        self.answer()

    def stop(self, node, pod, body):
        pod.stop(body["gracePeriodSeconds"])
        self.answer(None, 202)

    def remove(self, node, pod):
        node.remove(pod.given["pod"]["metadata"]["uid"])
        self.answer(None, 204)

    # Containers.

    def logs(self, node, pod, container):
        tail = self.value("tailLines")
        lines = container.lines(
            self.flag("follow"), self.flag("previous"), None if tail is None else int(tail), self.value("sinceTime")
        )
        self.begin("text/plain")
        for line in lines:
            self.chunk(line)
        self.end()

    def exec(self, node, pod, container):
        if not container.alive():
            raise not_found(f"running container {container.name}")
        tty = self.flag("tty")
        options = dict(cwd=container.folder(), env=container.environment())
        try:
            if tty:
                ours, theirs = pty.openpty()
                process = subprocess.Popen(
                    self.query["command"], stdin=theirs, stdout=theirs, stderr=theirs,
                    start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0), **options,
                )
                os.close(theirs)
            else:
                process = subprocess.Popen(
                    self.query["command"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                    start_new_session=True, **options,
                )
        except OSError as error:
            raise Problem(422, "rejected", str(error), reason="StartError") from error
        try:
            socket = WebSocket(self, "v5.channel.k8s.io")
        except ValueError:
            process.kill()
            raise
        self.headers_sent = True
        if tty:
            outputs, write, resize = {ours: 1}, lambda data: os.write(ours, data), ours
        else:
            outputs = {process.stdout.fileno(): 1, process.stderr.fileno(): 2}
            write, resize = lambda data: os.write(process.stdin.fileno(), data), None
        end = lambda: write(b"\x04") if tty else process.stdin.close()

        def client_gone():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)

        threading.Thread(target=receive, args=(socket, write, end, resize, client_gone), daemon=True).start()
        copy(outputs, socket)
        say_status(socket, process.wait())

    def attach(self, node, pod, container):
        if not container.alive():
            raise not_found(f"running container {container.name}")
        process, attempt = container.process, container.attempt
        socket = WebSocket(self, "v5.channel.k8s.io")
        self.headers_sent = True
        gone = threading.Event()

        def listener(channel, data):
            socket.send(bytes([channel]) + data)

        def write(data):
            if process.stdin:
                process.stdin.write(data)
                process.stdin.flush()

        def client_gone():
            gone.set()
            with container.changed:
                container.changed.notify_all()

        end = lambda: process.stdin.close() if process.stdin else None
        container.listeners.append(listener)
        threading.Thread(target=receive, args=(socket, write, end, None, client_gone), daemon=True).start()
        with container.changed:
            while not gone.is_set() and attempt == container.attempt and "terminated" not in container.state:
                container.changed.wait(5)
        container.listeners.remove(listener)
        if not gone.is_set():
            say_status(socket, process.wait())

    def port_forward(self, node, pod):
        there = connect(int(self.value("port")))
        try:
            socket = WebSocket(self, "bytes.vnode.dev")
        except ValueError:
            there.close()
            raise
        self.headers_sent = True
        there.settimeout(None)

        def outward():
            while (data := socket.receive()) is not None:
                try:
                    there.sendall(data) if data else there.shutdown(1)
                except OSError:
                    break
            there.close()

        threading.Thread(target=outward, daemon=True).start()
        try:
            while data := there.recv(32768):
                if not socket.send(data):
                    break
        except OSError:
            pass
        socket.send(b"")
        socket.close()


def receive(socket, write, end, resize, gone):
    """What the client sends: input, its end, and sizes of its terminal."""
    while message := socket.receive():
        try:
            if message[0] == 0:
                write(message[1:])
            elif message == b"\xff\x00":
                end()
            elif message[0] == 4 and resize is not None:
                size = json.loads(message[1:])
                fcntl.ioctl(resize, termios.TIOCSWINSZ, struct.pack("HHHH", size["Height"], size["Width"], 0, 0))
        except (OSError, ValueError):
            # The command does not read any more.
            pass
    gone()


def copy(outputs, socket):
    """What a command writes, until it closes all of its outputs."""
    open_outputs = dict(outputs)
    while open_outputs:
        for fd in select.select(list(open_outputs), [], [])[0]:
            try:
                data = os.read(fd, 32768)
            except OSError:
                data = b""
            if data:
                socket.send(bytes([open_outputs[fd]]) + data)
            else:
                del open_outputs[fd]


def say_status(socket, code):
    """How a command ended, as Kubernetes writes it."""
    code = code if code >= 0 else 128 - code
    status = {"status": "Success"}
    if code:
        causes = [{"reason": "ExitCode", "message": str(code)}]
        status = {"status": "Failure", "reason": "NonZeroExitCode", "details": {"causes": causes}}
    socket.send(b"\x03" + json.dumps(status).encode())
    socket.close()


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address, folder, token_file=None, verbose=False):
        super().__init__(address, Handler)
        self.folder, self.token_file, self.verbose = folder, token_file, verbose
        self.nodes, self.lock, self.stopping = {}, threading.Lock(), threading.Event()

    def node(self, uid):
        if "/" in uid or uid.startswith("."):
            raise not_found(f"node {uid}")
        with self.lock:
            if uid not in self.nodes:
                self.nodes[uid] = Node(uid, os.path.join(self.folder, uid))
            return self.nodes[uid]

    def stop_pods(self):
        self.stopping.set()
        for node in self.nodes.values():
            for uid in list(node.pods):
                node.remove(uid)

    def handle_error(self, request, client_address):
        # Connections that break are no news.
        if not isinstance(sys.exc_info()[1], (OSError, ssl.SSLError)):
            super().handle_error(request, client_address)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--listen", default="127.0.0.1:3000", help="address and port; port 0 takes a free one")
    parser.add_argument("--state", help="where pods have their files; a temporary folder unless given")
    parser.add_argument("--token-file", help="a file with the bearer token that requests must bring")
    parser.add_argument("--cert", help="serve TLS with this certificate")
    parser.add_argument("--key", help="the key of --cert")
    parser.add_argument("--client-ca", help="clients must have a certificate of this authority")
    parser.add_argument("--verbose", action="store_true", help="write each request to standard error")
    args = parser.parse_args()
    host, port = args.listen.rsplit(":", 1)
    with tempfile.TemporaryDirectory(prefix="vnode-web-") as temporary:
        server = Server((host, int(port)), args.state or temporary, args.token_file, args.verbose)
        if args.cert:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(args.cert, args.key)
            if args.client_ca:
                context.verify_mode = ssl.CERT_REQUIRED
                context.load_verify_locations(args.client_ca)
            server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        scheme = "https" if args.cert else "http"
        print(f"listening on {scheme}://{host}:{server.server_address[1]}", flush=True)
        signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            pass
        server.stop_pods()


if __name__ == "__main__":
    main()
