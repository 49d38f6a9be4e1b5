#!/usr/bin/env python3
"""A service for virtual nodes of type grpc that runs pods as processes of its machine.

Images are not looked at: a container is its command and args, run here. Pods end with this process.

    pip install -r requirements.txt
    python3 server.py [--listen 127.0.0.1:9000 | --listen unix:///run/example.sock] [--token TOKEN]
                      [--cert FILE --key FILE [--client-ca FILE]]
"""

import argparse
import asyncio
import collections
import datetime
import hmac
import json
import os
import pathlib
import signal
import sys
import tempfile
import time

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from grpc_tools import protoc

PROTO = os.environ.get("VNODE_PROTO") or pathlib.Path(__file__).resolve().parents[2] / "proto"
NAME = "vnode.provider.v1.ProviderService"
RESTART = 1.0  # seconds from a container's end to its next start
KEPT = 10_000  # lines of a container's log


def generate():
    """The protocol's stubs, made from its description at every start."""
    import importlib.resources

    out = tempfile.mkdtemp(prefix="vnode-stubs-")
    standard = importlib.resources.files("grpc_tools") / "_proto"
    file = "vnode/provider/v1/provider.proto"
    words = ["protoc", f"-I{PROTO}", f"-I{standard}", f"--python_out={out}", f"--grpc_python_out={out}", file]
    if protoc.main(words):
        raise SystemExit(f"the protocol's description in {PROTO} cannot be compiled; VNODE_PROTO names another folder")
    sys.path.insert(0, out)


generate()
from vnode.provider.v1 import provider_pb2 as pb  # noqa: E402
from vnode.provider.v1 import provider_pb2_grpc as rpc  # noqa: E402


def now():
    return datetime.datetime.now(datetime.timezone.utc).isoformat().replace("+00:00", "Z")


class Log:
    """What one attempt to run a container has written."""

    def __init__(self):
        self.lines = collections.deque(maxlen=KEPT)
        self.count = 0
        self.ended = False
        self.changed = asyncio.Event()

    def change(self):
        self.changed.set()
        self.changed = asyncio.Event()

    def push(self, source, text):
        line = pb.LogLine(source=source, text=text)
        line.time.GetCurrentTime()
        self.lines.append(line)
        self.count += 1
        self.change()

    def end(self):
        self.ended = True
        self.change()


class Container:
    def __init__(self, spec, given):
        self.name = spec["name"]
        self.image = spec.get("image", "")
        self.words = [*given.command, *given.args]
        self.folder = spec.get("workingDir") or None
        self.env = {"PATH": os.environ.get("PATH", os.defpath), **{v.name: v.value for v in given.env}}
        self.state = {"waiting": {"reason": "ContainerCreating"}}
        self.last = None
        self.restarts = 0
        self.log = Log()
        self.previous = None
        self.process = None

    def status(self):
        running = "running" in self.state
        status = {
            "name": self.name, "image": self.image, "imageID": "", "ready": running, "started": running,
            "restartCount": self.restarts, "state": self.state,
        }  # fmt: skip
        return {**status, "lastState": self.last} if self.last else status

    def kill(self, number):
        if self.process and self.process.returncode is None:
            try:
                os.killpg(self.process.pid, number)
            except ProcessLookupError:
                pass


class Pod:
    def __init__(self, node, json_pod, containers):
        meta, spec = json_pod["metadata"], json_pod["spec"]
        self.node = node
        self.ref = pb.PodRef(namespace=meta["namespace"], name=meta["name"], uid=meta["uid"])
        self.policy = spec.get("restartPolicy", "Always")
        self.containers = containers
        self.started = now()
        self.deadline = None  # when its processes are killed, once it is to stop
        self.stopping = asyncio.Event()
        self.tasks = []

    def status(self):
        status = {
            "startTime": self.started, "podIP": "127.0.0.1",
            "containerStatuses": [c.status() for c in self.containers],
        }  # fmt: skip
        return pb.PodStatus(pod=self.ref, node_uid=self.node, json=json.dumps(status).encode())

    def stop(self, grace):
        deadline = time.monotonic() + grace
        if self.deadline is None or deadline < self.deadline:
            self.deadline = deadline
            self.stopping.set()
            for container in self.containers:
                container.kill(signal.SIGTERM)
            for task in self.tasks[len(self.containers):]:
                task.cancel()
            del self.tasks[len(self.containers):]
            self.tasks.append(asyncio.create_task(self.kill_after(grace)))

    async def kill_after(self, grace):
        await asyncio.sleep(grace)
        for container in self.containers:
            container.kill(signal.SIGKILL)


