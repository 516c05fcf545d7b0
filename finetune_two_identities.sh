#!/usr/bin/env bash
# Fine-tunes on clips of two people each, with their photographs; bash finetune_two_identities.sh --help lists the options.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/scripts/launch.sh"
launch_training two_identities "$@"
