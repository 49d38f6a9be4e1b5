#!/usr/bin/env node
// A provider in Node by interface V1, that of Virtual Kubelet's web provider. No packages are needed.
//
// It does the least: pods are processes of this machine, their status is a phase without containers, and what it
// does not have it answers with 404. `endpoint.mjs --listen 127.0.0.1:3000`, then a VirtualNode of type web with
// `url: http://127.0.0.1:3000`.

import { createServer } from "node:http";
import { spawn } from "node:child_process";

const pods = new Map();
const key = (namespace, name) => `${namespace}/${name}`;

function start(given) {
  const pod = { given, log: new Map(), phase: "Running", children: [] };
  for (const container of given.spec.containers) {
    const [program, ...rest] = [...(container.command ?? ["true"]), ...(container.args ?? [])];
    const env = { PATH: process.env.PATH };
    for (const { name, value } of container.env ?? []) env[name] = value ?? "";
    const child = spawn(program, rest, { env, cwd: container.workingDir || undefined, detached: true, stdio: ["ignore", "pipe", "pipe"] });
    const lines = [];
    for (const output of [child.stdout, child.stderr]) output.on("data", (data) => lines.push(data));
    child.on("error", () => (pod.phase = "Failed"));
    child.on("exit", (code) => {
      pod.children = pod.children.filter((c) => c !== child);
      if (code !== 0) pod.phase = "Failed";
      else if (pod.children.length === 0 && pod.phase === "Running") pod.phase = "Succeeded";
    });
    pod.children.push(child);
    pod.log.set(container.name, lines);
  }
  return pod;
}

function stop(pod) {
  for (const child of pod.children) {
    try {
      process.kill(-child.pid, "SIGTERM");
    } catch {
      // It has ended by itself.
    }
  }
}

const whole = (pod) => ({ ...pod.given, status: { phase: pod.phase, podIP: "127.0.0.1" } });
const missing = { status: 404, text: "no such pod" };

const routes = {
  "POST /createPod": ({ pod, name }) => {
    pods.set(name, start(pod));
    return { status: 201 };
  },
  "PUT /updatePod": ({ pod, name }) => {
    if (!pods.has(name)) return missing;
    pods.get(name).given = pod;
    return {};
  },
  "DELETE /deletePod": ({ name }) => {
    if (!pods.has(name)) return missing;
    stop(pods.get(name));
    pods.delete(name);
    return {};
  },
  "GET /getPod": ({ query }) => {
    const found = pods.get(key(query.get("namespace"), query.get("name")));
    return found ? { json: whole(found) } : missing;
  },
  "GET /getPods": () => ({ json: [...pods.values()].map(whole) }),
  "GET /getContainerLogs": ({ query }) => {
    const lines = pods.get(key(query.get("namespace"), query.get("podName")))?.log.get(query.get("containerName"));
    if (!lines) return missing;
    const text = Buffer.concat(lines).toString();
    const tail = Number(query.get("tail") ?? 0);
    // As one JSON string, which the interface also allows.
    return { json: tail ? text.split(/(?<=\n)/).slice(-tail).join("") : text };
  },
};

const server = createServer((request, response) => {
  const url = new URL(request.url, "http://endpoint");
  const chunks = [];
  request.on("data", (data) => chunks.push(data));
  request.on("end", () => {
    let answer;
    try {
      const route = routes[`${request.method} ${url.pathname}`];
      const pod = chunks.length ? JSON.parse(Buffer.concat(chunks)) : undefined;
      const name = pod && key(pod.metadata.namespace, pod.metadata.name);
      answer = route ? route({ query: url.searchParams, pod, name }) : { status: 404, text: "no such path" };
    } catch (error) {
      answer = { status: 400, text: String(error) };
    }
    const { status = 200, text = "", json } = answer;
    response.writeHead(status, { "Content-Type": json === undefined ? "text/plain" : "application/json" });
    response.end(json === undefined ? text : JSON.stringify(json));
  });
});

const at = process.argv.indexOf("--listen");
const [host, port] = (at < 0 ? "127.0.0.1:3000" : process.argv[at + 1]).split(":");
server.listen(Number(port), host, () => console.log(`listening on http://${host}:${server.address().port}`));
process.on("SIGTERM", () => {
  for (const pod of pods.values()) stop(pod);
  process.exit();
});
