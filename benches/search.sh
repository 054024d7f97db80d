#!/usr/bin/env bash
# Rows per second and memory of searches over a million rows, beside jq and journalctl on the same data in the same run.
#
#   benches/search.sh [ROWS]
#
# Needs jq, curl and, for journals, Debian's package systemd-journal-remote. Uses loopback and a directory of its own.
set -euo pipefail
cd "$(dirname "$0")/.."
rows="${1:-1000000}"
bin="${GRAVWELL_BIN:-target/release}"
[ -x "$bin/gravwell_webserver" ] || cargo build --release --bins
work="$(mktemp -d)"
pids=()
trap 'for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done; rm -rf "$work"' EXIT
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
port="$(free_port)"; journal_port="$(free_port)"

python3 - "$rows" "$work" <<'PYTHON'
import sys
rows, work = int(sys.argv[1]), sys.argv[2]
with open(work + "/rows.jsonl", "w") as out:
    for n in range(rows):
        out.write('{"n":%d,"host":"web%d","status":%d,"path":"/a/b/%d","ms":%d.5}\n' % (n, n % 50, 200 + n % 7, n % 1000, n % 900))
with open(work + "/export", "w") as out:
    for n in range(rows):
        out.write("__REALTIME_TIMESTAMP=%d\n__MONOTONIC_TIMESTAMP=%d\n_BOOT_ID=3d5bbd4e0f8b4a6f9a5d4d6f4b4f4c3e\n"
                  "_HOSTNAME=web%d\nPRIORITY=%d\nMESSAGE=request %d took %d ms\n\n"
                  % (1700000000000000 + n * 1000, 1000 + n * 1000, n % 50, n % 8, n, n % 900))
PYTHON
gateway=/usr/lib/systemd/systemd-journal-gatewayd
indexer=""
if [ -x "$gateway" ]; then
  mkdir "$work/journal"
  /usr/lib/systemd/systemd-journal-remote -o "$work/journal/x.journal" "$work/export" >/dev/null 2>&1
  systemd-socket-activate -l "127.0.0.1:$journal_port" "$gateway" -D "$work/journal" >/dev/null 2>&1 &
  pids+=($!)
  indexer="Remote-Indexers=journal:http://127.0.0.1:$journal_port"
fi
rm -f "$work/export"
printf '[Global]\n%s\nSearch-Max-Seconds=3600\n' "$indexer" >"$work/gravwell.conf"
url="http://127.0.0.1:$port"
start() {
  "$bin/gravwell_webserver" --data-dir "$work/web" --config "$work/gravwell.conf" --listen "127.0.0.1:$port" \
    --insecure-disable-https --default-password >>"$work/log" 2>&1 &
  server=$!; pids+=("$server")
  for _ in $(seq 300); do
    token="$(curl -s -m 5 "$url/api/login" -d 'User=admin&Pass=changeme' | jq -r '.JWT // empty' 2>/dev/null || true)"
    [ -n "$token" ] && return
    sleep 0.2
  done
  echo "the webserver does not answer:"; tail "$work/log"; exit 1
}
start
call() { curl -sf -H "Authorization: Bearer $token" "$@"; }
# Started anew once the rows are stored: what storing them took is not what searching takes.
guid="$(call "$url/api/resources" -d '{"ResourceName":"rows"}' | jq -r .GUID)"
call -X PUT "$url/api/resources/$guid/raw" -F "file=@$work/rows.jsonl" >/dev/null
kill "$server"; wait "$server" 2>/dev/null || true
start

# Highest memory of the webserver and of its filter's process, in MiB.
peak() { awk '/VmHWM/ {printf "%d", $2 / 1024}' "/proc/$1/status" 2>/dev/null || echo 0; }
watch_filter() {
  local most=0 child now
  while :; do
    for child in $(pgrep -P "$server" 2>/dev/null || true); do
      now="$(peak "$child")"
      [ "${now:-0}" -gt "$most" ] && { most="$now"; echo "$most" >"$work/filter"; }
    done
    sleep 0.05
  done
}
report() { awk -v name="$1" -v s="$2" -v rows="$rows" -v memory="$3" 'BEGIN {printf "%-64s %8.2f s %10d rows/s  %s\n", name, s, rows / s, memory}'; }
now() { date +%s.%N; }
search() {
  local begin end watcher before
  echo 5 >"/proc/$server/clear_refs"; echo 0 >"$work/filter"
  before="$(awk '/VmRSS/ {printf "%d", $2 / 1024}' "/proc/$server/status")"
  watch_filter & watcher=$!
  begin="$(now)"
  call "$url/api/search/direct?format=text" --data-urlencode "query@-" -G -X POST <<<"$1" >"$work/found"
  end="$(now)"
  kill "$watcher" 2>/dev/null || true; wait "$watcher" 2>/dev/null || true
  report "webserver: $1" "$(echo "$end - $begin" | bc)" "webserver $(peak "$server") MiB ($before before), filter $(cat "$work/filter") MiB"
  md5sum <"$work/found" >"$work/sum"
}
beside() {
  local begin end
  begin="$(now)"
  eval "$2" >"$work/wanted"
  end="$(now)"
  report "$1" "$(echo "$end - $begin" | bc)" ""
  cmp -s "$work/found" "$work/wanted" && echo "  same rows: $(wc -l <"$work/found")" || echo "  DIFFERENT ROWS"
}

echo "$rows rows; $(nproc) processors; load $(cut -d' ' -f1 /proc/loadavg)"
range="since=2023-11-14 until=2023-12-30"
search "tag=resource:rows $range | select(.status == 204) | .n"
beside "jq: the same filter over the file" "jq -c 'select(.status == 204) | .n' '$work/rows.jsonl'"
search "tag=resource:rows $range web7 | count"
search "tag=resource:rows $range | count by host | limit 1"
search "tag=resource:rows $range"
if [ -n "$indexer" ]; then
  search "tag=journal $range | select(.PRIORITY == \"3\") | .MESSAGE"
  beside "journalctl -o json | jq: the same filter" "journalctl -D '$work/journal' -o json | jq -r 'select(.PRIORITY == \"3\") | .MESSAGE'"
fi
