"""What `.ci/chart` does once its tools are there."""

import difflib
import pathlib
import re
import subprocess
import sys

import yaml

CHART = pathlib.Path("charts/vnode")
SNAPSHOTS = CHART / "ci/snapshots"
MODE, SCHEMAS, KUBERNETES = sys.argv[1:4]
# These kinds are not Kubernetes' own, and their schemas are in no Go module.
FOREIGN = "ServiceMonitor,PrometheusRule"
failures = 0


def fail(what, detail=""):
    global failures
    failures += 1
    print(f"FAILED: {what}\n{detail}".rstrip())


def run(*command, stdin=None):
    return subprocess.run(command, input=stdin, capture_output=True, text=True)


def same_file(kept, wanted, how):
    """A file that is made from another one."""
    if MODE == "update":
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(wanted)
        return
    old = kept.read_text() if kept.exists() else ""
    if old != wanted:
        diff = difflib.unified_diff(old.splitlines(), wanted.splitlines(), str(kept), how, lineterm="")
        fail(f"{kept} is not what {how} gives; `.ci/chart update` writes it", "\n".join(list(diff)[:60]))


def copies():
    for crd in sorted(pathlib.Path("crds").glob("vnode.dev_*.yaml")):
        same_file(CHART / "crd-bases" / crd.name, crd.read_text(), str(crd))
    for old in (CHART / "crd-bases").glob("*.yaml"):
        if not (pathlib.Path("crds") / old.name).exists():
            fail(f"{old} has no original in crds/")
    indent = lambda text, by: "".join(" " * by + line if line.strip() else line for line in text.splitlines(True))
    head = "apiVersion: {0}\nkind: {1}\nmetadata:\n  name: {2}\n  namespace: vnode-system\n"
    rules = CHART / "rules/vnode.yaml"
    same_file(
        pathlib.Path("config/prometheus/rules.yaml"),
        head.format("monitoring.coreos.com/v1", "PrometheusRule", "vnode") + "spec:\n" + indent(rules.read_text(), 2),
        str(rules),
    )
    board = CHART / "dashboards/vnode.json"
    same_file(
        pathlib.Path("config/prometheus/dashboard.yaml"),
        head.format("v1", "ConfigMap", "vnode-dashboard")
        + '  labels:\n    grafana_dashboard: "1"\ndata:\n  vnode.json: |\n'
        + indent(board.read_text(), 4),
        str(board),
    )


def render(values):
    """The chart with a file of values: hooks included, which are objects as well."""
    out = run(
        "helm", "template", "vnode", str(CHART), "--namespace", "vnode-system", "--kube-version", KUBERNETES,
        "--values", str(values),
    )  # fmt: skip
    if out.returncode:
        fail(f"helm template with {values}", out.stderr)
    return out.stdout


def conform(what, manifests):
    out = run(
        "kubeconform", "-strict", "-summary", "-skip", FOREIGN, "-kubernetes-version", KUBERNETES,
        "-schema-location", f"{SCHEMAS}/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json", "-",
        stdin=manifests,
    )  # fmt: skip
    if out.returncode:
        fail(f"the API's schemas refuse {what}", out.stdout + out.stderr)
    else:
        print(f"{what}: {out.stdout.strip().removeprefix('Summary: ')}")


def objects(manifests, ignore_hooks=True):
    """Objects by what they are, without what Helm and kustomize add of their own."""
    found = {}
    for thing in yaml.safe_load_all(manifests):
        if not thing:
            continue
        meta = thing["metadata"]
        notes = meta.get("annotations", {})
        if ignore_hooks and "helm.sh/hook" in notes:
            continue
        notes.pop("helm.sh/resource-policy", None)
        if not notes:
            meta.pop("annotations", None)
        labels = {
            k: v
            for k, v in meta.get("labels", {}).items()
            if not k.startswith("app.kubernetes.io/") and k != "helm.sh/chart"
        }
        meta.pop("labels", None)
        if labels:
            meta["labels"] = labels
        if thing["kind"] == "ConfigMap":
            thing["data"] = {k: v.rstrip("\n") for k, v in thing["data"].items()}
        found[(thing["kind"], meta.get("namespace", ""), meta["name"])] = thing
    return found


