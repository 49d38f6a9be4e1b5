"""Pods as processes of this machine: the part of the example that has nothing to do with HTTP."""

import base64
import datetime
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import threading
import time

KEPT_EVENTS = 1000
BACKOFF = (1, 30)


def now():
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class Problem(Exception):
    """A refusal, by RFC 9457."""

    def __init__(self, status, word, detail, **more):
        super().__init__(detail)
        self.status = status
        self.body = {"type": f"https://vnode.dev/problems/{word}", "title": word, "status": status, "detail": detail, **more}


class Refused(Exception):
    """Why a container cannot be made as it is written."""


def not_found(what):
    return Problem(404, "not-found", f"{what} is not here")


class Node:
    """The pods of one node, and what has happened to them."""

    def __init__(self, uid, folder):
        self.uid, self.folder, self.pods, self.epoch = uid, folder, {}, 0
        self.changed = threading.Condition(threading.RLock())
        # Grows also over restarts, as the interface wants it.
        self.sequence = time.time_ns()
        self.events = []

    def check_epoch(self, epoch):
        """Refuses what comes late from an owner that is none any more."""
        with self.changed:
            if epoch < self.epoch:
                raise Problem(409, "stale-epoch", f"epoch {epoch} is over, it is {self.epoch} now")
            self.epoch = epoch

    def tell(self, kind, data):
        with self.changed:
            self.sequence += 1
            if kind == "pod":
                data = data.state(self.sequence)
            self.events = self.events[-KEPT_EVENTS:] + [(self.sequence, kind, data)]
            self.changed.notify_all()

    def since(self, cursor):
        """The events after a cursor; None when some of them are no longer known."""
        with self.changed:
            first = self.events[0][0] - 1 if self.events else self.sequence
            if cursor > self.sequence or cursor < first:
                return None
            return [event for event in self.events if event[0] > cursor]

    def pod(self, uid):
        with self.changed:
            if uid not in self.pods:
                raise not_found(f"pod {uid}")
            return self.pods[uid]

    def create(self, given):
        """True when the pod is new. The same pod twice is one pod."""
        uid = given["pod"]["metadata"]["uid"]
        if not uid or "/" in uid or uid.startswith("."):
            raise Problem(422, "invalid", "is not a uid", field="metadata.uid")
        for kind in ("initContainers", "containers"):
            for n, container in enumerate(given["pod"]["spec"].get(kind) or []):
                if not given["containers"].get(container["name"], {}).get("command"):
                    why = "this service runs programs of its machine and no images, so it needs a command"
                    raise Problem(422, "invalid", why, field=f"spec.{kind}[{n}].command")
        with self.changed:
            if uid in self.pods:
                return False
            self.pods[uid] = Pod(self, given)
        self.tell("pod", self.pods[uid])
        self.pods[uid].thread.start()
        return True

    def remove(self, uid):
        pod = self.pod(uid)
        pod.stop(0)
        pod.thread.join(10)
        shutil.rmtree(pod.folder, ignore_errors=True)
        with self.changed:
            self.pods.pop(uid, None)
        self.tell("gone", {"uid": uid})


