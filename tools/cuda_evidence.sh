#!/usr/bin/env bash
# Measure everything that a CUDA machine can show, verify it, and say how to publish it.
#   bash tools/cuda_evidence.sh              the GPU as it is found
#   bash tools/cuda_evidence.sh h100         the GPU's name in conf/gpu: checked, and held against its roofline
#   bash tools/cuda_evidence.sh h100 duration=60 model=qwen2.5-0.5b     further settings, for a shorter look
# About 3.5 hours as it stands (conf/experiment/cuda-all.yaml). Needs a driver, and a torch built for CUDA in .venv.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-.venv/bin/python}
out=${OUT:-runs/cuda-$(date -u +%Y%m%d-%H%M%S)}
gpu=${1:-auto}
[ $# -gt 0 ] && shift

"$python" - <<'CHECK'
import sys
import torch
if not torch.cuda.is_available():
    sys.exit("error: no CUDA device (torch=" + torch.__version__ + "): install a torch built for CUDA, or look at nvidia-smi")
print("on", torch.cuda.get_device_name(0))
CHECK

code=0
"$python" -m glasshouse -m experiment=cuda-all "gpu=$gpu" provider=local --out "$out" "$@" || code=$?
# A sweep goes on past an excluded cell, so look at what there is, whatever the exit code.
"$python" -m glasshouse verify "$out"/*/ || code=$?
"$python" -m glasshouse runs --out "$out"
echo "publish the sweep whole: $python -m glasshouse publish $out/*/"
exit "$code"
