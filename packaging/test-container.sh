#!/usr/bin/env bash
# Builds the image of packaging/Containerfile from existing programs and from libraries of this host instead of the published
# base image, runs the datastore in it, and checks its user, its data directory and its shutdown.
# Requires buildah, but no network and no daemon. Usage: packaging/test-container.sh [--binaries DIR]
set -euo pipefail
cd "$(dirname "$0")/.."

binaries=target/release
[ "${1:-}" = --binaries ] && binaries=$2
work=$(mktemp -d)
export STORAGE_DRIVER=vfs CONTAINERS_STORAGE_CONF=/dev/null
bud() { buildah --root "$work/root" --runroot "$work/run" bud --quiet --isolation chroot "$@" >/dev/null; }
in_image() { buildah --root "$work/root" --runroot "$work/run" "$@"; }
datastore=
finish() {
  [ -z "$datastore" ] || kill "$datastore" 2>/dev/null || true
  in_image umount --all >/dev/null 2>&1 || true
  rm -rf "$work"
}
trap finish EXIT

programs="$binaries/gravwell_datastore $binaries/gravwell_webserver $binaries/gravwell-logctl"
mkdir -p "$work/base/etc" "$work/base/tmp" "$work/built/source/target/release" "$work/built/data"
cp $programs "$work/built/source/target/release/"
for library in $(ldd $programs | grep -o '/lib[^ ]*' | sort -u); do
  install -D "$library" "$work/base$library"
done
echo 'nonroot:x:65532:65532::/:/sbin/nologin' >"$work/base/etc/passwd"
printf 'FROM scratch\nCOPY base/ /\n' >"$work/Base"
bud -f "$work/Base" -t standin "$work"
bud --build-arg BUILD=localhost/standin --build-arg BASE=localhost/standin --build-context "build=$work/built" \
  -f packaging/Containerfile -t gravwell .

container=$(in_image from gravwell)
run() { in_image run --isolation chroot "$container" -- "$@"; }
run gravwell_datastore --listen 127.0.0.1:0 2>"$work/log" &
for _ in $(seq 100); do run gravwell-logctl status >"$work/status" 2>/dev/null && grep -q running "$work/status" && break; sleep 0.2; done
grep -q 'datastore (running)' "$work/status"
run gravwell-logctl enroll web1 >/dev/null 2>&1
for process in /proc/[0-9]*; do
  [ "$(tr '\0' ' ' <"$process/cmdline" 2>/dev/null)" = "/usr/bin/gravwell_datastore --listen 127.0.0.1:0 " ] || continue
  [ "$(stat -c %u "$process")" = 65532 ] && datastore=${process#/proc/}
done
[ -n "$datastore" ] || { echo "the datastore does not run as the user of the image" >&2; exit 1; }
kill -TERM "$datastore"
datastore=
wait
grep -q stopping "$work/log"
echo "container test passed"
