#!/usr/bin/env bash
# Builds the Debian packages gravwell-tools, gravwell-datastore and gravwell-webserver.
#
# Requires cargo, python3 and dpkg-deb, which is part of every Debian system, and no network except for cargo's crates. The script
# uses dpkg-deb instead of debhelper or cargo-deb, because three small packages need no additional tools.
#
#   packaging/build-deb.sh [--out DIR] [--version VERSION] [--binaries DIR]
#
# --binaries packages existing programs instead of building a release.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
root="$(dirname "$here")"
out="$root/target/debian"
version="$(sed -n 's/^version = "\(.*\)"/\1/p' "$root/Cargo.toml" | head -1)"
binaries=""
while [ $# -gt 0 ]; do
  case "$1" in
    --out) out="$2"; shift 2 ;;
    --version) version="$2"; shift 2 ;;
    --binaries) binaries="$2"; shift 2 ;;
    *) echo "usage: $0 [--out DIR] [--version VERSION] [--binaries DIR]" >&2; exit 2 ;;
  esac
done
if [ -z "$binaries" ]; then
  (cd "$root" && cargo build --locked --release -p gravwell --bins)
  binaries="$root/target/release"
fi
arch="$(dpkg --print-architecture)"
stage="$(mktemp -d)"
trap 'rm -rf "$stage"' EXIT
umask 022
mkdir -p "$out" "$stage/bin"
for program in gravwell_datastore gravwell_webserver gravwell-logctl; do
  install -m 755 "$binaries/$program" "$stage/bin/"
  strip --strip-unneeded "$stage/bin/$program" 2>/dev/null || true
done
# The oldest C library with all symbol versions that the programs require.
glibc="$(cat "$stage"/bin/* | LC_ALL=C grep -aoE 'GLIBC_2\.[0-9]+' | LC_ALL=C sort -uV | tail -1 | sed 's/GLIBC_//')"

# The bill of materials is the same in each package, because the programs are built together.
"$here/sbom.py" --version "$version" --target "$(rustc -vV | sed -n 's/^host: //p')" >"$stage/sbom.cdx.json"

# put MODE SOURCE TARGET: installs a file into the current package.
put() { install -D -m "$1" "$2" "$pkg$3"; }
compressed() { mkdir -p "$pkg$(dirname "$2")"; gzip -9 -n -c "$1" >"$pkg$2"; }

begin() {
  name="$1"
  pkg="$stage/$name"
  mkdir -p "$pkg/DEBIAN"
  put 644 "$root/LICENSE" "/usr/share/doc/$name/copyright"
  put 644 "$stage/sbom.cdx.json" "/usr/share/doc/$name/sbom.cdx.json"
  put 644 "$root/docs/operating.md" "/usr/share/doc/$name/operating.md"
  put 644 "$root/docs/recovery.md" "/usr/share/doc/$name/recovery.md"
}

program() { put 755 "$stage/bin/$1" "/usr/bin/$1"; }

# control DEPENDS DESCRIPTION < LONG_DESCRIPTION: builds the package.
control() {
  {
    echo "Package: $name"
    echo "Version: $version"
    echo "Architecture: $arch"
    echo "Maintainer: Gravwell packaging <packaging@gravwell.invalid>"
    echo "Section: admin"
    echo "Priority: optional"
    echo "Installed-Size: $(du -ks "$pkg" | cut -f1)"
    echo "Depends: $1"
    echo "Description: $2"
    sed 's/^/ /; s/^ $/ ./'
  } >"$pkg/DEBIAN/control"
  (cd "$pkg" && find . -type f ! -path './DEBIAN/*' -printf '%P\0' | LC_ALL=C sort -z | xargs -0 md5sum) >"$pkg/DEBIAN/md5sums"
  chmod 755 "$pkg"
  dpkg-deb --root-owner-group "-Z${GRAVWELL_DEB_COMPRESSION:-xz}" --build "$pkg" "$out/${name}_${version}_${arch}.deb" >/dev/null
  echo "$out/${name}_${version}_${arch}.deb"
}

script() { cat >"$pkg/DEBIAN/$1"; chmod 755 "$pkg/DEBIAN/$1"; }

