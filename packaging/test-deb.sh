#!/usr/bin/env bash
# Tests the life cycle of the packages: install, use, upgrade with data, remove, purge.
#
# Runs as root in a temporary copy of this machine, which is an overlay over /. With GRAVWELL_DEB_ROOT=DIR it runs in an existing
# Debian system, for example from debootstrap. If mounting is impossible, GRAVWELL_DEB_HERE=yes runs the test on this machine,
# which must be disposable. Otherwise the test is skipped with a message.
#
#   packaging/test-deb.sh [--binaries DIR]
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
binaries=()
[ "${1:-}" = --binaries ] && binaries=(--binaries "$(cd "$2" && pwd)")

if [ "${GRAVWELL_DEB_INSIDE:-}" != yes ]; then
  work="$(mktemp -d)"
  root=
  cleanup() {
    for dir in run dev proc; do [ -z "$root" ] || umount -R "$root/$dir" 2>/dev/null || true; done
    umount "$work/layers/root" 2>/dev/null || true
    umount -l "$work/layers" 2>/dev/null || true
    rm -rf --one-file-system "$work"
  }
  trap cleanup EXIT
  version="$(sed -n 's/^version = "\(.*\)"/\1/p' "$here/../Cargo.toml" | head -1)"
  # These packages are temporary, so they are not compressed.
  export GRAVWELL_DEB_COMPRESSION=none
  "$here/build-deb.sh" "${binaries[@]}" --version "$version~before" --out "$work/deb/old"
  "$here/build-deb.sh" "${binaries[@]}" --out "$work/deb/new"
  cp "$here/test-deb.sh" "$here/../docs/operating.md" "$work/deb/"
  inside=(env GRAVWELL_DEB_INSIDE=yes "GRAVWELL_VERSION=$version")
  mkdir "$work/layers"
  if [ -n "${GRAVWELL_DEB_ROOT:-}" ]; then
    root="$GRAVWELL_DEB_ROOT"
  elif mount -t tmpfs tmpfs "$work/layers" 2>/dev/null && mkdir -p "$work"/layers/{upper,work,root} &&
    mount -t overlay overlay -o "lowerdir=/,upperdir=$work/layers/upper,workdir=$work/layers/work" "$work/layers/root" 2>/dev/null; then
    root="$work/layers/root"
  elif [ "${GRAVWELL_DEB_HERE:-}" = yes ]; then
    rm -rf /tmp/deb && cp -r "$work/deb" /tmp/deb
    "${inside[@]}" bash /tmp/deb/test-deb.sh
    exit
  else
    echo "SKIPPED: cannot mount file systems here; set GRAVWELL_DEB_ROOT=DIR or GRAVWELL_DEB_HERE=yes" >&2
    exit 0
  fi
  for dir in proc dev; do mount --rbind "/$dir" "$root/$dir" && mount --make-rslave "$root/$dir"; done
  # Hides the service manager of the host.
  mount -t tmpfs tmpfs "$root/run"
  rm -rf "$root/tmp/deb" && cp -r "$work/deb" "$root/tmp/deb"
  chroot "$root" "${inside[@]}" bash /tmp/deb/test-deb.sh
  exit
fi

cd /tmp/deb
step() { printf '\n-- %s\n' "$*"; }
fail() { echo "FAILED: $*" >&2; exit 1; }
have() { for file in "$@"; do [ -e "$file" ] || fail "$file is missing"; done; }
gone() { for file in "$@"; do [ ! -e "$file" ] || fail "$file still exists"; done; }
state() { dpkg-query -W -f '${db:Status-Abbrev} ${Version}\n' "$1" 2>/dev/null || echo absent; }
D=/opt/gravwell/datastore
W=/opt/gravwell/webserver
pids=()
stop_all() { for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null && wait "$pid" || true; done; pids=(); }
trap stop_all EXIT
wait_for() { for _ in $(seq 300); do "$@" >/dev/null 2>&1 && return 0; sleep 0.1; done; fail "timed out after 30 s: $*"; }
exec_of() { sed -n 's/^ExecStart=//p' "/usr/lib/systemd/system/$1.service"; }
# Runs the command of the unit as the user gravwell.
start() {
  cat >/opt/gravwell/etc/gravwell.conf.d/test.conf <<END
[Global]
Datastore-Listen-Address=127.0.0.1
Datastore-Port=39405
Web-Listen-Address=127.0.0.1
Web-Port=38443
Disable-HTTP-Redirector=true
END
  chgrp gravwell /opt/gravwell/etc/gravwell.conf.d/test.conf
  # shellcheck disable=SC2046
  setpriv --reuid gravwell --regid gravwell --clear-groups $(exec_of "$1") >>"/tmp/deb/$1.log" 2>&1 &
  pids+=($!)
}

