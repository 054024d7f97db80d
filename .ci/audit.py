#!/usr/bin/env python3
"""Fails on a dependency whose licence is not on the list, or on too many duplicate versions."""
import collections
import json
import re
import subprocess
import sys

ALLOWED = {
    "MIT", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-2-Clause", "BSD-3-Clause", "ISC", "Zlib", "0BSD",
    "CC0-1.0", "Unicode-3.0", "Unlicense", "BSL-1.0", "MIT-0", "CDLA-Permissive-2.0", "OpenSSL", "Unicode-DFS-2016",
}
DUPLICATES_MAX = 12

metadata = json.loads(subprocess.run(
    ["cargo", "metadata", "--locked", "--format-version", "1", "--filter-platform", "x86_64-unknown-linux-gnu"],
    check=True, capture_output=True).stdout)
failures = []
versions = collections.defaultdict(list)
for package in metadata["packages"]:
    versions[package["name"]].append(package["version"])
    expression = (package["license"] or "").replace("/", " OR ")
    alternatives = [re.split(r" AND ", part.strip("() ")) for part in re.split(r" OR ", expression.replace("(", "").replace(")", ""))]
    if not any(all(term.strip() in ALLOWED for term in terms) for terms in alternatives):
        failures.append(f"{package['name']} {package['version']}: licence {package['license']!r}")
duplicates = {name: sorted(found) for name, found in versions.items() if len(found) > 1}
for name, found in sorted(duplicates.items()):
    print(f"duplicate: {name} {', '.join(found)}")
if len(duplicates) > DUPLICATES_MAX:
    failures.append(f"{len(duplicates)} dependencies come in several versions; {DUPLICATES_MAX} are allowed")
print(f"{len(metadata['packages'])} packages, {len(duplicates)} in several versions")
for failure in failures:
    print("FAIL", failure, file=sys.stderr)
sys.exit(bool(failures))