class Service(rpc.ProviderServiceServicer):
    def __init__(self, token):
        self.token = token
        self.pods = {}
        self.epochs = {}  # the greatest one seen of each node
        self.watchers = {}  # of each stream, the queue of its answers and its nodes

    # Who calls, and about what

    async def node(self, context):
        """The uid of the node that a call is for, if it comes from the node's newest owner."""
        words = dict(context.invocation_metadata())
        await self.allow(context, words)
        uid = words.get("vnode-node-uid", "")
        if not uid:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "metadata vnode-node-uid is missing")
        refusal = self.refusal(uid, int(words.get("vnode-epoch", 0)))
        if refusal:
            await context.abort(grpc.StatusCode.ABORTED, refusal)
        return uid

    async def allow(self, context, words):
        given = words.get("authorization", "")
        if self.token and not hmac.compare_digest(given.encode(), f"Bearer {self.token}".encode()):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "wrong token")

    def refusal(self, node, epoch):
        newest = self.epochs.setdefault(node, epoch)
        if epoch < newest:
            return f"epoch {epoch} is older than {newest}"
        self.epochs[node] = epoch

    async def pod(self, node, ref, context):
        pod = self.pods.get(ref.uid)
        if not pod or pod.node != node:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"there is no pod with uid {ref.uid!r} on this node")
        return pod

    async def container(self, node, ref, name, context):
        pod = await self.pod(node, ref, context)
        for container in pod.containers:
            if container.name == name:
                return container
        await context.abort(grpc.StatusCode.NOT_FOUND, f"there is no container {name!r}")

    def changed(self, pod):
        for queue, nodes in self.watchers.items():
            if pod.node in nodes:
                queue.put_nowait(pb.WatchResponse(node_uid=pod.node, pod=pod.status()))

    # What this service can do

    async def GetCapabilities(self, request, context):
        await self.node(context)
        able = pb.Capabilities(logs=True, exec=True, port_forward=True, watch=True)
        able.pod_features.extend(["multipleContainers", "restartPolicy", "gracePeriod", "hostNetwork"])
        return pb.GetCapabilitiesResponse(version=1, server="vnode-example-python/1", capabilities=able)

    async def DescribeNode(self, request, context):
        await self.node(context)
        arch = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
        capacity = {"cpu": str(os.cpu_count()), "memory": "1Gi", "pods": "110"}
        return pb.DescribeNodeResponse(capacity=capacity, operating_system="linux", architecture=arch, version="1")

    # The life of a pod

    async def CreatePod(self, request, context):
        node = await self.node(context)
        json_pod = json.loads(request.pod.json)
        uid = json_pod["metadata"]["uid"]
        if uid in self.pods:
            return pb.CreatePodResponse()
        containers = []
        for n, spec in enumerate(json_pod["spec"]["containers"]):
            given = request.pod.containers[spec["name"]]
            if not given.command:
                field = f"spec.containers[{n}].command"
                context.set_trailing_metadata((("vnode-field", field),))
                message = "there are no images here, so a container needs a command"
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, message)
            containers.append(Container(spec, given))
        pod = self.pods[uid] = Pod(node, json_pod, containers)
        pod.tasks = [asyncio.create_task(self.run(pod, container)) for container in containers]
        return pb.CreatePodResponse()

    async def UpdatePod(self, request, context):
        # Labels, annotations and tolerations mean nothing to a process.
        await self.node(context)
        return pb.UpdatePodResponse()

    async def StopPod(self, request, context):
        pod = await self.pod(await self.node(context), request.pod, context)
        pod.stop(request.grace_period.ToTimedelta().total_seconds())
        return pb.StopPodResponse()

    async def RemovePod(self, request, context):
        node = await self.node(context)
        pod = self.pods.get(request.pod.uid)
        if pod and pod.node == node:
            del self.pods[request.pod.uid]
            pod.stop(0)
        return pb.RemovePodResponse()

    async def GetPod(self, request, context):
        pod = await self.pod(await self.node(context), request.pod, context)
        return pb.GetPodResponse(pod=pod.status())

    async def ListPods(self, request, context):
        node = await self.node(context)
        for pod in [pod for pod in self.pods.values() if pod.node == node]:
            yield pb.ListPodsResponse(pods=[pod.status()])

    async def run(self, pod, container):
        """Runs a container until it is over for good."""
        while True:
            started = now()
            try:
                code = await self.run_once(pod, container)
                over = {"reason": "Error" if code else "Completed", "startedAt": started}
            except OSError as error:
                code, over = 128, {"reason": "StartError", "message": str(error)}
            container.log.end()
            ended = {"terminated": {"exitCode": code, "finishedAt": now(), **over}}
            again = pod.policy == "Always" or pod.policy == "OnFailure" and code
            if again and not pod.stopping.is_set():
                container.state, container.last = {"waiting": {"reason": "CrashLoopBackOff"}}, ended
                self.changed(pod)
                try:
                    await asyncio.wait_for(pod.stopping.wait(), RESTART)
                except asyncio.TimeoutError:
                    container.restarts += 1
                    container.previous, container.log = container.log, Log()
                    continue
            container.state = ended
            return self.changed(pod)

    async def run_once(self, pod, container):
        """Runs a container's process and returns its exit code: 128 + n for signal n, as shells have it."""
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *container.words, cwd=container.folder, env=container.env, start_new_session=True,
            stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe,
        )  # fmt: skip
        container.process = process
        if pod.stopping.is_set():
            container.kill(signal.SIGKILL)
        container.state = {"running": {"startedAt": now()}}
        self.changed(pod)

        async def copy(stream, source):
            while line := await stream.readline():
                container.log.push(source, line)

        copying = asyncio.gather(
            copy(process.stdout, pb.LOG_SOURCE_STDOUT), copy(process.stderr, pb.LOG_SOURCE_STDERR)
        )
        code = await process.wait()
        try:
            os.killpg(process.pid, signal.SIGKILL)  # what it has left behind
        except ProcessLookupError:
            pass
        await copying
        return code if code >= 0 else 128 - code

    async def Watch(self, requests, context):
        await self.allow(context, dict(context.invocation_metadata()))
        queue = asyncio.Queue()
        nodes = self.watchers[queue] = set()

        async def listen():
            async for request in requests:
                if request.HasField("subscribe"):
                    uid = request.subscribe.node_uid
                    refusal = self.refusal(uid, request.subscribe.epoch)
                    if refusal:
                        gone = pb.NodeAvailability(available=False, message=refusal)
                        queue.put_nowait(pb.WatchResponse(node_uid=uid, availability=gone))
                        continue
                    nodes.add(uid)
                    for pod in self.pods.values():
                        if pod.node == uid:
                            queue.put_nowait(pb.WatchResponse(node_uid=uid, pod=pod.status()))
                    queue.put_nowait(pb.WatchResponse(node_uid=uid, synced=pb.Synced()))
                else:
                    nodes.discard(request.unsubscribe)

        listening = asyncio.create_task(listen())
        try:
            while True:
                yield await queue.get()
        finally:
            del self.watchers[queue]
            listening.cancel()

    # What users do with pods

    async def ReadLogs(self, request, context):
        container = await self.container(await self.node(context), request.pod, request.container, context)
        log = container.previous if request.previous else container.log
        if log is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "it was not started before")
        lines, count = list(log.lines), log.count
        if request.HasField("since"):
            since = request.since.ToNanoseconds()
            lines = [line for line in lines if line.time.ToNanoseconds() >= since]
        if request.HasField("tail_lines"):
            lines = lines[len(lines) - min(request.tail_lines, len(lines)):]
        # The first message comes at once, also without lines.
        yield pb.ReadLogsResponse(lines=lines[:500])
        for n in range(500, len(lines), 500):
            yield pb.ReadLogsResponse(lines=lines[n:n + 500])
        while request.follow:
            changed = log.changed
            if log.count > count:
                new = min(log.count - count, len(log.lines))
                lines, count = list(log.lines)[-new:], log.count
                yield pb.ReadLogsResponse(lines=lines)
            elif log.ended:
                return
            else:
                await changed.wait()

    async def Exec(self, requests, context):
        node = await self.node(context)
        start = (await anext(requests)).start
        container = await self.container(node, start.pod, start.container, context)
        if start.options.tty:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "there are no terminals")
        pipe = asyncio.subprocess.PIPE
        try:
            process = await asyncio.create_subprocess_exec(
                *start.command, cwd=container.folder, env=container.env, start_new_session=True,
                stdin=pipe, stdout=pipe, stderr=pipe,
            )  # fmt: skip
        except OSError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"{list(start.command)}: {error}")
        queue = asyncio.Queue(maxsize=16)

        async def type_in():
            if start.options.stdin:
                async for message in requests:
                    if message.input.HasField("stdin"):
                        process.stdin.write(message.input.stdin)
                        await process.stdin.drain()
                    elif message.input.HasField("stdin_closed"):
                        break
            process.stdin.close()

        async def copy(stream, name):
            while data := await stream.read(32768):
                await queue.put(pb.SessionOutput(**{name: data}))

        async def run():
            await asyncio.gather(copy(process.stdout, "stdout"), copy(process.stderr, "stderr"))
            code = await process.wait()
            await queue.put(pb.SessionOutput(exit_code=code if code >= 0 else 128 - code))

        tasks = [asyncio.create_task(type_in()), asyncio.create_task(run())]
        try:
            while True:
                output = await queue.get()
                yield pb.ExecResponse(output=output)
                if output.HasField("exit_code"):
                    return
        finally:
            for task in tasks:
                task.cancel()
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)

    async def PortForward(self, requests, context):
        node = await self.node(context)
        start = (await anext(requests)).start
        await self.pod(node, start.pod, context)
        try:
            read, write = await asyncio.open_connection("127.0.0.1", start.port)
        except OSError as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"port {start.port}: {error}")

        async def send():
            async for message in requests:
                write.write(message.data)
                await write.drain()
            write.write_eof()

        sending = asyncio.create_task(send())
        try:
            yield pb.PortForwardResponse(connected=pb.Connected())
            while data := await read.read(32768):
                yield pb.PortForwardResponse(data=data)
        finally:
            sending.cancel()
            write.close()


async def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--listen", default="127.0.0.1:9000")
    for word in ("--token", "--cert", "--key", "--client-ca"):
        parser.add_argument(word)
    args = parser.parse_args()
    server = grpc.aio.server()
    rpc.add_ProviderServiceServicer_to_server(Service(args.token), server)
    checks = health.aio.HealthServicer()
    await checks.set(NAME, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    reflection.enable_server_reflection([NAME, health.SERVICE_NAME, reflection.SERVICE_NAME], server)
    if args.cert:
        read = lambda path: pathlib.Path(path).read_bytes()  # noqa: E731
        ca = read(args.client_ca) if args.client_ca else None
        secrets = grpc.ssl_server_credentials([(read(args.key), read(args.cert))], ca, bool(ca))
        port = server.add_secure_port(args.listen, secrets)
    else:
        port = server.add_insecure_port(args.listen)
    await server.start()
    where = args.listen if args.listen.startswith("unix:") else f"{args.listen.rsplit(':', 1)[0]}:{port}"
    print(f"listening on {where}", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        pass
