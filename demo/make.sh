#!/usr/bin/env bash
# Makes the demonstration model anew: synthetic people, pairs, text encoder, three training stages, samples for unseen people, report.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../scripts/setup.sh"

usage() {
    cat <<END
usage: bash demo/make.sh [options]

Renders people, prepares pairs, trains a text encoder and stages I, II and III (demo/configs/stage*.yaml), samples videos of
test people and measures them. Every step goes on where it was stopped: give the same command again. Nothing under models/ is changed.
FOLDER and MODEL are seen from the project's folder.

  --data FOLDER   where everything goes (default: data/mini); reports are FOLDER/report/<people>/report.html
  --people N      people with single images (default: 1300)
  --clips N       of these, people with a clip of 17 frames (default: 600)
  --test N        test people, with two prompts each, and as many pairs of them (default: 32)
  --processes N   training and rendering processes on this machine (default: one for every CPU core, at most 8, or for every GPU)
  --steps N       steps of every stage, or N,N,N of one after the other (default: those of the stage's file)
  --from MODEL    folder with the transformer/ to start from and its t5/, such as models/mini (default: from nothing)
  --first N       stage to begin with, 1, 2 or 3 (default: 1); the model of --from takes the place of the stage before
  --until PART    stop after one of: render, prepare, pairs, train, sample (default: report, the last one)
  -h, --help      this text
END
}

DATA=data/mini PEOPLE=1300 CLIPS=600 TEST=32 FROM="" FIRST=1 PROCESSES="" STEPS="" UNTIL=report
PARTS=(render prepare pairs train sample report)
while [ $# -gt 0 ]; do
    case "$1" in
        --data | --people | --clips | --test | --from | --first | --processes | --steps | --until)
            [ $# -gt 1 ] || fail "$1: found nothing after it; bash demo/make.sh --help lists the options"
            name="${1#--}"
            printf -v "${name^^}" %s "$2"
            shift
            ;;
        -h | --help)
            usage
            exit
            ;;
        *) fail "$1: unknown option; bash demo/make.sh --help lists them" ;;
    esac
    shift
done
for name in PEOPLE CLIPS TEST PROCESSES; do
    [[ -z "${!name}" || "${!name}" =~ ^[1-9][0-9]*$ ]] || fail "--${name,,}: found ${!name}, expected a number"
done
[ "$TEST" -gt 1 ] || fail "--test: found 1, expected at least 2, as likeness is measured against other people"
[[ -z "$STEPS" || "$STEPS" =~ ^[1-9][0-9]*(,[1-9][0-9]*,[1-9][0-9]*)?$ ]] ||
    fail "--steps: found $STEPS, expected a number, or three like 900,300,200"
[[ " ${PARTS[*]} " == *" $UNTIL "* ]] || fail "--until: found $UNTIL, expected one of ${PARTS[*]}"
[[ "$FIRST" =~ ^[123]$ ]] || fail "--first: found $FIRST, expected 1, 2 or 3"
[ "$FIRST" = 1 ] || [ -n "$FROM" ] || fail "--first $FIRST: found no --from, expected the model of the stage before"

cd "$ROOT"
if [ -n "$FROM" ] && ! { [ -f "$FROM/transformer/latest" ] && [ -f "$FROM/t5/config.json" ]; }; then
    fail "--from: $FROM has no transformer/latest or no t5/config.json, expected a folder like models/mini"
fi
set_up training people
if [ -z "$PROCESSES" ]; then
    PROCESSES="$("$PYTHON" -c 'import os, torch; print(torch.cuda.device_count() or min(8, os.cpu_count()))')"
fi
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
# Keep memory between the steps: up to 1.3 times faster on a CPU.
export GLIBC_TUNABLES=glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=8589934592:glibc.malloc.top_pad=67108864

step() {
    printf '\n== %s\n' "$1" >&2
}

stop_after() {
    if [ "$UNTIL" = "$1" ]; then
        exit 0
    fi
}

many() {
    "$PYTHON" -m torch.distributed.run --standalone --nproc_per_node "$PROCESSES" "$@"
}

step "people, the test people among them"
"$PYTHON" demo/render_people.py --output "$DATA/images" --people "$PEOPLE" --shots 3 --pairs 0.3 --images --portraits \
    --workers "$PROCESSES"
"$PYTHON" demo/render_people.py --output "$DATA/clips" --people "$CLIPS" --shots 1 --pairs 0.25 --frames 17 --workers "$PROCESSES"
stop_after render

