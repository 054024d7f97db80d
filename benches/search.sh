#!/usr/bin/env bash
# Measures rows per second and memory of searches over a million rows, compared with jq and journalctl on the same data.
#
#   benches/search.sh [ROWS]
#
# Requires jq, curl, python3 and, for journals, the Debian package systemd-journal-remote. Runs on loopback in a temporary directory,
# builds a release unless GRAVWELL_BIN names a directory with programs, and aborts steps after GRAVWELL_BENCH_SECONDS (300).
set -euo pipefail
cd "$(dirname "$0")/.."
rows="${1:-1000000}"
timeout_s="${GRAVWELL_BENCH_SECONDS:-300}"
bin="${GRAVWELL_BIN:-target/release}"
[ -x "$bin/gravwell_webserver" ] || cargo build --release --locked --bins
work="$(mktemp -d)"
pids=()
trap 'for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done; rm -rf "$work"' EXIT
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
port="$(free_port)"; journal_port="$(free_port)"

python3 - "$rows" "$work" <<'PYTHON'
import sys
rows, work = int(sys.argv[1]), sys.argv[2]
for name, first in (("rows", 0), ("others", rows)):
    with open(work + "/" + name + ".jsonl", "w") as out:
        for n in range(first, first + rows):
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
  timeout "$timeout_s" /usr/lib/systemd/systemd-journal-remote -o "$work/journal/x.journal" "$work/export" >/dev/null 2>&1
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
  echo "the webserver does not respond:"; tail "$work/log"; exit 1
}
call() { curl -sf -m "$timeout_s" -H "Authorization: Bearer $token" "$@"; }
upload() {
  local guid
  guid="$(call "$url/api/resources" -d "{\"ResourceName\":\"$1\"}" | jq -r .GUID)"
  call -X PUT "$url/api/resources/$guid/raw" -F "file=@$work/$1.jsonl" >/dev/null
}

# Sets `peak` to the peak memory of a process in KiB, without starting a process that would use a processor.
peak=0
peak_of() {
  local key value rest
  peak=0
  while read -r key value rest; do [ "$key" = VmHWM: ] && peak="$value"; done 2>/dev/null <"/proc/$1/status" || true
}
# Records the sum of the peak memory of all filter processes.
watch_filters() {
  local -A most=()
  local end=$((SECONDS + timeout_s)) thread child children sum
  while [ "$SECONDS" -lt "$end" ]; do
    for thread in /proc/"$server"/task/*; do
      children=""
      { read -r children <"$thread/children"; } 2>/dev/null || true
      for child in $children; do
        peak_of "$child"
        [ "$peak" -gt "${most[$child]:-0}" ] && most[$child]="$peak"
      done
    done
    sum=0
    for child in "${!most[@]}"; do sum=$((sum + most[$child])); done
    echo "$sum" >"$work/filters"
    read -r -t 0.1 <>"$work/never" || true
  done
}
mkfifo "$work/never"
report() { awk -v name="$1" -v s="$2" -v rows="$rows" -v memory="$3" 'BEGIN {printf "%-58s %8.2f s %10d rows/s  %s\n", name, s, rows / s, memory}'; }
now() { date +%s.%N; }
sum_max=0
search() {
  local begin end watcher server_peak filters
  echo 5 >"/proc/$server/clear_refs"; echo 0 >"$work/filters"
  watch_filters & watcher=$!
  begin="$(now)"
  call "$url/api/search/direct?format=text" --data-urlencode "query@-" -G -X POST <<<"$1" >"$work/found"
  end="$(now)"
  kill "$watcher" 2>/dev/null || true; wait "$watcher" 2>/dev/null || true
  peak_of "$server"; server_peak=$((peak / 1024)); filters=$(($(cat "$work/filters") / 1024))
  [ $((server_peak + filters)) -gt "$sum_max" ] && sum_max=$((server_peak + filters))
  report "$1" "$(echo "$end - $begin" | bc)" "webserver $server_peak + filters $filters = $((server_peak + filters)) MiB"
}
compare() {
  local begin end
  begin="$(now)"
  timeout "$timeout_s" bash -c "$2" >"$work/wanted"
  end="$(now)"
  report "$1" "$(echo "$end - $begin" | bc)" ""
  if cmp -s "$work/found" "$work/wanted"; then echo "  same rows: $(wc -l <"$work/found")"; else echo "  DIFFERENT ROWS"; fi
}

range="since=2023-11-14 until=2023-12-30"
start
upload rows
# Restart after the upload, so that its memory is not counted as memory of searches.
kill "$server"; wait "$server" 2>/dev/null || true
start
echo "$rows rows; $(nproc) processors; load $(cut -d' ' -f1 /proc/loadavg); memory: peak of each process during the search"
echo "fresh process:"
search "tag=resource:rows $range | select(.status == 204) | .n"
compare "jq: the same filter over the file" "jq -c 'select(.status == 204) | .n' '$work/rows.jsonl'"
search "tag=resource:rows $range web7 | count"
search "tag=resource:rows $range | count by host | limit 1"
search "tag=resource:rows $range"
if [ -n "$indexer" ]; then
  search "tag=journal $range | select(.PRIORITY == \"3\") | .MESSAGE"
  compare "journalctl -o json | jq: the same filter" "journalctl -D '$work/journal' -o json | jq -r 'select(.PRIORITY == \"3\") | .MESSAGE'"
fi
upload others
echo "after an upload of $(($(stat -c %s "$work/others.jsonl") >> 20)) MiB into the same process:"
search "tag=resource:others $range | select(.status == 204) | .n"
compare "jq: the same filter over the file" "jq -c 'select(.status == 204) | .n' '$work/others.jsonl'"
search "tag=resource:others $range"
echo "peak sum: $sum_max MiB"
