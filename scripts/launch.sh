# shellcheck shell=bash
# What the launchers share: choose the model, set up, start sat/sample_video.py or sat/train_video.py on what the machine has.

# shellcheck source=scripts/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

FETCH="pip install modelscope && modelscope download --model yongzhong/Concat-ID --local_dir models"

usage() {
    cat <<END
usage: bash inference_$1.sh [--model mini|cogvideox_5b|cogvideox_2b] [--base FILE ...] [options of sat/sample_video.py]

  --model NAME     the model to run; without it CogVideoX-5B where its weights are under models/, else the small
                   demonstration model in models/mini
  --base FILE ...  configuration files to use in place of the launcher's own
  -h, --help       this text, then the options of sat/sample_video.py

environment:
  CONCAT_ID_PYTHON      interpreter to use as it is, in place of .venv
  NPROC_PER_NODE        processes that share the prompts; by default one for every visible GPU
  CUDA_VISIBLE_DEVICES  the GPUs to use
END
}

training_usage() {
    cat <<END
usage: bash finetune_$1.sh [--model mini|cogvideox_5b|cogvideox_2b|wan_1_3b|wan_adaln|wan_mini] [--resume [FOLDER]] [--base FILE ...] [options of sat/train_video.py]

  --model NAME       the model to fine-tune (default: mini, the demonstration model, on the clips in examples/training)
  --resume [FOLDER]  continue a run, the latest if none is named
  --base FILE ...    configuration files to use in place of the launcher's own
  -h, --help         this text, then the options of sat/train_video.py

environment:
  CONCAT_ID_PYTHON      interpreter to use as it is, in place of .venv
  NPROC_PER_NODE        processes on this machine; by default one for every visible GPU
  CUDA_VISIBLE_DEVICES  the GPUs to use
  NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT  number of machines, which one this is, where the first one listens (port 29500)
END
}

