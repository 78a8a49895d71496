#!/bin/sh
# sh tool/train.sh DATASET EXPERIMENT [KEY VALUE ...]
# reads config/DATASET/DATASET_EXPERIMENT.yaml; KEY VALUE pairs override it, such as TRAIN.epochs 50
set -e
root=$(cd "$(dirname "$0")/.." && pwd)
if [ -z "$PYTHON" ] && [ -x "$root/.venv/bin/python" ]; then PYTHON="$root/.venv/bin/python"; fi
PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
# neither the program nor what it starts takes modules from the current folder, which may be a download:
# a file instead of -m (Python 3.10), and from 3.11 on the variable
export PYTHONPATH PYTHONSAFEPATH=1
. "$root/tool/environment.sh"
exec "${PYTHON:-python3}" -u "$root/tool/train.py" "$@"
