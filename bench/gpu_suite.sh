#!/usr/bin/env bash
# Everything a lent GPU should answer, in under ten minutes: parity in fp32 and 16 bits, the benchmark with full-size
# random weights at four sizes, recovery from running out of memory, the memory model against measured peaks.
#   bench/gpu_suite.sh [results.jsonl]            on a GPU
#   I2V_SUITE=toy bench/gpu_suite.sh results.jsonl    a rehearsal at toy size on the CPU
set -euo pipefail
cd "$(dirname "$0")/.."
out="${1:-gpu_results.jsonl}"
python="${PYTHON:-.venv/bin/python}"
export PYTHONPATH=.
: >"$out"

# Shows all of a part's output, keeps its last line (JSON), and goes on when a part fails: a lent GPU is short.
failed=0
part() {
  echo "== $1"
  local log status=0
  log="$(mktemp)"
  "$python" "${@:2}" >"$log" 2>&1 || status=$?
  cat "$log"
  if [ "$status" -ne 0 ]; then
    failed=1
  fi
  printf '{"part": "%s", "status": %d, "result": %s}\n' "$1" "$status" "$(tail -n 1 "$log" | grep '^{' || echo null)" >>"$out"
  rm -f "$log"
}

if [ "${I2V_SUITE:-}" = toy ]; then
  part parity bench/parity.py --device cpu --model toy --latents 2 5 6
  part recovery bench/out_of_memory.py --device cpu --model toy --small 64x64x2 --large 64x64x4
  part engine bench/engine.py --device cpu --model toy --size 64x64 --frames 2 --steps 2 --repeats 1 --threads 1
else
  part parity bench/parity.py --device cuda
  part recovery bench/out_of_memory.py --device cuda
  part "engine 512" bench/engine.py --device cuda --model published --size 512x512 --repeats 3
  part "engine 256" bench/engine.py --device cuda --model published --size 256x256 --repeats 2
  part "engine large" bench/engine.py --device cuda --model published --size 768x768 1280x704 --steps 10 --repeats 1
  part "engine 512 compiled" bench/engine.py --device cuda --model published --size 512x512 --steps 20 --repeats 2 --compile
fi
exit "$failed"