def compare(values, kustomizations):
    chart = objects(render(CHART / "ci" / values))
    tree = {}
    for kustomization in kustomizations:
        tree |= objects(run("kubectl", "kustomize", kustomization).stdout)
    # `helm install --create-namespace` makes it; a chart cannot hold the namespace that it is installed into.
    tree.pop(("Namespace", "", "vnode-system"), None)
    what = " + ".join(kustomizations)
    for key in sorted(chart.keys() | tree.keys()):
        ours, theirs = (yaml.safe_dump(side.get(key)).splitlines() for side in (chart, tree))
        if ours != theirs:
            diff = "\n".join(difflib.unified_diff(theirs, ours, what, f"chart with {values}", lineterm=""))
            fail(f"{' '.join(key)} is not the same in {what} and in the chart with {values}", diff)
    print(f"chart with {values} = {what}: {len(tree)} objects")


def documented():
    """Every metric that rules and dashboard ask for is one that the operator has."""
    known = pathlib.Path("docs/metrics.md")
    if not known.exists():
        return
    names = set(re.findall(r"`((?:vnode|process)_[a-z_]+)`", known.read_text()))
    for file in (CHART / "rules/vnode.yaml", CHART / "dashboards/vnode.json"):
        for name in sorted(set(re.findall(r"\b(?:vnode|process)_[a-z_]+\b", file.read_text()))):
            base = re.sub(r"_(bucket|sum|count)$", "", name)
            if base.startswith(("vnode_", "process_")) and not names & {base, name}:
                fail(f"{file} asks for {name}, which docs/metrics.md does not list")


def refuses():
    """Mistakes in values are told before anything is installed."""
    for setting, word in {
        "replicas=-1": "replicas",
        "operator.kubeletPorts=abc": "kubeletPorts",
        "rbac.podReferences=Everything": "podReferences",
        "rbac.podReferences=Namespaces": "podNamespaces",
        "operator.servingCert=acme": "servingCert",
        "operator.nodeIdentity=root": "nodeIdentity",
        "rbac.impersonation.legacy=true": "nodes",
        "image.pulPolicy=Always": "pulPolicy",
        "serviceAccount.create=false": "serviceAccount.name",
    }.items():
        out = run("helm", "template", "vnode", str(CHART), "--kube-version", KUBERNETES, "--set", setting)
        if out.returncode == 0 or word not in out.stderr:
            fail(f"--set {setting} is not refused with a word of {word}", out.stderr)


def main():
    copies()
    for values in sorted((CHART / "ci").glob("*.yaml")):
        lint = run("helm", "lint", "--quiet", "--strict", str(CHART), "--values", str(values),
                   "--kube-version", KUBERNETES)  # fmt: skip
        if lint.returncode:
            fail(f"helm lint with {values}", lint.stdout + lint.stderr)
        rendered = render(values)
        # The CRDs are in crds/ already; here they would hide everything else.
        kept = re.sub(r"(?ms)^---\n(?:# Source: [^\n]*\n)?apiVersion: apiextensions.*?(?=^---|\Z)", "", rendered)
        same_file(SNAPSHOTS / values.name, kept, f"helm template --values {values}")
        conform(f"chart with {values.name}", rendered)
    for folder in ("default", "impersonate", "csr", "network-policy", "prometheus", "samples"):
        out = run("kubectl", "kustomize", f"config/{folder}")
        if out.returncode:
            fail(f"kubectl kustomize config/{folder}", out.stderr)
        conform(f"config/{folder}", out.stdout)
    for sample in sorted(pathlib.Path("config/samples").glob("*.yaml")):
        if sample.name != "kustomization.yaml":
            conform(str(sample), sample.read_text())
    compare("default.yaml", ["config/default"])
    compare("impersonate.yaml", ["config/impersonate"])
    compare("csr.yaml", ["config/csr"])
    compare("monitoring.yaml", ["config/default", "config/network-policy", "config/prometheus"])
    documented()
    refuses()
    print(f"not validated, for want of a schema: {FOREIGN}")
    print(f"chart: {'all is well' if not failures else f'{failures} failed'}")
    sys.exit(1 if failures else 0)


main()
