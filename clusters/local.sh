#!/usr/bin/env bash
# A Ray head on this machine, for jobs that outlive the shell they are started from. No cloud, no costs.
#
#   clusters/local.sh start [--num-cpus N …]     options go to `ray start`
#   eval "$(clusters/local.sh env)"              then: ray job submit --working-dir . -- python -m pipelines.pretrain …
#   clusters/local.sh stop
#
# BEIT_RAY is its folder (default ~/.beit-ray), BEIT_RAY_PORT its first port (default 6390; the dashboard has the next one).
set -euo pipefail

folder=${BEIT_RAY:-$HOME/.beit-ray}
port=${BEIT_RAY_PORT:-6390}
token=$folder/token
pid_file=$folder/pid

running() { [[ -f $pid_file ]] && kill -0 "$(< "$pid_file")" 2> /dev/null; }

case ${1:-} in
start)
    if running; then
        echo "it runs already (pid $(< "$pid_file")); stop it by: $0 stop" >&2
        exit 1
    fi
    if ((port + 3 >= 10002 && port <= 19999)); then
        echo "BEIT_RAY_PORT=$port: Ray gives the ports 10002 to 19999 to its workers" >&2
        echo "set BEIT_RAY_PORT=6390, or 20000 and above" >&2
        exit 2
    fi
    mkdir -p "$folder"
    chmod 700 "$folder" # Ray opens its own folder below to all users.
    if [[ ! -f $token ]]; then
        (umask 077 && python3 -c 'import secrets; print(secrets.token_hex(32), end="")' > "$token")
    fi
    # After `ray job stop` there is time for a last checkpoint. Without the last variable, Ray would put the
    # network's address in place of 127.0.0.1.
    RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$token RAY_JOB_STOP_WAIT_TIME_S=${RAY_JOB_STOP_WAIT_TIME_S:-180} \
        RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 \
        setsid ray start --head --block --port="$port" --dashboard-host=127.0.0.1 --dashboard-port=$((port + 1)) \
        --dashboard-agent-listen-port=$((port + 2)) --ray-client-server-port=$((port + 3)) \
        --node-ip-address=127.0.0.1 --temp-dir="$folder/tmp" --disable-usage-stats "${@:2}" > "$folder/log" 2>&1 &
    echo $! > "$pid_file"
    for _ in $(seq 120); do
        if ! running; then
            echo "Ray did not start:" >&2
            tail -n 20 "$folder/log" >&2
            exit 1
        fi
        if (exec 3<> "/dev/tcp/127.0.0.1/$((port + 1))") 2> /dev/null; then
            echo "Ray's dashboard is at 127.0.0.1:$((port + 1)) (pid $(< "$pid_file")); next: eval \"\$($0 env)\""
            exit 0
        fi
        sleep 1
    done
    echo "Ray's dashboard does not answer; see $folder/log" >&2
    exit 1
    ;;
env)
    echo "export RAY_API_SERVER_ADDRESS=http://127.0.0.1:$((port + 1)) RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$(printf %q "$token")"
    ;;
stop)
    if ! running; then
        echo "it does not run"
        exit 0
    fi
    # Its own processes only: `ray stop` would end every Ray of this machine.
    kill -TERM "$(< "$pid_file")"
    for _ in $(seq 60); do
        running || break
        sleep 1
    done
    if running; then
        kill -KILL -- "-$(< "$pid_file")"
    fi
    rm -f "$pid_file"
    echo "stopped"
    ;;
*)
    sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
