#!/usr/bin/env python3
"""Writes the software bill of materials of the programs: CycloneDX 1.5, as JSON.

    packaging/sbom.py [--version VERSION] [--target TRIPLE] > sbom.cdx.json

It lists the crates of Cargo.lock that the programs are built from, with the checksums that cargo verifies. The output depends
only on the source: it contains no timestamps, paths or random numbers.
"""
import argparse
import hashlib
import json
import pathlib
import subprocess
import sys
import tomllib
import urllib.parse
import uuid

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROGRAMS = ("gravwell-logctl", "gravwell_datastore", "gravwell_webserver")
# The package of the programs.
PACKAGE = "gravwell"


def metadata(target):
    command = ["cargo", "metadata", "--locked", "--format-version", "1", "--filter-platform", target]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=ROOT).stdout)


def built(target):
    """Returns names and versions of the built crates; the metadata also lists crates of disabled features."""
    command = ["cargo", "tree", "--locked", "-p", PACKAGE, "--edges", "normal,build", "--target", target, "--prefix", "none", "--format", "{p}"]
    lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT).stdout.splitlines()
    return {tuple(line.replace(" v", " ", 1).split()[:2]) for line in lines if line}


def reached(nodes, root, kinds, is_left_out=lambda package: False):
    """Returns the packages reachable from the root over dependencies of these kinds, without those left out and their own."""
    found, left = set(), [root]
    while left:
        package = left.pop()
        if package in nodes and package not in found and not is_left_out(package):
            found.add(package)
            left += [dep["pkg"] for dep in nodes[package] if {kind["kind"] for kind in dep["dep_kinds"]} & kinds]
    return found


def reference(package):
    return f"pkg:cargo/{urllib.parse.quote(package['name'])}@{urllib.parse.quote(package['version'])}"


def component(package, checksum, is_linked):
    made = {
        "type": "library",
        "bom-ref": reference(package),
        "name": package["name"],
        "version": package["version"],
        # Macros and build scripts run during the build and are not part of the programs.
        "scope": "required" if is_linked else "excluded",
        "licenses": [{"expression": package["license"].replace("/", " OR ").replace("  ", " ")}],
        "purl": reference(package),
        "hashes": [{"alg": "SHA-256", "content": checksum}],
    }
    if package["repository"]:
        made["externalReferences"] = [{"type": "vcs", "url": package["repository"]}]
    return made


def bill(version, target):
    found = metadata(target)
    names = built(target)
    packages = {package["id"]: package for package in found["packages"] if (package["name"], package["version"]) in names}
    nodes = {node["id"]: node["deps"] for node in found["resolve"]["nodes"] if node["id"] in packages}
    root = next(package for package in found["workspace_members"] if packages.get(package, {}).get("name") == PACKAGE)
    # The crates of this workspace are the program itself.
    inner = set(found["workspace_members"]) & set(packages)
    lock = tomllib.loads((ROOT / "Cargo.lock").read_text())["package"]
    checksums = {(entry["name"], entry["version"]): entry.get("checksum") for entry in lock}
    linked = reached(nodes, root, {None}, lambda package: is_macro(packages[package]))
    listed = sorted(reached(nodes, root, {None, "build"}) - inner, key=lambda package: reference(packages[package]))
    own = f"pkg:generic/gravwell@{urllib.parse.quote(version or packages[root]['version'])}"

    def ref(package):
        return own if package in inner else reference(packages[package])

    def depends_on(package):
        parts = reached(nodes, root, {None, "build"}) & inner if package == root else {package}
        deps = [dep for part in parts for dep in nodes[part] if {kind["kind"] for kind in dep["dep_kinds"]} & {None, "build"}]
        return sorted({ref(dep["pkg"]) for dep in deps if dep["pkg"] in packages and dep["pkg"] not in inner})

    application = {
        "type": "application",
        "bom-ref": own,
        "name": "gravwell",
        "version": version or packages[root]["version"],
        "licenses": [{"expression": packages[root]["license"]}],
        "purl": own,
        "properties": [{"name": "gravwell:program", "value": program} for program in PROGRAMS]
        + [{"name": "gravwell:target", "value": target}],
    }
    components = []
    for package in listed:
        described = packages[package]
        checksum = checksums.get((described["name"], described["version"]))
        if checksum is None:
            sys.exit(f"{described['name']} {described['version']} has no checksum in Cargo.lock; use a crate from a registry")
        components.append(component(described, checksum, package in linked))
    contents = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": application},
        "components": components,
        "dependencies": [{"ref": ref(package), "dependsOn": depends_on(package)} for package in [root, *listed]],
    }
    digest = hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).digest()
    return contents | {"serialNumber": uuid.UUID(bytes=digest[:16], version=5).urn}


def is_macro(package):
    return any("proc-macro" in target["kind"] for target in package["targets"])


def main():
    arguments = argparse.ArgumentParser(description="Writes the software bill of materials of the programs.")
    arguments.add_argument("--version", help="version of the package [default: version in Cargo.toml]")
    arguments.add_argument("--target", default="x86_64-unknown-linux-gnu", help="target triple of the programs [default: %(default)s]")
    given = arguments.parse_args()
    print(json.dumps(bill(given.version, given.target), indent=1, sort_keys=True, ensure_ascii=False))


main()