class Pod:
    """One pod. A thread of its own runs its containers, one after the other or side by side."""

    def __init__(self, node, given):
        self.node, self.started, self.stopping, self.deadline = node, now(), threading.Event(), None
        self.folder = pathlib.Path(node.folder, given["pod"]["metadata"]["uid"])
        self.folder.mkdir(parents=True, exist_ok=True)
        self.containers = {}
        self.update(given)
        spec = given["pod"]["spec"]
        for kind in ("initContainers", "containers"):
            for container in spec.get(kind) or []:
                self.containers[container["name"]] = Container(self, container, kind == "initContainers")
        self.thread = threading.Thread(target=self.run, daemon=True)

    def update(self, given):
        self.given = given
        for name, volume in given["volumes"].items():
            folder = self.folder / "volumes" / name
            folder.mkdir(parents=True, exist_ok=True)
            wanted = {file["path"]: file for file in volume.get("files", [])}
            for path, file in wanted.items():
                target = folder / path
                target.parent.mkdir(parents=True, exist_ok=True)
                new = target.with_name(target.name + ".new")
                new.touch(mode=0o600)
                new.write_bytes(base64.b64decode(file["content"]))
                new.chmod(file["mode"])
                new.rename(target)
            for old in folder.rglob("*") if "files" in volume else []:
                if old.is_file() and str(old.relative_to(folder)) not in wanted:
                    old.unlink()

    def part(self, mount, kept):
        """What of a volume is mounted: all of it, or a part that lies inside; `kept` is a place for a copy of that."""
        volume = (self.folder / "volumes" / mount["volume"]).resolve()
        if not mount.get("subPath"):
            return volume
        part = (volume / mount["subPath"]).resolve()
        if not part.is_relative_to(volume):
            raise Refused(f"subPath {mount['subPath']!r} leads out of volume {mount['volume']!r}")
        if "files" not in self.given["volumes"].get(mount["volume"], {}):
            if not part.exists():
                part.mkdir(parents=True)
            return part
        # A part does not follow the changes of its volume.
        kept.parent.mkdir(parents=True, exist_ok=True)
        return shutil.copytree(part, kept) if part.is_dir() else shutil.copy2(part, kept)

    def run(self):
        policy = self.given["pod"]["spec"].get("restartPolicy", "Always")
        ordered = list(self.containers.values())
        for container in ordered:
            if container.init and not container.run("OnFailure" if policy != "Never" else "Never"):
                return
        threads = [threading.Thread(target=c.run, args=(policy,), daemon=True) for c in ordered if not c.init]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def stop(self, grace):
        """Asks the containers to end and kills them after the grace period; a shorter one shortens the wait."""
        deadline = time.monotonic() + grace
        with self.node.changed:
            self.deadline = min(deadline, self.deadline or deadline)
            first = not self.stopping.is_set()
            self.stopping.set()
            self.node.changed.notify_all()
        for container in self.containers.values():
            container.signal(signal.SIGTERM if first and grace > 0 else signal.SIGKILL if grace == 0 else 0)
        if first and grace > 0:
            threading.Thread(target=self.kill_late, daemon=True).start()

    def kill_late(self):
        with self.node.changed:
            while any(c.alive() for c in self.containers.values()) and time.monotonic() < self.deadline:
                self.node.changed.wait(max(0, self.deadline - time.monotonic()))
        for container in self.containers.values():
            container.signal(signal.SIGKILL)

    def state(self, sequence):
        meta = self.given["pod"]["metadata"]
        status = lambda init: [c.status() for c in self.containers.values() if c.init == init]
        return {
            "uid": meta["uid"], "namespace": meta["namespace"], "name": meta["name"], "node": self.node.uid,
            "sequence": sequence, "startTime": self.started, "podIPs": ["127.0.0.1"],
            "initContainerStatuses": status(True), "containerStatuses": status(False),
        }

    def container(self, name):
        if name not in self.containers:
            raise not_found(f"container {name}")
        return self.containers[name]


