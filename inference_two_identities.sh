#!/usr/bin/env bash
# Videos of two people from prompts and photographs; bash inference_two_identities.sh --help lists the options.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/scripts/setup.sh"
launch sample_video two_identities "$@"
