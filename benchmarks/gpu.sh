#!/bin/bash
# Measures one GPU, part by part. A part that finished is not run again.
#
#   bash benchmarks/gpu.sh FOLDER                    # all parts, each under ten minutes
#   bash benchmarks/gpu.sh FOLDER train_1.8b ppo     # only these
#
# FOLDER gets PART.log, JSON, plots and a profile; FOLDER/PART.done marks a finished part.
# PYTHON runs ours (python), PEER runs transformers and torch (none: measure only ours). A part that
# takes longer than LIMIT (590 seconds) is stopped; the same command starts it again.
#
#   environment   GPU, driver, versions, memory bandwidth and matmul rate
#   correctness   every backend against float32, on random inputs
#   attention     TFLOP/s next to cuDNN and other implementations
#   train_1.8b, train_7b, decode_1.8b, decode_7b    next to torch
#   ppo           a step of four models
set -u -o pipefail
[ $# -gt 0 ] && [ "$1" != --help ] || { sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"; exit 1; }
mkdir -p "$1" && out=$(cd "$1" && pwd) && shift || exit 1
cd "$(dirname "$0")/.." || exit 1
python=${PYTHON:-python}
export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.95}  # 0.75 holds no 7B
peer=(${PEER:+"--peer_python=$PEER"})
all=(environment correctness attention train_1.8b train_7b decode_1.8b decode_7b ppo)

part() {
    case $1 in
    environment) "$python" -m benchmarks.aot.device_rates --output="$out/environment.json" ;;
    correctness)
        "$python" -m benchmarks.attention.attention_validation --name=xla --every=3 --output="$out" &&
            "$python" -m benchmarks.attention.attention_validation --name=hopper --dtypes=bfloat16,float16 \
                --output="$out" ;;
    attention) "$python" -m benchmarks.attention.attention --output="$out" ;;
    train_1.8b)
        "$python" -m benchmarks.aot.full_size --size=1.8b "${peer[@]}" --trace="$out/trace" \
            --output="$out/$1.json" ;;
    train_7b)  # FP32 weights, BF16 moments: 62 GB, and 31 of gradients; two rows at a time
        "$python" -m benchmarks.aot.full_size --size=7b --moment_dtype=bfloat16 --remat=block \
            --batch_size=16 --micro_batches=8 --steps=15 "${peer[@]}" --output="$out/$1.json" ;;
    decode_*)
        "$python" -m benchmarks.inference.decode --size="${1#decode_}" --dtype=bfloat16 --batches=1,8,64 \
            --rounds=1 "${peer[@]}" --output="$out/$1.json" ;;
    ppo) "$python" -m benchmarks.ppo.ppo --rounds=1 --output="$out/ppo.json" ;;
    esac
}

if [ "${1:-}" = --here ]; then
    part "$2"
    exit
fi
failed=()
[ $# -gt 0 ] || set -- "${all[@]}"
for name in "$@"; do
    [[ " ${all[*]} " == *" $name "* ]] || { echo "no part is called $name: ${all[*]}"; exit 2; }
done
for name in "$@"; do
    [ -e "$out/$name.done" ] && echo "$name: already done" && continue
    echo "== $name"
    timeout --kill-after=10 "${LIMIT:-590}" bash benchmarks/gpu.sh "$out" --here "$name" 2>&1 |
        tee "$out/$name.log"
    code=${PIPESTATUS[0]}
    if [ "$code" -eq 0 ]; then
        touch "$out/$name.done"
    else
        failed+=("$name")
        echo "$name: exit code $code$([ "$code" -eq 124 ] && echo ", out of time")"
    fi
done
[ ${#failed[@]} -eq 0 ] || { echo "not done: ${failed[*]}"; exit 1; }
