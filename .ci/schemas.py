"""Turns Kubernetes' OpenAPI document, or CRDs, into the JSON schemas that kubeconform reads: one file for each kind,
strict, so that a misspelt field is an error.

    schemas.py swagger.json FOLDER
    schemas.py --crds crds FOLDER
"""

import json
import pathlib
import sys

import yaml


def strict(schema):
    """Closes every object that lists its properties."""
    if not isinstance(schema, dict):
        return schema
    if schema.get("format") == "int-or-string" or schema.get("x-kubernetes-int-or-string"):
        return {"type": ["string", "integer"]}
    out = dict(schema)
    if isinstance(out.get("properties"), dict):
        out["properties"] = {name: strict(value) for name, value in out["properties"].items()}
        if "additionalProperties" not in out and not out.get("x-kubernetes-preserve-unknown-fields"):
            out["additionalProperties"] = False
    for key in ("items", "additionalProperties"):
        if key in out:
            out[key] = strict(out[key])
    for key in ("allOf", "anyOf", "oneOf"):
        # These only narrow what is said above them.
        out.pop(key, None)
    return out


def inline(name, definitions, seen=()):
    """A definition with everything that it refers to; what refers to itself stays open."""

    def walk(node):
        if isinstance(node, list):
            return [walk(n) for n in node]
        if not isinstance(node, dict):
            return node
        if isinstance(node.get("$ref"), str):
            target = node["$ref"].rsplit("/", 1)[1]
            if target.endswith(".resource.Quantity"):
                return {"type": ["string", "number"]}
            return {} if target in seen else inline(target, definitions, (*seen, target))
        return {k: walk(v) for k, v in node.items()}

    return walk(definitions[name])


def write(folder, group, version, kind, schema):
    group = group.split(".")[0]
    name = "-".join(p for p in (kind.lower(), group, version) if p)
    (folder / f"{name}.json").write_text(json.dumps(schema))


def crd_schemas(source, folder):
    for file in sorted(pathlib.Path(source).glob("vnode.dev_*.yaml")):
        for crd in yaml.safe_load_all(file.read_text()):
            if not crd:
                continue
            for version in crd["spec"]["versions"]:
                schema = strict(version["schema"]["openAPIV3Schema"])
                schema["properties"].update(
                    apiVersion={"type": "string"}, kind={"type": "string"}, metadata={"type": "object"}
                )
                write(folder, crd["spec"]["group"], version["name"], crd["spec"]["names"]["kind"], schema)


def main():
    if sys.argv[1] == "--crds":
        return crd_schemas(sys.argv[2], pathlib.Path(sys.argv[3]))
    definitions = json.loads(pathlib.Path(sys.argv[1]).read_text())["definitions"]
    folder = pathlib.Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    for name, definition in definitions.items():
        for kind in definition.get("x-kubernetes-group-version-kind", []):
            # Parameters of requests, such as DeleteOptions, belong to every group.
            if name.startswith("io.k8s.api.") or "CustomResourceDefinition" in name:
                write(folder, kind["group"], kind["version"], kind["kind"], strict(inline(name, definitions, (name,))))
    (folder / ".done").touch()


if __name__ == "__main__":
    main()
