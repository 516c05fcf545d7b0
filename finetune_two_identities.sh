#!/usr/bin/env bash
# Fine-tunes on clips of two people each, with their photographs; bash finetune_two_identities.sh --help lists the options.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/scripts/setup.sh"
launch train_video two_identities "$@"