class Container:
    """One container: a process, and after it has ended the next one."""

    def __init__(self, pod, spec, init):
        self.pod, self.name, self.image, self.init = pod, spec["name"], spec.get("image", ""), init
        self.changed, self.attempt, self.process, self.last = pod.node.changed, 0, None, {}
        self.state = {"waiting": {"reason": "PodInitializing" if not init else "ContainerCreating"}}
        self.listeners = []
        self.stdin = bool(spec.get("stdin"))
        self.working_dir = spec.get("workingDir")

    def alive(self):
        return self.process is not None and self.process.poll() is None

    def signal(self, number):
        if self.alive() and number:
            try:
                os.killpg(self.process.pid, number)
            except ProcessLookupError:
                pass

    def environment(self):
        values = self.pod.given["containers"][self.name]
        env = {"PATH": os.environ.get("PATH", os.defpath), "HOSTNAME": self.pod.given["pod"]["metadata"]["name"]}
        # A process of this machine has no file system of its own: its volumes are below this folder.
        env["VNODE_CONTAINER_ROOT"] = str((self.pod.folder / "containers" / self.name).absolute())
        env.update({variable["name"]: variable["value"] for variable in values["env"]})
        return env

    def folder(self):
        """The container's working folder, in which the volume mounted at /etc/x is etc/x, or the one that it names."""
        root = self.pod.folder / "containers" / self.name
        root.mkdir(parents=True, exist_ok=True)
        for n, mount in enumerate(self.pod.given["containers"][self.name]["mounts"]):
            link = root / mount["path"].lstrip("/")
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.is_symlink():
                kept = self.pod.folder / "parts" / f"{self.name}.{n}"
                link.symlink_to(pathlib.Path(self.pod.part(mount, kept)).absolute())
        return self.working_dir or root

    def log(self, attempt):
        return self.pod.folder / f"{self.name}.{attempt}.log"

    def run(self, policy):
        """Runs it as often as the policy says. True when it ended well."""
        delay = BACKOFF[0]
        while True:
            try:
                code = None if self.pod.stopping.is_set() else self.run_once()
            except Refused as error:
                self.set({"waiting": {"reason": "CreateContainerConfigError", "message": str(error)}})
                self.pod.stopping.wait(BACKOFF[1])
                continue
            if code is None:
                # Nothing is started in a pod that is to end.
                self.set({"terminated": {"exitCode": 137, "reason": "Error", "message": "the pod was stopped"}})
                return False
            again = policy == "Always" or (policy == "OnFailure" and code != 0)
            if self.pod.stopping.is_set() or not again:
                return code == 0
            before, self.last = self.last, self.state
            self.set({"waiting": {"reason": "CrashLoopBackOff", "message": f"back-off {delay}s restarting {self.name}"}})
            if self.pod.stopping.wait(delay):
                # It is over with the end that it had.
                ended, self.last = self.last, before
                self.set(ended)
                return code == 0
            self.attempt += 1
            delay = min(2 * delay, BACKOFF[1])

    def run_once(self):
        values, folder = self.pod.given["containers"][self.name], self.folder()
        log = self.log(self.attempt).open("ab", buffering=0)
        try:
            process = subprocess.Popen(
                values["command"] + values["args"], cwd=folder, env=self.environment(), start_new_session=True,
                stdin=subprocess.PIPE if self.stdin else subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )
        except OSError as error:
            log.close()
            self.set({"terminated": {"exitCode": 128, "reason": "StartError", "message": str(error)}})
            return 128
        started = now()
        with self.changed:
            self.process = process
        readers = [
            threading.Thread(target=self.copy, args=(process.stdout, "stdout", log), daemon=True),
            threading.Thread(target=self.copy, args=(process.stderr, "stderr", log), daemon=True),
        ]
        for reader in readers:
            reader.start()
        self.set({"running": {"startedAt": started}})
        if self.pod.stopping.is_set():
            self.signal(signal.SIGKILL)
        code = process.wait()
        code = code if code >= 0 else 128 - code
        for reader in readers:
            reader.join(1)
        end = {"exitCode": code, "reason": "Completed" if code == 0 else "Error", "startedAt": started, "finishedAt": now()}
        self.set({"terminated": end})
        return code

    def copy(self, pipe, name, log):
        for line in iter(lambda: pipe.readline(16384), b""):
            whole = line.endswith(b"\n")
            head = f"{now()} {name} {'F' if whole else 'P'} ".encode()
            with self.changed:
                log.write(head + line.rstrip(b"\n") + b"\n")
                self.changed.notify_all()
            for listener in list(self.listeners):
                listener(1 if name == "stdout" else 2, line)

    def set(self, state):
        with self.changed:
            self.state = state
        self.pod.node.tell("pod", self.pod)

    def over(self):
        """True when this run has ended, whether or not another one follows."""
        return "terminated" in self.state or self.state.get("waiting", {}).get("reason") == "CrashLoopBackOff"

    def status(self):
        running = "running" in self.state
        done = self.init and self.state.get("terminated", {}).get("exitCode") == 0
        return {
            "name": self.name, "image": self.image, "imageID": "", "ready": running or done, "started": running,
            "restartCount": self.attempt, "state": self.state, "lastState": self.last,
        }

    def lines(self, follow, previous, tail, since):
        """The lines of the log, as they are in the file; for ever when following a container that lives."""
        attempt = self.attempt - 1 if previous else self.attempt
        if attempt < 0 or not self.log(attempt).exists():
            raise not_found(f"log of {'a previous instance of ' if previous else ''}container {self.name}")
        return self.follow(attempt, follow and not previous, tail, since)

    def follow(self, attempt, follow, tail, since):
        with self.log(attempt).open("rb") as file:
            time = datetime.datetime.fromisoformat
            first = time(since) if since else None
            kept = [line for line in file if not first or time(line.split(b" ", 1)[0].decode()) >= first]
            yield from kept if tail is None else kept[len(kept) - min(tail, len(kept)):]
            while follow:
                line = file.readline()
                if line:
                    yield line
                    continue
                with self.changed:
                    if attempt != self.attempt or self.over():
                        yield from file
                        return
                    self.changed.wait(5)

    def usage(self):
        """What its processes use, from /proc; None when it does not run."""
        if not self.alive():
            return None
        ticks, pages = 0, 0
        for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rsplit(") ", 1)[1].split()
            except OSError:
                continue
            if int(fields[3]) == self.process.pid:
                ticks, pages = ticks + int(fields[11]) + int(fields[12]), pages + int(fields[21])
        return {
            "name": self.name, "time": now(), "startTime": self.state.get("running", {}).get("startedAt"),
            "cpuNanos": ticks * 10**9 // os.sysconf("SC_CLK_TCK"), "memoryWorkingSet": pages * os.sysconf("SC_PAGE_SIZE"),
        }


def connect(port):
    """A connection to a port of a pod, whose network is this machine's."""
    try:
        return socket.create_connection(("127.0.0.1", port), timeout=10)
    except OSError as error:
        raise Problem(502, "rejected", f"port {port}: {error}", reason="ConnectionRefused") from error
