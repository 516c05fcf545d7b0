#!/usr/bin/env bash
# Videos of one person from prompts and photographs; bash inference_single_identity.sh --help lists the options.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/scripts/setup.sh"
launch sample_video single_identity "$@"
