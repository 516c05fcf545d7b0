#!/usr/bin/env bash
# Videos of two people from prompts and photographs; bash inference_two_identities.sh --help lists the options.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/scripts/launch.sh"
launch two_identities "$@"
