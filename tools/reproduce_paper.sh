#!/usr/bin/env bash
# arXiv 2605.26343v1, reproduced: build, train with the paper's settings, verify, and set the figures side by side.
#
#   bash tools/reproduce_paper.sh                     GPT-2 small; needs the hub, and better a GPU
#   bash tools/reproduce_paper.sh mini                the embedded model, minutes on two cores
#
#   DEVICE=cuda  STEPS=200000  BATCHES=64  OUT=paper-gpt2    by default auto, the paper's, the build's, paper-<model>
#
# Run it where mechrl is installed (tools/demo.sh makes .venv).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
model=${1:-gpt2}
out=${OUT:-paper-${model##*/}}
python=${PYTHON:-$([ -x "$here/../.venv/bin/python" ] && echo "$here/../.venv/bin/python" || echo python3)}
mechrl() { "$python" -m mechrl.cli.main "$@"; }
steps=(${STEPS:+--steps "$STEPS"})

mkdir -p "$out"
mechrl cache build --model "$model" --device "${DEVICE:-auto}" --tasks induction,ioi,docstring \
  ${BATCHES:+--batches "$BATCHES"} --out "$out/cache.h5"
for k in 1 5; do
  mechrl train --from-cache "$out/cache.h5" --policy paper --preset paper --plan-k "$k" "${steps[@]}" \
    --out "$out/best-of-$k.zip" >"$out/train-$k.txt"
done
# The picks on the live model again; 3 means that a head was not confirmed, which the report should not hide.
mechrl verify "$out/best-of-1.zip" --cache "$out/cache.h5" --model "$model" --device "${DEVICE:-auto}" \
  >"$out/verify.txt" && verdict=confirmed || { [ $? = 3 ] && verdict='not confirmed' || exit 1; }
"$python" "$here/reproduce_paper.py" "$out/cache.h5" "$out/best-of-1.zip" "$out/best-of-5.zip" --out "$out/report.md"
{ printf '\n## The picks on the live model: %s\n\n```\n' "$verdict"; cat "$out/verify.txt"; printf '```\n'; } >>"$out/report.md"
