#!/usr/bin/env bash
# Build, train, verify on the embedded model, with the commands' defaults; installs what is needed first.
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/install.sh
install ""

run() { printf '\n$ %s\n' "$*"; "$@"; }
SECONDS=0
run mechrl-cache build
run mechrl-cache top --n 5
run mechrl-train --from-cache
run mechrl-verify checkpoint.zip --joint --out verification.json
run mechrl report
printf '\n%s seconds without the installation\n' "$SECONDS"
