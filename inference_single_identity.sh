#!/usr/bin/env bash
# Videos of one person from prompts and photographs; bash inference_single_identity.sh --help lists the options.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/scripts/launch.sh"
launch single_identity "$@"
