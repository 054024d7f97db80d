#!/usr/bin/env bash
# Measures the request rate of a webserver with data in its local store, compared with nginx and the same bytes in a static
# file, and the delay until a change on one webserver is readable on another.
#
#   benches/http.sh [SECONDS]        default: 10 for each measurement
#   GRAVWELL_PROGRAMS=DIR benches/http.sh    with existing programs
#
# Requires nginx, wrk, curl and python3 (Debian: nginx-light wrk curl python3) and builds the release binaries. Everything runs
# on loopback, in a temporary directory that is removed at the end. Compare ratios: absolute figures depend on the machine.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds="${1:-10}"
for tool in nginx wrk curl python3; do
  command -v "$tool" >/dev/null || { echo "$tool is missing; run apt-get install nginx-light wrk curl python3" >&2; exit 2; }
done
programs="${GRAVWELL_PROGRAMS:-}"
if [ -z "$programs" ]; then
  cargo build --release --locked --bins
  programs=$(cargo metadata --format-version 1 --no-deps | python3 -c 'import json,sys; print(json.load(sys.stdin)["target_directory"])')/release
fi

work=$(mktemp -d)
pids=()
finish() {
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
  wait || true
  rm -rf "$work"
}
trap finish EXIT

free_port() { python3 -c 'import socket; s=socket.socket(); s.bind(("127.0.0.1",0)); print(s.getsockname()[1])'; }
until_ok() { for _ in $(seq 300); do "$@" >/dev/null 2>&1 && return; sleep 0.1; done; echo "timed out after 30 s: $*" >&2; exit 1; }

udp=$(free_port); a=$(free_port); b=$(free_port); static=$(free_port)
"$programs/gravwell_datastore" --data-dir "$work/d" --listen "127.0.0.1:$udp" --log-level warn & pids+=($!)
until_ok "$programs/gravwell-logctl" --data-dir "$work/d" status
for name in a b; do
  token=$("$programs/gravwell-logctl" --data-dir "$work/d" enroll "$name" --role webserver 2>/dev/null | head -1)
  "$programs/gravwell-logctl" --data-dir "$work/$name" join "$token" >/dev/null
done
start() {
  "$programs/gravwell_webserver" --data-dir "$work/$1" --listen "127.0.0.1:$2" --insecure-disable-https \
    --default-password --log-level warn & pids+=($!)
  until_ok sh -c "curl -s -d 'User=admin&Pass=changeme' http://127.0.0.1:$2/api/login | grep -q JWT"
}
start a "$a"; start b "$b"
token=$(curl -s -d 'User=admin&Pass=changeme' "http://127.0.0.1:$a/api/login" | python3 -c 'import json,sys; print(json.load(sys.stdin)["JWT"])')

# A dashboard of about 4 KiB.
id=$(python3 - <<'PY' | curl -s -H "Authorization: Bearer $token" -d @- "http://127.0.0.1:$a/api/dashboards"
import json
tiles = [{"id": n, "title": f"Errors of host {n}", "renderer": "table", "span": {"col": 4, "row": 4, "x": n, "y": 0}} for n in range(36)]
print(json.dumps({"Name": "Errors of the last hour", "Data": {"tiles": tiles, "version": 2}}))
PY
)
path="/api/dashboards/$id"
mkdir -p "$work/static/api/dashboards"
curl -s -H "Authorization: Bearer $token" "http://127.0.0.1:$a$path" > "$work/static$path"
# Workers of nginx that root starts run as another user, who cannot read the directory.
[ "$(id -u)" = 0 ] && as="user root;" || as=""
cat > "$work/nginx.conf" <<CONF
$as worker_processes auto; daemon off; pid $work/nginx.pid; error_log $work/nginx.log;
events { worker_connections 1024; }
http {
  access_log off; sendfile on; tcp_nodelay on; keepalive_requests 1000000; default_type application/json;
  client_body_temp_path $work/t1; proxy_temp_path $work/t2; fastcgi_temp_path $work/t3; uwsgi_temp_path $work/t4; scgi_temp_path $work/t5;
  server { listen 127.0.0.1:$static; root $work/static; }
}
CONF
nginx -c "$work/nginx.conf" & pids+=($!)
until_ok curl -sf "http://127.0.0.1:$static$path"
until_ok curl -sf -H "Authorization: Bearer $token" "http://127.0.0.1:$b$path"

echo "GET of one dashboard, $(wc -c < "$work/static$path") bytes, 16 connections kept alive, $seconds s each, in turn:"
measure() {
  wrk --latency -t2 -c16 -d"${seconds}s" -H "Authorization: Bearer $token" "http://127.0.0.1:$2$path" > "$work/wrk"
  grep -q "Non-2xx" "$work/wrk" && { cat "$work/wrk" >&2; exit 1; }
  printf '  %-10s %9s requests/s   p50 %9s   p99 %9s\n' "$1" "$(awk '/Requests\/sec/{print $2}' "$work/wrk")" \
    "$(awk '$1=="50%"{print $2}' "$work/wrk")" "$(awk '$1=="99%"{print $2}' "$work/wrk")"
  awk '/Requests\/sec/{print $2}' "$work/wrk" >> "$work/$1"
}
for _ in 1 2 3; do measure nginx "$static"; measure webserver "$b"; done
python3 - "$work" <<'PY'
import statistics, sys
middle = lambda name: statistics.median(float(line) for line in open(f"{sys.argv[1]}/{name}"))
print(f"  medians: webserver {middle('webserver'):.0f}, nginx {middle('nginx'):.0f} requests/s: {middle('webserver') / middle('nginx'):.2f} of nginx")
PY

echo "Propagation through the API: PUT at one webserver until GET at the other returns it, 200 times:"
python3 - "$a" "$b" "$path" "$token" <<'PY'
import http.client, json, sys, threading, time
a, b, path, token = sys.argv[1:]
head = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
def call(connection, method, body=None):
    connection.request(method, path, body, head)
    return json.loads(connection.getresponse().read())
writer, reader = http.client.HTTPConnection("127.0.0.1", int(a)), http.client.HTTPConnection("127.0.0.1", int(b))
took = []
for number in range(200):
    text = str(number)
    began = time.perf_counter()
    writing = threading.Thread(target=call, args=(writer, "PUT", json.dumps({"Description": text})))
    writing.start()
    while call(reader, "GET")["Description"] != text:
        assert time.perf_counter() - began < 30, "the change does not arrive within 30 s"
    took.append(time.perf_counter() - began)
    writing.join()
took.sort()
print(f"  p50 {took[100] * 1000:.1f} ms   p99 {took[197] * 1000:.1f} ms")
PY
