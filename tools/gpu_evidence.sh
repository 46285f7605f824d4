#!/usr/bin/env bash
# Measure what a budget of minutes holds on a machine with a GPU, without a network, and bring it home in one file.
#   bash tools/gpu_evidence.sh --budget 9m --kit kit               kit: made by tools/gpu_carry.sh, where there is a network
#   bash tools/gpu_evidence.sh --budget 3m --model mlp             the same on any machine, CPU alone too
# PYTHON names the interpreter that has torch (python3). Nothing is installed into it: the kit's wheels go into an
# environment of their own that sees its packages. `--help` has the rest.
set -euo pipefail
cd "$(dirname "$0")/.."
began=$(date +%s)
python=${PYTHON:-python3}
place=${GLASSHOUSE_JOURNEY:-${TMPDIR:-/tmp}/glasshouse-journey-$$}
kit=
for word in "$@"; do [ "${last:-}" = --kit ] && kit=$word; last=$word; done

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $python is too old or missing (PYTHON=$python): give Python 3.11 or later" >&2; exit 2; }
mkdir -p "$place"
"$python" -m venv --without-pip "$place/env" || { echo "error: no virtual environment can be made (PYTHON=$python): install python3-venv" >&2; exit 2; }
env=$place/env/bin/python
packages=$("$env" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
# What the interpreter itself has comes behind what the kit brings.
"$python" -I -c 'import sys; print("\n".join(path for path in sys.path if path.endswith("-packages")))' > "$packages/zz-machine.pth"
pwd > "$packages/aa-glasshouse.pth"
if [ -n "$kit" ]; then
  [ -d "$kit/wheels" ] || { echo "error: no wheels there (--kit=$kit): make it with tools/gpu_carry.sh" >&2; exit 2; }
  "$python" -m pip --python "$env" install --quiet --no-index --no-deps --no-cache-dir --no-compile "$kit"/wheels/*.whl
fi
exec "$env" tools/gpu_evidence.py --began "$began" --place "$place" "$@"
