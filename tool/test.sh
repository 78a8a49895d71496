#!/bin/sh
# sh tool/test.sh DATASET EXPERIMENT [KEY VALUE ...]
# reads config/DATASET/DATASET_EXPERIMENT.yaml; KEY VALUE pairs override it, such as TRAIN.epochs 50
set -e
root=$(cd "$(dirname "$0")/.." && pwd)
if [ -z "$PYTHON" ] && [ -x "$root/.venv/bin/python" ]; then PYTHON="$root/.venv/bin/python"; fi
PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONPATH
. "$root/tool/environment.sh"
exec "${PYTHON:-python3}" -u -m stripseg.tool.test "$@"
