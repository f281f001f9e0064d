#!/usr/bin/env bash
# A Ray cluster of one node on this machine, to submit jobs to. It outlives the shell, and leaves
# other Ray clusters of this machine alone.
#
#   eval "$(cluster/local.sh up)"                    start it, and tell this shell where it is
#   ray job submit -- jobs/full_cascade.py --recipe demo
#   cluster/local.sh status
#   cluster/local.sh down
#
# Ray's inner ports listen on every interface of the machine, whatever they are told; only the
# dashboard stays on loopback. So a token guards them all. It is not encryption.
set -euo pipefail
cd "$(dirname "$0")/.." # jobs/... is looked up from here
PATH="$PWD/.venv/bin:$PATH"
state="${XDG_STATE_HOME:-$HOME/.local/state}/dyefreenet"
dashboard_port="${DASHBOARD_PORT:-8265}"
address="http://127.0.0.1:$dashboard_port"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$state/token" RAY_USAGE_STATS_ENABLED=0
unset RAY_AUTH_TOKEN RAY_ADDRESS

running() { [[ -f $state/pid ]] && kill -0 "$(<"$state/pid")" 2>/dev/null; }
answers() { ray job list --address "$address" >/dev/null 2>&1; }

case "${1:-}" in
  up)
    command -v ray >/dev/null || { echo "ray is not installed; run: make install" >&2; exit 1; }
    if ! running; then
      mkdir -p "$state" && chmod 700 "$state"
      (umask 077 && python -c 'import secrets; print(secrets.token_hex(32), end="")' >"$state/token")
      echo "Starting Ray; its log is $state/ray.log" >&2
      setsid ray start --head --block --port="${RAY_PORT:-6379}" --node-ip-address=127.0.0.1 \
        --dashboard-host=127.0.0.1 --dashboard-port="$dashboard_port" --disable-usage-stats \
        >"$state/ray.log" 2>&1 </dev/null &
      echo $! >"$state/pid"
      for _ in $(seq 60); do
        answers && break
        running || { tail -n 20 "$state/ray.log" >&2; rm "$state/pid"; exit 1; }
        sleep 1
      done
      answers || { echo "Ray did not answer; see $state/ray.log" >&2; exit 1; }
      echo "Ray is up, its dashboard at $address" >&2
    fi
    echo "export RAY_API_SERVER_ADDRESS=$address RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$state/token"
    ;;
  down)
    running || { echo "Ray is not running."; exit 0; }
    pid="$(<"$state/pid")"
    kill -TERM "$pid"
    for _ in $(seq 30); do kill -0 "$pid" 2>/dev/null || break; sleep 1; done
    rm -f "$state/pid" "$state/token"
    echo "Ray is stopped."
    ;;
  status)
    if running && answers; then
      echo "Ray is up, its dashboard at $address"
    else
      echo "Ray is not running. To start it: eval \"\$(cluster/local.sh up)\""
      exit 1
    fi
    ;;
  *)
    sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0"
    exit 2
    ;;
esac