# Sort the launcher's own options from those it passes on: MODEL, BASE (files), LOAD (yes if --load is given), REST, HELP.
parse() {
    MODEL="" LOAD="" HELP="" BASE=() REST=()
    while [ $# -gt 0 ]; do
        case "$1" in
            --model=*) MODEL="${1#*=}" ;;
            --model)
                [ $# -gt 1 ] || fail "--model: found no name, expected mini, cogvideox_5b or cogvideox_2b"
                MODEL="$2"
                shift
                ;;
            --base=*) BASE+=("${1#*=}") ;;
            --base)
                while [ $# -gt 1 ] && [[ "$2" != --* ]]; do
                    BASE+=("$2")
                    shift
                done
                [ ${#BASE[@]} -gt 0 ] || fail "--base: found no file, expected one or more YAML files"
                ;;
            -h | --help) HELP=yes ;;
            --load | --load=*) LOAD=yes REST+=("$1") ;;
            *) REST+=("$1") ;;
        esac
        shift
    done
    [ -z "$MODEL" ] || [ ${#BASE[@]} -eq 0 ] || fail "--model and --base: found both, expected one; the files of --base decide the model"
}

# List what a SAT checkpoint folder lacks: its `latest`, or the file that `latest` names.
missing_checkpoint() {
    local folder="$1" tag
    if [ ! -f "$ROOT/$folder/latest" ]; then
        echo "$folder/latest"
        return
    fi
    tag="$(tr -d '[:space:]' <"$ROOT/$folder/latest")"
    [ -f "$ROOT/$folder/$tag/mp_rank_00_model_states.pt" ] || echo "$folder/$tag/mp_rank_00_model_states.pt"
}

# List what the text encoder's folder lacks; of weights in numbered parts ("-00001-of-00002") every part.
missing_text_encoder() {
    local folder=models/t5-v1_1-xxl name part total i found=""
    for name in config.json spiece.model; do
        [ -f "$ROOT/$folder/$name" ] || echo "$folder/$name"
    done
    for name in "$ROOT/$folder"/*.safetensors "$ROOT/$folder"/*.bin; do
        [ -f "$name" ] || continue
        found=yes
        [[ "$name" =~ ^(.*)-[0-9]+-of-([0-9]+)(\.[a-z]+)$ ]] || continue
        total=$((10#${BASH_REMATCH[2]}))
        for ((i = 1; i <= total; i++)); do
            part="$(printf '%s-%05d-of-%s%s' "${BASH_REMATCH[1]}" "$i" "${BASH_REMATCH[2]}" "${BASH_REMATCH[3]}")"
            [ -f "$part" ] || echo "${part#"$ROOT"/}"
        done
        break
    done
    [ -n "$found" ] || echo "$folder/*.safetensors"
}

# List the files of CogVideoX-5B that are not there; a checkpoint given by --load is the user's affair.
missing_weights() {
    [ -n "$LOAD" ] || missing_checkpoint "models/${1//_/-}"
    [ -f "$ROOT/models/vae/3d-vae.pt" ] || echo models/vae/3d-vae.pt
    missing_text_encoder
}

any_weights() {
    [ -e "$ROOT/models/${1//_/-}" ] || [ -e "$ROOT/models/vae" ] || [ -e "$ROOT/models/t5-v1_1-xxl" ]
}

refuse_missing() {
    fail "CogVideoX-5B lacks ${1//$'\n'/, } in $ROOT; fetch them with: $FETCH   or choose the demonstration model with --model mini"
}

# Set MODEL where the user has not.
choose_model() {
    local missing
    missing="$(missing_weights "$1")"
    case "$MODEL" in
        mini | cogvideox_2b) ;;
        cogvideox_5b) [ -z "$missing" ] || refuse_missing "$missing" ;;
        "")
            if [ -z "$missing" ]; then
                MODEL=cogvideox_5b
            elif any_weights "$1"; then
                refuse_missing "$missing"
            else
                MODEL=mini
                echo "This is the 96x144 demonstration model: it shows how Concat-ID works, not how good it looks. The 480x720 one:" >&2
                echo "    $FETCH" >&2
            fi
            ;;
        *) fail "--model: found $MODEL, expected mini, cogvideox_5b or cogvideox_2b" ;;
    esac
}

# Set BASE to the configuration files of the model.
choose_base() {
    local prefix=inference
    choose_model "$1"
    [ "$MODEL" != mini ] || prefix=mini
    BASE=("$ROOT/configs/$MODEL.yaml" "$ROOT/configs/inference/${prefix}_$1.yaml")
}

count_gpus() {
    local ids="${CUDA_VISIBLE_DEVICES-unset}"
    if ! command -v nvidia-smi >/dev/null || [ "$ids" = -1 ]; then
        echo 0
    elif [ "$ids" = unset ]; then
        nvidia-smi -L 2>/dev/null | grep -c '^GPU' || true
    else
        tr ',' '\n' <<<"$ids" | grep -c '[^[:space:]]' || true
    fi
}

show_help() {
    "$1" "$2"
    if [ -z "${CONCAT_ID_PYTHON:-}" ] && ! installed base; then
        echo "The other options are listed once .venv is set up: bash scripts/setup.sh"
        return
    fi
    set_up
    exec "$PYTHON" "$ROOT/sat/$3" --help
}

# Set PROCESSES to how many to start on this machine.
count_processes() {
    local gpus
    gpus="$(count_gpus)"
    PROCESSES="${NPROC_PER_NODE:-$gpus}"
    [[ "$PROCESSES" =~ ^[0-9]+$ ]] || fail "NPROC_PER_NODE: found $PROCESSES, expected a number of processes"
    # torchrun's own choice is one thread
    [ "$PROCESSES" -lt 2 ] || export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$(((($(nproc) - 1) / PROCESSES) + 1))}"
}

launch() {
    local kind="$1" run
    shift
    parse "$@"
    if [ -n "$HELP" ]; then
        show_help usage "$kind" sample_video.py
        return
    fi
    [ ${#BASE[@]} -gt 0 ] || choose_base "$kind"
    set_up
    count_processes
    run=("$PYTHON")
    [ "$PROCESSES" -lt 2 ] || run+=(-m torch.distributed.run --standalone --nproc_per_node "$PROCESSES")
    exec "${run[@]}" "$ROOT/sat/sample_video.py" --base "${BASE[@]}" ${REST[@]+"${REST[@]}"}
}

# Set BASE to the configuration files of the model to fine-tune.
choose_training_base() {
    local missing prefix=sft expected="mini, cogvideox_5b or cogvideox_2b (or wan_1_3b, wan_adaln, wan_mini)"
    case "${MODEL:=mini}" in
        mini) prefix=mini ;;
        cogvideox_5b)
            missing="$(missing_weights "$1")"
            [ -z "$missing" ] || refuse_missing "$missing"
            ;;
        cogvideox_2b) [ -n "$LOAD" ] || fail "--model cogvideox_2b: no weights of this size are released, expected --load FOLDER" ;;
        wan_*)
            [ "$1" = single_identity ] || fail "--model: found $MODEL, which has training files for one person; name your own with --base"
            choose_wan_training_base "$expected"
            return
            ;;
        *) fail "--model: found $MODEL, expected $expected" ;;
    esac
    BASE=("$ROOT/configs/$MODEL.yaml" "$ROOT/configs/training/${prefix}_$1.yaml")
}

choose_wan_training_base() {
    case "$MODEL" in
        wan_1_3b) BASE=("$ROOT/configs/wan_1_3b.yaml" "$ROOT/configs/training/wan_single_identity.yaml") ;;
        wan_adaln) BASE=("$ROOT/configs/wan_1_3b.yaml" "$ROOT/configs/training/wan_adaln.yaml") ;;
        wan_mini) BASE=("$ROOT/configs/wan_mini.yaml" "$ROOT/configs/training/wan_mini.yaml") ;;
        *) fail "--model: found $MODEL, expected $1" ;;
    esac
}

# Check that the user's own interpreter has what only training needs.
check_training_libraries() {
    local find='import sys; from importlib.util import find_spec; sys.exit(not all(map(find_spec, ["deepspeed", "tensorboardX", "decord"])))'
    [ -z "${CONCAT_ID_PYTHON:-}" ] || "$PYTHON" -c "$find" ||
        fail "$PYTHON: found no deepspeed, tensorboardX or decord, which training needs; install requirements.txt"
}

launch_training() {
    local kind="$1" nodes="${NNODES:-1}" run
    shift
    parse "$@"
    if [ -n "$HELP" ]; then
        show_help training_usage "$kind" train_video.py
        return
    fi
    [[ "$nodes" =~ ^[1-9][0-9]*$ ]] || fail "NNODES: found $nodes, expected a number of machines"
    if [ "$nodes" -gt 1 ]; then
        [ -n "${MASTER_ADDR:-}" ] || fail "MASTER_ADDR: missing, expected the address of the first of $nodes machines"
        [[ "${NODE_RANK:-}" =~ ^[0-9]+$ ]] || fail "NODE_RANK: found ${NODE_RANK:-nothing}, expected 0 to $((nodes - 1))"
    fi
    [ ${#BASE[@]} -gt 0 ] || choose_training_base "$kind"
    set_up training
    check_training_libraries
    count_processes
    [ "$PROCESSES" -gt 0 ] || PROCESSES=1
    run=("$PYTHON")
    if [ "$nodes" -gt 1 ] || [ "$PROCESSES" -gt 1 ]; then
        run+=(-m torch.distributed.run --nproc_per_node "$PROCESSES" --shutdown-timeout 600)  # a checkpoint takes a while
        if [ "$nodes" -gt 1 ]; then
            run+=(--nnodes "$nodes" --node_rank "$NODE_RANK" --master_addr "$MASTER_ADDR" --master_port "${MASTER_PORT:-29500}")
        else
            run+=(--standalone)
        fi
    fi
    exec "${run[@]}" "$ROOT/sat/train_video.py" --base "${BASE[@]}" ${REST[@]+"${REST[@]}"}
}