apt() {
  [ "$1" = install ] || command apt "$@"
  shift
  dpkg --install "$@"
}

step "install"
cd old
# Runs the commands of the guide.
eval "$(sed -n '/^```sh packages$/,/^```$/p' ../operating.md | grep '^apt install' | sort -u)"
cd ..
for name in gravwell-tools gravwell-datastore gravwell-webserver; do
  [ "$(state $name)" = "ii  $GRAVWELL_VERSION~before" ] || fail "$name: $(state $name)"
done
have /usr/bin/gravwell{_datastore,_webserver,-logctl} /opt/gravwell/etc/gravwell.conf
have /usr/share/man/man1/gravwell{_datastore,_webserver,-logctl,-logctl-enroll}.1.gz
have /usr/share/bash-completion/completions/gravwell-logctl /usr/lib/sysctl.d/60-gravwell.conf
have /usr/share/doc/gravwell-{tools,datastore,webserver}/sbom.cdx.json
grep -q '"bomFormat": "CycloneDX"' /usr/share/doc/gravwell-webserver/sbom.cdx.json || fail "no bill of materials"
bash -n /usr/share/bash-completion/completions/gravwell-logctl
id gravwell >/dev/null || fail "no user"
[ "$(stat -Lc '%U %a' $D)" = "gravwell 700" ] || fail "$(stat -Lc '%U %a' $D)"
[ "$(stat -c '%U:%G %a' /opt/gravwell/etc/gravwell.conf)" = "root:gravwell 640" ] || fail "wrong owner or mode of gravwell.conf"
have /usr/lib/systemd/system/gravwell_{datastore,webserver,backup}.service /usr/lib/systemd/system/gravwell_backup.timer
gone /etc/systemd/system/multi-user.target.wants/gravwell_datastore.service
SYSTEMD_OFFLINE=1 systemctl enable gravwell_datastore gravwell_webserver
have /etc/systemd/system/multi-user.target.wants/gravwell_datastore.service

step "use"
start gravwell_datastore
wait_for test -S $D/ctl.sock
gravwell-logctl enroll web1 >web1.token
gravwell-logctl --data-dir $W join - <web1.token
# The command ran as root, but must not create files owned by root.
[ -z "$(find -L $W $D ! -user gravwell)" ] || fail "wrong owner: $(find -L $W $D ! -user gravwell)"
start gravwell_webserver
wait_for gravwell-logctl --data-dir $W barrier
gravwell-logctl --data-dir $W put notes first --value '{"kept":"over the upgrade"}'
wait_for test -s $W/initial-admin-password

step "upgrade from the previous version, with data and a changed configuration"
echo "# a line of the operator's own" >>/opt/gravwell/etc/gravwell.conf
stop_all
before="$(gravwell-logctl export | sha256sum)"
dpkg --install --force-confdef --force-confold new/*.deb
for name in gravwell-tools gravwell-datastore gravwell-webserver; do
  [ "$(state $name)" = "ii  $GRAVWELL_VERSION" ] || fail "$name: $(state $name)"
done
grep -q "a line of the operator's own" /opt/gravwell/etc/gravwell.conf || fail "the configuration was overwritten"
have /etc/systemd/system/multi-user.target.wants/gravwell_datastore.service
start gravwell_datastore
wait_for test -S $D/ctl.sock
[ "$(gravwell-logctl export | sha256sum)" = "$before" ] || fail "the data has changed"
start gravwell_webserver
wait_for gravwell-logctl --data-dir $W barrier
gravwell-logctl --data-dir $W get notes first | grep -q "over the upgrade"
gravwell-logctl verify

step "remove"
stop_all
dpkg --remove gravwell-webserver gravwell-datastore gravwell-tools
gone /usr/bin/gravwell_datastore /usr/bin/gravwell-logctl /usr/lib/systemd/system/gravwell_webserver.service
gone /etc/systemd/system/multi-user.target.wants/gravwell_datastore.service
have /opt/gravwell/etc/gravwell.conf /var/lib/gravwell-datastore/log /var/lib/gravwell-webserver

step "purge"
dpkg --purge gravwell-webserver gravwell-datastore gravwell-tools
gone /opt/gravwell/etc/gravwell.conf
[ "$(state gravwell-datastore)" = absent ] || fail "$(state gravwell-datastore)"
# Purging packages keeps the data.
have /var/lib/gravwell-datastore/log /var/lib/gravwell-webserver
step "passed"
