"""The bill of materials of this repository, CycloneDX 1.5 JSON: `python .ci/sbom.py > sbom.json`.

Components are those of constraints.txt, the versions the tests were last green with; their licences
are what the installed packages say of themselves. The C++ kernels and runtime bring nothing but
their own sources and, for the runtime, nlohmann/json.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import tomllib
import uuid
from pathlib import Path

ROOT = Path(__file__).parents[1]


def bill() -> dict:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = [line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines()
            if "==" in line and not line.startswith("#")]
    parts = [component(name, version) for name, version in sorted(pins)]
    itself = {"type": "application", "bom-ref": "arcompile", "name": project["name"],
              "version": project["version"], "licenses": [{"license": {"id": "Apache-2.0"}}]}
    digest = hashlib.sha256(json.dumps([itself, parts]).encode()).hexdigest()
    return {"bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1,
            "serialNumber": f"urn:uuid:{uuid.UUID(digest[:32])}",  # the same for the same contents
            "metadata": {"component": itself}, "components": parts,
            "dependencies": [{"ref": "arcompile", "dependsOn": [p["bom-ref"] for p in parts]}]}


def component(name: str, version: str) -> dict:
    ref = f"pkg:pypi/{name.lower().replace('_', '-')}@{version}"
    found = {"type": "library", "bom-ref": ref, "name": name, "version": version, "purl": ref}
    try:
        meta = importlib.metadata.metadata(name)
    except importlib.metadata.PackageNotFoundError:
        return found
    said = meta.get("License-Expression") or meta.get("License") or ""
    if said and "\n" not in said and len(said) < 80:
        found["licenses"] = [{"license": {"name": said}}]
    return found


if __name__ == "__main__":
    print(json.dumps(bill(), indent=1))
