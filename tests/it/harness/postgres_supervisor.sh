#!/usr/bin/env bash
# Runs the Postgres that the tests of one run share, and stops it when no test has used it for a while.
#
# usage: postgres_supervisor.sh SHARED_DIR RUN_DIR IDLE_SECONDS COMMAND...
#
# A test holds a shared lock on SHARED_DIR/users.lock for as long as it lives; the kernel drops it however the test ends.
# Tests take that lock only while they hold SHARED_DIR/start.lock, so whoever holds start.lock and finds users.lock free
# can stop the server without a test being about to use it.
set -euo pipefail

shared_dir=$1 run_dir=$2 idle_seconds=$3
shift 3

"$@" >>"$shared_dir/postgres.log" 2>&1 &
server=$!

nobody_uses_it() { flock --exclusive --nonblock "$shared_dir/users.lock" true; }

stop_server() {
  kill -INT "$server" 2>/dev/null || true # fast shutdown
  wait "$server" || true
}

forget_server() {
  if [[ -f $shared_dir/server.json ]] && grep -qF "\"$run_dir\"" "$shared_dir/server.json"; then
    rm -f "$shared_dir/server.json"
  fi
  rm -rf "$run_dir"
}

trap 'stop_server; forget_server; exit 0' TERM INT HUP

# Directories of tests that were killed with SIGKILL; no run lasts a day.
find "$(dirname "$run_dir")" -maxdepth 1 -type d -name 'dlp-it-*' -user "$(id -un)" -mmin +1440 -exec rm -rf {} + || true

idle=0
while kill -0 "$server" 2>/dev/null; do
  sleep 1
  if nobody_uses_it; then idle=$((idle + 1)); else idle=0; fi
  if ((idle >= idle_seconds)); then
    exec 9>"$shared_dir/start.lock"
    flock --exclusive 9
    if nobody_uses_it; then break; fi
    exec 9>&-
    idle=0
  fi
done
stop_server
forget_server
