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
# --cpu-smoke runs the same steps on the CPU with tiny images, to show that they work: all but what
# CUDA alone has, and without torch's compiler, which takes minutes there.
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
  local limit=$1 name=$2 status=0 arguments=() argument
  shift 2
  for argument in "$@"; do
    case $smoke:$argument in
      true:*:compile | true:--compile | true:*Flex) ;;
      *) arguments+=("$argument") ;;
    esac
  done
  if $smoke; then limit=600; fi
  echo "== $name: python ${arguments[*]}" | tee -a "$out/log.txt"
  timeout --signal=INT --kill-after=10 "$limit" \
    "${PYTHON:-python}" -W ignore "${arguments[@]}" --out "$out/$name" \
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

# repeats COUNT: how often a step measures.
repeats() {
  if $smoke; then echo "--repeats 1"; else echo "--repeats $1"; fi
}

# Memory is that of CUDA's allocator: a process each would take all of the time. FLOPs do not depend
# on the machine. HiT-SRF is not among the networks: no package that is installed by name has it.
if $smoke; then
  measured="--device cpu --no-process-memory --threads 1"
  check="--device cpu --backends Naive Chunked SDPA Auto --size 12x8 --models ESC_light"
  check_windows=4 windows=8 wide_window=8
  paper="--size 16x16" map="--size 16x16" patch="--batch 1 --patch 8"
  growth="16x8 24x16" batch_size=8x8 launch_sizes="8x8 16x8"
else
  measured="--device cuda --no-process-memory"
  check="--device cuda"
  check_windows="32 48" windows="8 16 32 64 96" wide_window=32
  paper="" map="--size 320x180" patch="--batch 16"
  growth="384x256 768x512 1536x1024 3072x2560" batch_size=64x64 launch_sizes="32x32 64x64 128x128"
fi
networks="$measured --no-flops"
once=$(repeats 20) some=$(repeats 10) few=$(repeats 5)
backends="Naive Chunked SDPA Flex Triton FlashBias plain-torch plain-flash-attn"
if $smoke; then backends=${backends/Triton/Fused}; fi

: >"$out/log.txt"
step 110 check $exactness $check --window-sizes $check_windows --dtype float32 float16 bfloat16
stop_if_wrong
step 65 x4_float32 $bench $networks $paper $once --scale 4 --models \
  ESC ESC:Flex ESC:SDPA ESC:Chunked ESC:Naive ESC_FlashBias ESC_light ESC_light:Naive ESC_FP \
  ESC_FP:Naive SwinIR_light OmniSR ATD_light PLKSR SRFormer_light RCAN
step 35 x2_x3_float32 $bench $networks $paper $some --scale 2 3 --models \
  ESC ESC_light ESC_FP SwinIR_light OmniSR ATD_light PLKSR
step 70 attention $attention $measured $map $some --grad no \
  --window-sizes $windows --dtype float32 bfloat16 --backends $backends
step 40 attention_grad $attention $measured $map $some --grad yes \
  --window-sizes $wide_window --dtype float32 bfloat16 --backends $backends
step 50 train $bench train $measured $patch $some --scale 2 --models \
  ESC:Naive ESC:Chunked ESC:SDPA ESC:Flex ESC \
  ESC:Naive:bfloat16 ESC:Flex:bfloat16 ESC:bfloat16 ESC:bfloat16:compile
step 25 growth $bench $networks $few --scale 4 --models ESC ESC:bfloat16 --size $growth
for batch in 1 4 16 64; do
  step 13 batch_$batch $bench $networks $some --scale 4 --size $batch_size --batch $batch \
    --models ESC ESC:bfloat16 SwinIR_light
done
step 13 launches $bench $networks $once --scale 4 --size $launch_sizes --models ESC ESC_light:bfloat16
if ! $smoke; then
  step 15 cuda_graphs $bench $networks --scale 4 --size $launch_sizes --cuda-graphs \
    --models ESC ESC_light:bfloat16
fi
step 70 x4_half $bench $networks $paper $once --scale 4 --baseline ESC --models \
  ESC ESC:float16 ESC:bfloat16 ESC:bfloat16:compile ESC_FlashBias:float16 ESC_light:bfloat16 \
  ESC_FP:bfloat16 SwinIR_light:bfloat16
step 45 check_compiled $exactness $check --compile --window-sizes --models ESC_light \
  --dtype float32 bfloat16

if [ $failed -ne 0 ]; then
  echo "== something failed: see $out/log.txt"
fi
exit $failed
