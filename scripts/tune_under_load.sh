#!/usr/bin/env bash
# Checks whether `tune` hands over the fastest measured plan on a machine with other load: the given number of
# runs, while two processes more than there are cores compute. Prints for each run the measured time of the
# plan handed over / that of the fastest measured plan (1.000 is right), the verdict, and the exit code (5:
# still refuted). LOAD=0 runs it without load.
set -euo pipefail
times=${1:-5}
folder=${2:-autodist-under-load}
cd "$(dirname "$0")/.."
cargo build --release --quiet
load=${LOAD:-$(($(nproc) + 2))}
busy=()
trap '[ ${#busy[@]} -eq 0 ] || kill "${busy[@]}" 2> /dev/null' EXIT
for ((i = 0; i < load; i++)); do
    sh -c 'while :; do :; done' &
    busy+=($!)
done
for ((i = 1; i <= times; i++)); do
    code=0
    rm -rf "${folder:?}/$i"
    mkdir -p "$folder"
    # shellcheck disable=SC2086
    target/release/autodist tune ${TUNE:---budget 20 --steps 10} -o "$folder/$i" > "$folder/$i.txt" 2>&1 || code=$?
    python3 - "$i" "$code" "$folder/$i" <<'END'
import json, sys

number, code, folder = sys.argv[1:]
plan = json.load(open(f"{folder}/plan.json"))
validation = json.load(open(f"{folder}/runs/validation.json"))
time = lambda run: run["measured"]["adjusted_step_time_s"]
fastest = min(map(time, validation["runs"]))
ours = [time(run) for run in validation["runs"] if run["strategy"] == plan["strategy"]]
ratio = f"{ours[0] / fastest:.3f}" if ours else "not measured"
print(f"run {number}: handed over / fastest measured {ratio}, verdict {validation.get('verdict', 'unknown')}, exit code {code}")
END
done