step "faces"
"$PYTHON" sat/prepare_clips.py --videos "$DATA"/{images/clips,images/stills,clips/clips}.json --output "$DATA/prepared" \
    --size 96 144 --frames 17 --skip 0 --min_face 20 --crop 96 --references 3 --workers "$PROCESSES" --device cpu
stop_after prepare

step "pairs"
"$PYTHON" sat/make_pairs.py "$DATA/prepared/manifest.json" --output "$DATA/lists" --calibrate --test_people "$TEST" \
    --cross_two 0.45 0.957 --trade_off 0.87 0.99 --trade_off_clips 4 # smaller, moving and covered faces are less alike
stop_after pairs

begun="$DATA/exps/begun.txt" options="--from '$FROM' --first $FIRST"
if [ -f "$begun" ] && [ "$(<"$begun")" != "$options" ]; then
    fail "$DATA/exps: was begun with $(<"$begun"), found $options; give the same, or move $DATA/exps and $DATA/samples away"
fi
mkdir -p "$DATA/exps"
printf '%s\n' "$options" >"$begun"

T5="${FROM:-$DATA}/t5"
if [ ! -d "$T5" ]; then
    step "text encoder"
    "$PYTHON" demo/train_text_encoder.py --output "$T5"
fi
printf 'model:\n  text_encoder: {path: "%s"}\n' "$T5" >"$DATA/encoders.yaml"
MODEL=(configs/mini.yaml "$DATA/encoders.yaml")

# Train a stage in FOLDER/exps/stage<n>, from the weights of the one before.
train() {
    local stage="$1" runs="$DATA/exps/stage$1" valid="$DATA/lists/stage_$1_valid.json" start=() steps=()
    if [ -f "$runs/done" ]; then
        step "stage $stage is trained; move $runs away to train it anew"
        return
    fi
    step "stage $stage"
    [ -f "$valid" ] || valid="$DATA/lists/stage_1_valid.json" # a few people may have no such pairs
    if [ "$stage" -gt "$FIRST" ]; then
        start=(--load "$(run_of $((stage - 1)))")
    elif [ -n "$FROM" ]; then
        start=(--load "$FROM/transformer")
    fi
    [ -z "$(run_of "$stage")" ] || start=(--resume "$(run_of "$stage")")
    [ -z "$STEPS" ] || steps=(--train_iters "$(cut -d , -f "$stage" <<<"$STEPS")") # a line without a comma is printed whole
    many demo/train_stage.py --base "${MODEL[@]}" "demo/configs/stage$stage.yaml" --save "$runs" \
        --train_data "$DATA/lists/stage_${stage}_train.json" --valid_data "$valid" \
        --latent_cache "$DATA/latents" ${start[@]+"${start[@]}"} ${steps[@]+"${steps[@]}"}
    touch "$runs/done"
}

# Print the latest run of a stage that has a checkpoint.
run_of() {
    local found=""
    for found in "$DATA/exps/stage$1"/*/latest; do :; done
    [ ! -f "$found" ] || dirname "$found"
}

for ((stage = FIRST; stage <= 3; stage++)); do train "$stage"; done
stop_after train

measured=$((FIRST > 1 ? FIRST - 1 : 1)) # the model of --from too, as the stage before
for ((stage = measured; stage <= 3; stage++)); do
    step "samples of stage $stage"
    weights="$FROM/transformer"
    if [ "$stage" -ge "$FIRST" ]; then
        run="$(run_of "$stage")"
        weights="$run/$(<"$run/latest")-ema"
    fi
    for people in 1 2; do
        [ -f "$DATA/lists/test_prompts_$people.txt" ] || continue
        many sat/sample_video.py --base "${MODEL[@]}" configs/inference/mini_single_identity.yaml --load "$weights" \
            --input_file "$DATA/lists/test_prompts_$people.txt" --output "$DATA/samples/$people/stage$stage" --seed 42
    done
done
stop_after sample

step "report"
for people in 1 2; do
    [ -d "$DATA/samples/$people" ] || continue
    real=("$DATA/lists/test_clips_$people") # the clips that prompts describe: what a perfect model would score
    [ -d "${real[0]}" ] || real=()
    "$PYTHON" sat/evaluate_identity.py --videos "$DATA/samples/$people"/stage* ${real[@]+"${real[@]}"} \
        --calibration "$DATA/lists/test_people" --metric demo/adherence.py --output "$DATA/report/$people"
done
