#!/usr/bin/env bash
# Makes the demonstration model anew in minutes of one GPU, and measures it on people that it has not seen.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../scripts/setup.sh"

usage() {
    cat <<END
usage: bash demo/make.sh --gpu-minutes N [--scale X] [--data FOLDER]
       bash demo/make.sh --evaluate [--people N] [--data FOLDER]

The first trains autoencoder and stages I, II and III of demo/configs/near.yaml, on a machine without a network and without set-up
(demo/README.md says what it needs). The second needs no GPU: it samples videos of test people and measures them. Both go on where they
were stopped: give the same command again. Nothing under models/ is changed. FOLDER is seen from the project's folder.

  --gpu-minutes N  of one GPU, all parts together; makes FOLDER/model, FOLDER/samples (an image every two minutes) and what a stop needs
  --scale X        size of the batches, such as 1/200 for a rehearsal on a CPU (default: 1)
  --evaluate       render test people, sample videos of each and of pairs by FOLDER/model, write FOLDER/report/<people>/report.html
  --people N       test people, and as many pairs (default: 32)
  --data FOLDER    where everything goes (default: data/near)
  -h, --help       this text
END
}

DATA=data/near GPU_MINUTES="" SCALE=1 EVALUATE="" PEOPLE=32
while [ $# -gt 0 ]; do
    case "$1" in
        --data | --gpu-minutes | --scale | --people)
            [ $# -gt 1 ] || fail "$1: found nothing after it; bash demo/make.sh --help lists the options"
            name="${1#--}" name="${name//-/_}"
            printf -v "${name^^}" %s "$2"
            shift
            ;;
        --evaluate) EVALUATE=yes ;;
        -h | --help)
            usage
            exit
            ;;
        *) fail "$1: unknown option; bash demo/make.sh --help lists them" ;;
    esac
    shift
done
[ -n "$GPU_MINUTES$EVALUATE" ] || fail "found neither --gpu-minutes nor --evaluate, expected one of them; bash demo/make.sh --help tells more"
[[ "$PEOPLE" =~ ^[1-9][0-9]*$ && "$PEOPLE" != 1 ]] || fail "--people: found $PEOPLE, expected at least 2, as likeness is measured against others"
cd "$ROOT"

if [ -n "$GPU_MINUTES" ]; then
    PYTHON="${CONCAT_ID_PYTHON:-$VENV/bin/python}"
    if compgen -G "demo/wheels/*.whl" >/dev/null && [ ! -d "$DATA/site" ]; then
        "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$DATA/site.partial" demo/wheels/*.whl
        mv "$DATA/site.partial" "$DATA/site"
    fi
    [ ! -d "$DATA/site" ] || export PYTHONPATH="$PYTHONPATH:$(readlink -f "$DATA/site")"
    export PYTHONUNBUFFERED=1
    "$PYTHON" demo/gpu_run.py --output "$DATA" --minutes "$GPU_MINUTES" --scale "$SCALE"
fi
[ -n "$EVALUATE" ] || exit 0

set_up people
mkdir -p "$DATA"
printf 'args:\n  load: "%s"\nmodel:\n  autoencoder: {path: "%s"}\n' "$DATA/model/transformer" "$DATA/model/vae/3d-vae.pt" >"$DATA/weights.yaml"
for together in 1 2; do
    test="$DATA/test/$together" size=(128 $((96 * together)))
    render=(demo/render_people.py --near --size "${size[@]}" --seed 101)
    # Half as many again as are wanted: not every face is found in every image.
    if [ "$together" = 1 ]; then
        "$PYTHON" "${render[@]}" --output "$test/images" --people $((PEOPLE * 3 / 2)) --shots 3 --pairs 0 --images --portraits
        "$PYTHON" "${render[@]}" --output "$test/clips" --people $((PEOPLE * 3 / 2)) --shots 1 --pairs 0 --frames 17
    else # pairs of them, and everybody alone for the references
        "$PYTHON" "${render[@]}" --output "$test/images" --people "$PEOPLE" --shots 1 --pairs 1 --images --portraits
        "$PYTHON" "${render[@]}" --output "$test/clips" --people "$PEOPLE" --shots 0 --pairs 0.5 --frames 17
    fi
    sed -i 's/"split": "[a-z]*"/"split": "test"/' "$test"/images/{clips,stills}.json "$test/clips/clips.json"
    "$PYTHON" sat/prepare_clips.py --videos "$test"/{images/clips,images/stills,clips/clips}.json --output "$test/prepared" \
        --size "${size[@]}" --frames 17 --skip 0 --min_face 20 --crop 96 --references 3 --parser models/mini/face_parser
    "$PYTHON" sat/make_pairs.py "$test/prepared/manifest.json" --output "$test/lists" --calibrate --test_people "$PEOPLE" --test_captions 1
    "$PYTHON" sat/sample_video.py --base demo/configs/near.yaml "$DATA/weights.yaml" --sampling_image_size "${size[@]}" \
        --input_file "$test/lists/test_prompts_$together.txt" --output "$DATA/videos/$together" --seed 42
    real=("$test/lists/test_clips_$together") # the clips that prompts describe: what a perfect model would score
    [ -d "${real[0]}" ] || real=()             # few people may have none
    "$PYTHON" sat/evaluate_identity.py --videos "$DATA/videos/$together" ${real[@]+"${real[@]}"} --calibration "$test/lists/test_people" \
        --metric demo/adherence.py --output "$DATA/report/$together"
done
