#!/usr/bin/env bash
# Fine-tunes on clips of one person each, with their photographs; bash finetune_single_identity.sh --help lists the options.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/scripts/setup.sh"
launch train_video single_identity "$@"
