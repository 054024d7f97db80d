#!/usr/bin/env python3
"""Checks the dependencies against deny.toml without cargo-deny: licences, sources, multiple versions, bans.

Does not check advisories, which need a database that cargo-deny downloads.
"""
import collections
import json
import pathlib
import re
import subprocess
import sys
import tomllib

root = pathlib.Path(__file__).resolve().parent.parent
rules = tomllib.loads((root / "deny.toml").read_text())
allowed = set(rules["licenses"]["allow"])
registries = {f"registry+{address}" for address in rules["sources"]["allow-registry"]}
banned = {entry["crate"] for entry in rules["bans"]["deny"]}
skipped = [entry["crate"].split("@") for entry in rules["bans"]["skip"]]


def is_allowed(expression):
    """Returns whether an alternative of an SPDX expression has only allowed terms; AND binds more tightly than OR."""
    expression = expression.replace("/", " OR ")
    while group := re.search(r"\(([^()]*)\)", expression):
        expression = expression.replace(group.group(0), "MIT" if is_allowed(group.group(1)) else "refused")
    terms = [re.split(r"\s+AND\s+", part) for part in re.split(r"\s+OR\s+", expression)]
    return any(all(term.strip() in allowed for term in part) for part in terms)


def is_skipped(name, version):
    return any(name == known and f"{version}.".startswith(f"{start}.") for known, start in skipped)


assert is_allowed("(MIT OR Apache-2.0) AND Unicode-3.0") and is_allowed("Apache-2.0 OR GPL-2.0-only")
assert not is_allowed("MIT AND GPL-2.0-only") and not is_allowed("(MIT OR ISC) AND GPL-3.0") and not is_allowed("")

platforms = [word for target in rules["graph"]["targets"] for word in ("--filter-platform", target)]
command = ["cargo", "metadata", "--locked", "--all-features", "--format-version", "1", *platforms]
metadata = json.loads(subprocess.run(command, check=True, capture_output=True, cwd=root).stdout)

# The metadata also lists crates of disabled features; cargo tree lists only the built crates.
tree = ["cargo", "tree", "--locked", "--all-features", "--edges", "normal,build,dev", "--prefix", "none", "--format", "{p}"]
built = set()
for target in rules["graph"]["targets"]:
    lines = subprocess.run([*tree, "--target", target], check=True, capture_output=True, text=True, cwd=root).stdout
    built |= {tuple(line.replace(" v", " ", 1).split()[:2]) for line in lines.splitlines() if line}
packages = [package for package in metadata["packages"] if (package["name"], package["version"]) in built]
assert len(packages) == len(built), "cargo tree and cargo metadata list different crates"
failures = []
versions = collections.defaultdict(set)
for package in packages:
    name, version = package["name"], package["version"]
    versions[name].add(version)
    if not is_allowed(package["license"] or ""):
        failures.append(f"{name} {version}: licence {package['license']!r}")
    if package["source"] is not None and package["source"] not in registries:
        failures.append(f"{name} {version}: source {package['source']} is not allowed")
    if name in banned:
        failures.append(f"{name} {version}: banned")
    if package["source"] is None and any(dependency["req"] == "*" and not dependency.get("path") for dependency in package["dependencies"]):
        failures.append(f"{name} {version}: dependency with version requirement *")
for name, found in sorted(versions.items()):
    left = {version for version in found if not is_skipped(name, version)}
    if len(left) > 1:
        failures.append(f"{name}: versions {', '.join(sorted(left))}; use one version, or add a skip entry with a reason to deny.toml")
for name, start in skipped:
    if not any(f"{version}.".startswith(f"{start}.") for version in versions[name]) or len(versions[name]) < 2:
        failures.append(f"deny.toml: {name}@{start} is skipped, but there is no second version")
print(f"{len(packages)} packages, {sum(len(found) > 1 for found in versions.values())} in multiple versions")
for failure in failures:
    print("FAIL", failure, file=sys.stderr)
sys.exit(bool(failures))
