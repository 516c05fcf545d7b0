#!/usr/bin/env bash
# Brings what a GPU machine without a network lacks for `demo/make.sh --gpu-minutes` into demo/wheels: bash demo/wheels.sh [its Python, 3.12]
# That machine needs torch, triton, transformers, einops, numpy, scipy, numba, safetensors, PyYAML, Pillow, tqdm and requests already.
set -euo pipefail
HERE="$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")"
pinned() { sed -n "s/^\($1==[^ ]*\).*/\1/p" "$HERE/../requirements.txt"; }
"${CONCAT_ID_PYTHON:-$HERE/../.venv/bin/python}" -m pip download -q --no-deps --only-binary=:all: --python-version "${1:-3.12}" \
    --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 -d "$HERE/wheels" \
    "$(pinned SwissArmyTransformer)" "$(pinned omegaconf)" "$(pinned diffusers)" "$(pinned sentencepiece)" "$(pinned protobuf)" importlib_metadata zipp
du -sh "$HERE/wheels"
