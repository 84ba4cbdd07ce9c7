#!/usr/bin/env bash
# Run the tests in an environment of their own; arguments go to pytest (-m slow for the long ones).
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/install.sh
install test
[ -d ../shared/gpt2-tokenizer ] || say "note: the tests that need the GPT-2 tokenizer are skipped, ../shared/gpt2-tokenizer is not here"
exec python -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@" # -n 0: in one process
