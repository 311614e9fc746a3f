#!/usr/bin/env python3
"""Helm's own engine (helm-python-sdk) and the API's schemas (kubernetes-validate) for tests in Rust.

Usage: helm.py CHART, with requests as lines of JSON on stdin, one answer for each on stdout:
  {"values": {..}, "namespace": ".."}  ->  {"objects": [..], "notes": ".."} or {"error": ".."}
  {"lint": {..values..}}               ->  {"messages": [..]}
  {"schema": {..values..}}             ->  {"error": ".." or null}
Every object is held against the schema of its kind, for each of VERSIONS; what is wrong is an error.
"""

import json
import sys

import kubernetes_validate
import yaml
from helm_python import Chart, lint

# The oldest release that the chart allows, one in between, and the newest that there is a schema of.
VERSIONS = ["1.26", "1.32", "1.37"]
# Kinds of others; the API server itself has no schema of them.
FOREIGN = {"PodMonitor", "PrometheusRule", "NetworkAttachmentDefinition"}
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class UniqueKeys(LOADER):
    """YAML in which a key that comes twice is an error, as it is for the API server."""

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value]
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            raise ValueError(f"keys that come twice: {sorted(twice)}")
        return super().construct_mapping(node, deep)


def items(text, known):
    """The valid objects of a text; a text that was seen before is not looked at again."""
    if text not in known:
        found = [item for item in yaml.load_all(text, UniqueKeys) if item is not None]
        for item in found:
            for version in VERSIONS if item["kind"] not in FOREIGN else []:
                kubernetes_validate.validate(item, version, strict=True)
        known[text] = found
    return known[text]


def objects(rendered, known):
    texts = [text for name, text in sorted(rendered.items()) if not name.endswith("NOTES.txt")]
    return [item for text in texts for item in items(text, known)]


def answer(path, chart, request, known):
    if "lint" in request:
        return lint(path, request["lint"], strict=True)
    if "schema" in request:
        chart.validate_schema(request["schema"])
        return {"error": None}
    chart.validate_schema(request["values"])
    rendered = chart.render(request["values"], name="redirect-cni", namespace=request["namespace"])
    notes = next(text for name, text in rendered.items() if name.endswith("NOTES.txt"))
    return {"objects": objects(rendered, known), "notes": notes}


def main(path):
    chart, known = Chart.load(path), {}
    for line in sys.stdin:
        try:
            result = answer(path, chart, json.loads(line), known)
        except Exception as error:  # what the libraries raise is the answer
            result = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(result), flush=True)


main(sys.argv[1])