# The operator enables and starts units after configuring them; an upgrade restarts running units.
unit_scripts() {
  script postinst <<END
#!/bin/sh
set -e
if [ "\$1" = configure ]; then
  systemd-tmpfiles --create $name.conf >/dev/null || true
  if [ -d /run/systemd/system ]; then
    systemctl daemon-reload
    if [ -n "\$2" ]; then systemctl try-restart $1.service; fi
  fi
fi
END
  script prerm <<END
#!/bin/sh
set -e
if [ "\$1" = remove ] && [ -d /run/systemd/system ]; then
  systemctl disable --now $1.service
fi
END
  script postrm <<END
#!/bin/sh
set -e
if [ "\$1" = remove ] || [ "\$1" = purge ]; then
  # Without a running service manager, only this script removes the link.
  rm -f /etc/systemd/system/multi-user.target.wants/$1.service
  if [ -d /run/systemd/system ]; then systemctl daemon-reload; fi
fi
if [ "\$1" = purge ] && [ -d /var/lib/$name ]; then
  echo "$name: the data in /var/lib/$name is kept; delete it when you no longer need it" >&2
fi
END
}

begin gravwell-tools
program gravwell-logctl
"$stage/bin/gravwell-logctl" man --out "$stage/man" >/dev/null
for page in "$stage"/man/gravwell-logctl*.1; do compressed "$page" "/usr/share/man/man1/$(basename "$page").gz"; done
mkdir -p "$pkg"/usr/share/{bash-completion/completions,zsh/vendor-completions,fish/vendor_completions.d}
"$stage/bin/gravwell-logctl" completions bash >"$pkg/usr/share/bash-completion/completions/gravwell-logctl"
"$stage/bin/gravwell-logctl" completions zsh >"$pkg/usr/share/zsh/vendor-completions/_gravwell-logctl"
"$stage/bin/gravwell-logctl" completions fish >"$pkg/usr/share/fish/vendor_completions.d/gravwell-logctl.fish"
put 640 "$here/gravwell.conf" /opt/gravwell/etc/gravwell.conf
put 644 "$here/60-gravwell.conf" /usr/lib/sysctl.d/60-gravwell.conf
put 644 "$here/gravwell.sysusers" /usr/lib/sysusers.d/gravwell.conf
put 644 "$here/gravwell.tmpfiles" /usr/lib/tmpfiles.d/gravwell.conf
put 644 "$here/gravwell_balancer.service" /usr/lib/systemd/system/gravwell_balancer.service
for file in "$here"/monitoring/*; do put 644 "$file" "/usr/share/doc/gravwell-tools/monitoring/$(basename "$file")"; done
echo /opt/gravwell/etc/gravwell.conf >"$pkg/DEBIAN/conffiles"
script postinst <<'END'
#!/bin/sh
set -e
if [ "$1" = configure ]; then
  systemd-sysusers gravwell.conf
  systemd-tmpfiles --create gravwell.conf
  if [ -d /run/systemd/system ]; then
    systemctl daemon-reload
    /usr/lib/systemd/systemd-sysctl 60-gravwell.conf || true
  fi
fi
END
script postrm <<'END'
#!/bin/sh
set -e
if [ "$1" = purge ]; then
  # Keep the user, who owns the remaining files.
  rmdir --ignore-fail-on-non-empty /opt/gravwell/etc/gravwell.conf.d /opt/gravwell/etc /opt/gravwell 2>/dev/null || true
fi
END
control "libc6 (>= $glibc), systemd" "Operator's tool for the Gravwell datastore and webservers" <<'END'
gravwell-logctl inspects, verifies, repairs and administers replicated logs,
configures load balancers and creates certificates. The package also contains
the configuration, the user and the kernel settings that all Gravwell services
of a host share.
END

for kind in datastore webserver; do
  begin "gravwell-$kind"
  program "gravwell_$kind"
  compressed "$stage/man/gravwell_$kind.1" "/usr/share/man/man1/gravwell_$kind.1.gz"
  put 644 "$here/gravwell_$kind.service" "/usr/lib/systemd/system/gravwell_$kind.service"
  if [ "$kind" = datastore ]; then
    for unit in service timer; do put 644 "$here/gravwell_backup.$unit" "/usr/lib/systemd/system/gravwell_backup.$unit"; done
  fi
  put 644 "$here/gravwell-$kind.tmpfiles" "/usr/lib/tmpfiles.d/gravwell-$kind.conf"
  # Path in the Gravwell documentation and in all defaults.
  mkdir -p "$pkg/opt/gravwell"
  ln -s "/var/lib/gravwell-$kind" "$pkg/opt/gravwell/$kind"
  unit_scripts "gravwell_$kind"
  control "libc6 (>= $glibc), gravwell-tools (= $version), systemd" "Gravwell $kind" <<END
$( [ $kind = datastore ] &&
  echo "Keeps the operation log of a fleet of webservers and serves it over QUIC." ||
  echo "Serves users, dashboards, preferences, search histories and resources
from a local replica of its datastore's log, or in standalone mode." )
END
done
