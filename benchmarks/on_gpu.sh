#!/usr/bin/env bash
# Checks every GPU path against the float64 reference, then measures the paper's protocol.
#
#   benchmarks/on_gpu.sh [--cpu-smoke] [FOLDER]
#
# Writes a log, tables, CSV, JSON and charts to FOLDER (default: benchmarks/results/gpu). Ends within
# 10 minutes: each step has a limit, 590 s in all; a step that meets its limit is reported and
# leaves the tables that it had finished.
# The status is 0 if all went well, 1 if a step failed. Where the first check finds a kernel wrong,
# nothing is measured.
# --cpu-smoke runs the same steps on the CPU with tiny images, to show that they work.
set -u
cd "$(dirname "$0")/.."

smoke=false
if [ "${1:-}" = --cpu-smoke ]; then
  smoke=true
  shift
fi
out=${1:-benchmarks/results/gpu}
mkdir -p "$out"
failed=0

bench="-m esc_arch.cli bench"
exactness=benchmarks/exactness.py
attention=benchmarks/attention_backends.py

# step LIMIT_IN_SECONDS NAME ARGUMENTS_OF_PYTHON...
step() {
  local limit=$1 name=$2 status=0
  shift 2
  echo "== $name: python $*" | tee -a "$out/log.txt"
  timeout --signal=INT --kill-after=10 "$limit" \
    "${PYTHON:-python}" -W ignore "$@" --out "$out/$name" \
    2>&1 | tee -a "$out/log.txt"
  status=${PIPESTATUS[0]}
  last=$status
  if [ "$status" -ne 0 ]; then
    echo "== $name: FAILED with status $status" | tee -a "$out/log.txt"
    failed=1
  fi
}

# Ends if the step before, a check, found something wrong, which is status 1.
stop_if_wrong() {
  if [ "$last" -eq 1 ]; then
    echo "== something is wrong, and nothing is measured: see $out/log.txt"
    exit 1
  fi
}

: >"$out/log.txt"
if $smoke; then
  quick="--device cpu --repeats 1 --no-process-memory --threads 1"
  step 200 check $exactness --device cpu --models ESC_light --window-sizes 4 --size 12x8 --dtype float32
  stop_if_wrong
  step 100 x4_float32 $bench $quick --no-flops --scale 4 --size 16x8 --models ESC_light SwinIR_light
  step 100 attention $attention $quick --window-sizes 8 --size 16x16 --dtype float32 \
    --backends Naive Chunked SDPA plain-torch plain-flash-attn
  step 100 train $bench train $quick --batch 1 --patch 8 --models ESC_light:Naive ESC_light
  for batch in 1 2; do
    step 60 batch_$batch $bench $quick --no-flops --scale 4 --size 8x8 --batch $batch --models ESC_light
  done
  exit $failed
fi

# Memory is that of CUDA's allocator: a process each would take all of the time. FLOPs do not depend
# on the machine. HiT-SRF is not among the networks: no package that is installed by name has it.
gpu="--device cuda --no-process-memory"
networks="$gpu --no-flops"

step 110 check $exactness --device cuda --window-sizes 32 48 --dtype float32 float16 bfloat16
stop_if_wrong
step 65 x4_float32 $bench $networks --scale 4 --models \
  ESC ESC:Flex ESC:SDPA ESC:Chunked ESC:Naive ESC_FlashBias ESC_light ESC_light:Naive ESC_FP \
  ESC_FP:Naive SwinIR_light OmniSR ATD_light PLKSR SRFormer_light RCAN
step 35 x2_x3_float32 $bench $networks --scale 2 3 --repeats 10 --models \
  ESC ESC_light ESC_FP SwinIR_light OmniSR ATD_light PLKSR
step 70 attention $attention $gpu --size 320x180 --repeats 10 --grad no \
  --window-sizes 8 16 32 64 96 --dtype float32 bfloat16 \
  --backends Naive Chunked SDPA Flex Triton FlashBias plain-torch plain-flash-attn
step 40 attention_grad $attention $gpu --size 320x180 --repeats 10 --grad yes \
  --window-sizes 32 --dtype float32 bfloat16 \
  --backends Naive Chunked SDPA Flex Triton FlashBias plain-torch plain-flash-attn
step 50 train $bench train $gpu --batch 16 --repeats 10 --scale 2 --models \
  ESC:Naive ESC:Chunked ESC:SDPA ESC:Flex ESC \
  ESC:Naive:bfloat16 ESC:Flex:bfloat16 ESC:bfloat16 ESC:bfloat16:compile
step 25 growth $bench $networks --scale 4 --repeats 5 --models ESC ESC:bfloat16 \
  --size 384x256 768x512 1536x1024 3072x2560
for batch in 1 4 16 64; do
  step 13 batch_$batch $bench $networks --scale 4 --repeats 10 --size 64x64 --batch $batch \
    --models ESC ESC:bfloat16 SwinIR_light
done
step 13 launches $bench $networks --scale 4 --size 32x32 64x64 128x128 --models ESC ESC_light:bfloat16
step 15 cuda_graphs $bench $networks --scale 4 --size 32x32 64x64 128x128 --cuda-graphs \
  --models ESC ESC_light:bfloat16
step 70 x4_half $bench $networks --scale 4 --baseline ESC --models \
  ESC ESC:float16 ESC:bfloat16 ESC:bfloat16:compile ESC_FlashBias:float16 ESC_light:bfloat16 \
  ESC_FP:bfloat16 SwinIR_light:bfloat16
step 45 check_compiled $exactness --device cuda --compile --window-sizes --models ESC_light \
  --dtype float32 bfloat16

if [ $failed -ne 0 ]; then
  echo "== something failed: see $out/log.txt"
fi
exit $failed
