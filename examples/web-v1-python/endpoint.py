#!/usr/bin/env python3
"""A provider in Python by interface V1, that of Virtual Kubelet's web provider. Only the standard library is needed.

Pods are processes of this machine: the first container's command, with its output as the log.
`endpoint.py --listen 127.0.0.1:3000`, then a VirtualNode of type web with `url: http://127.0.0.1:3000`.
"""

import argparse
import datetime
import http.server
import json
import os
import signal
import subprocess
import threading
import urllib.parse


def now():
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


class Pod:
    """A pod as it was given, and a process for each container."""

    def __init__(self, given):
        self.given, self.start, self.logs, self.processes = given, now(), {}, {}
        for container in given["spec"]["containers"]:
            name, lines = container["name"], []
            env = dict(PATH=os.environ.get("PATH", os.defpath), **{v["name"]: v.get("value", "") for v in container.get("env") or []})
            process = subprocess.Popen(
                (container.get("command") or ["true"]) + (container.get("args") or []), env=env,
                cwd=container.get("workingDir") or None,
                start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )
            threading.Thread(target=lambda p=process, kept=lines: kept.extend(p.stdout), daemon=True).start()
            self.processes[name], self.logs[name] = process, lines

    def status(self):
        statuses = []
        for name, process in self.processes.items():
            code = process.poll()
            state = {"running": {"startedAt": self.start}}
            if code is not None:
                state = {"terminated": {"exitCode": code if code >= 0 else 128 - code, "reason": "Error" if code else "Completed"}}
            statuses.append({
                "name": name, "image": "", "imageID": "", "restartCount": 0, "ready": code is None, "state": state,
            })
        codes = [process.poll() for process in self.processes.values()]
        phase = "Running" if None in codes else "Failed" if any(codes) else "Succeeded"
        return {"phase": phase, "startTime": self.start, "podIP": "127.0.0.1", "containerStatuses": statuses}

    def stop(self):
        for process in self.processes.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def handle_request(self):
        url = urllib.parse.urlsplit(self.path)
        self.query = {key: values[0] for key, values in urllib.parse.parse_qs(url.query).items()}
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        routes = {
            ("POST", "/createPod"): self.create, ("PUT", "/updatePod"): self.update, ("DELETE", "/deletePod"): self.delete,
            ("GET", "/getPod"): self.get, ("GET", "/getPodStatus"): self.status, ("GET", "/getPods"): self.list,
            ("GET", "/getContainerLogs"): self.logs,
            ("GET", "/capacity"): lambda: {"cpu": str(os.cpu_count()), "memory": "4Gi", "pods": "20"},
            ("GET", "/nodeConditions"): lambda: [{"type": "Ready", "status": "True", "reason": "Listening"}],
            ("GET", "/nodeAddresses"): lambda: [],
        }
        route = routes.get((self.command, url.path))
        try:
            answer = route() if route else (404, "no such path")
        except (KeyError, ValueError, OSError) as error:
            answer = (400, f"{type(error).__name__}: {error}")
        status, body = answer if isinstance(answer, tuple) else (200, answer)
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain" if isinstance(body, str) else "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PUT = do_DELETE = handle_request

    def log_message(self, *args):
        pass

    def named(self):
        """The pod of a query, or none."""
        return self.server.pods.get((self.query["namespace"], self.query.get("name") or self.query.get("podName")))

    def given(self):
        """The pod of a body, and the name that it is kept by."""
        pod = json.loads(self.body)
        return pod, (pod["metadata"]["namespace"], pod["metadata"]["name"])

    def create(self):
        pod, key = self.given()
        with self.server.lock:
            if key in self.server.pods:
                return 409, "there is a pod of this name"
            self.server.pods[key] = Pod(pod)
        return 201, ""

    def update(self):
        pod, key = self.given()
        if key not in self.server.pods:
            return 404, "no such pod"
        self.server.pods[key].given = pod
        return ""

    def delete(self):
        _, key = self.given()
        with self.server.lock:
            pod = self.server.pods.pop(key, None)
        if pod is None:
            return 404, "no such pod"
        pod.stop()
        return ""

    def whole(self, pod):
        return {**pod.given, "status": pod.status()}

    def get(self):
        pod = self.named()
        return self.whole(pod) if pod else (404, "no such pod")

    def status(self):
        pod = self.named()
        return pod.status() if pod else (404, "no such pod")

    def list(self):
        with self.server.lock:
            return [self.whole(pod) for pod in self.server.pods.values()]

    def logs(self):
        pod = self.named()
        lines = pod.logs.get(self.query["containerName"]) if pod else None
        if lines is None:
            return 404, "no such container"
        tail = int(self.query.get("tail") or 0)
        return "".join(lines[-tail:])


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--listen", default="127.0.0.1:3000", help="address and port; port 0 takes a free one")
    host, port = parser.parse_args().listen.rsplit(":", 1)
    server = Server((host, int(port)), Handler)
    server.pods, server.lock = {}, threading.Lock()
    print(f"listening on http://{host}:{server.server_address[1]}", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    server.serve_forever()
    for pod in server.pods.values():
        pod.stop()


if __name__ == "__main__":
    main()
