#!/usr/bin/env bash
# Everything a GPU should answer in under ten minutes: parity in fp32 and 16 bits, the fused kernels, the benchmark with
# full-size random weights at four sizes, recovery from running out of memory, the memory model against measured peaks.
# The parts' limits add up to 590 s; what each really takes is not known, since it has not run on a GPU yet.
#   bench/gpu_suite.sh [results.jsonl]            on a GPU
#   I2V_SUITE=toy bench/gpu_suite.sh results.jsonl    a rehearsal at toy size on the CPU
# It needs the project's environment with a CUDA build of torch, diffusers included (the VAE is diffusers', and so is the
# rival): a machine without package access must be handed its wheels. What matters most comes first, and each part has its
# own time limit, so that one that hangs does not cost the others.
set -euo pipefail
cd "$(dirname "$0")/.."
out="${1:-${OUT:-.}/gpu_results.jsonl}"
python="${PYTHON:-.venv/bin/python}"
if [ -z "${PYTHON:-}" ] && [ ! -x "$python" ]; then
  python=python3
fi
export PYTHONPATH=".${PYTHONPATH:+:$PYTHONPATH}"
: >"$out"

# They are looked for, not imported: that takes seconds, and each part does it anyway.
"$python" -c 'from importlib.util import find_spec; exit(not all(map(find_spec, ("diffusers", "torch", "transformers"))))' || {
  echo "$python lacks torch, diffusers or transformers; run scripts/install there, or carry its wheels" >&2
  exit 2
}

# part NAME SECONDS SCRIPT...: shows its output, keeps its last line of JSON (also of a part that was cut short), goes on.
failed=0
part() {
  echo "== $1 (at most $2 s)"
  local log status=0
  log="$(mktemp)"
  timeout "$2" "$python" "${@:3}" 2>&1 | tee "$log" || status=$?
  if [ "$status" -ne 0 ]; then
    failed=1
  fi
  printf '{"part": "%s", "status": %d, "result": %s}\n' "$1" "$status" "$(grep '^{' "$log" | tail -n 1 | grep . || echo null)" >>"$out"
  rm -f "$log"
}

if [ "${I2V_SUITE:-}" = toy ]; then
  toy=(--device cpu --model toy)
  part parity 120 bench/parity.py "${toy[@]}" --latents 2 5 6
  part kernels 60 bench/kernels.py --device cpu
  part engine 200 bench/engine.py "${toy[@]}" --size 64x64 --frames 2 --steps 2 --repeats 1 --threads 1 --plain-kernels
  part recovery 120 bench/out_of_memory.py "${toy[@]}" --small 64x64x2 --large 64x64x4 --recovers 64x64x3
else
  gpu=(--device cuda --model published)
  part parity 60 bench/parity.py --device cuda
  part kernels 45 bench/kernels.py --device cuda
  part "gpu tests" 60 -m pytest -q -m gpu tests/engine
  part "engine 512" 130 bench/engine.py "${gpu[@]}" --size 512x512 --repeats 2 --graph --plain-kernels
  part recovery 80 bench/out_of_memory.py --device cuda
  part "engine other sizes" 100 bench/engine.py "${gpu[@]}" --size 256x256 768x768 1280x704 --steps 10 --repeats 1 --graph
  part "engine 512 compiled" 115 bench/engine.py "${gpu[@]}" --size 512x512 --steps 20 --repeats 2 --compile
fi
echo "== results"
cat "$out"
exit "$failed"
