#!/usr/bin/env bash
# Brings what a GPU machine without a network may lack into tests/gpu/wheels: bash tests/gpu/fetch.sh [further wheels, as name==version]
# That machine needs torch, triton, transformers, einops, numpy, PyYAML, Pillow, tqdm and requests already.
set -euo pipefail
HERE="$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")"
PYTHON="${CONCAT_ID_PYTHON:-$HERE/../../.venv/bin/python}"
pinned() { sed -n "s/^\($1==[^ ]*\).*/\1/p" "$HERE/../../requirements.txt"; }
PACKAGES=(SwissArmyTransformer omegaconf diffusers ftfy wcwidth cache-dit torchao gguf)
mkdir -p "$HERE/wheels"
"$PYTHON" -m pip download -q --no-deps --only-binary=:all: -d "$HERE/wheels" \
  $(for package in "${PACKAGES[@]}"; do pinned "$package"; done) importlib_metadata zipp hjson "$@"
DS_BUILD_OPS=0 "$PYTHON" -m pip wheel -q --no-deps --no-build-isolation -w "$HERE/wheels" "$(pinned deepspeed)"
ls "$HERE/wheels"
