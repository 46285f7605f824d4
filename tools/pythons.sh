#!/usr/bin/env bash
# Environments as anybody makes them, from locks/ and with an empty pip configuration: by Debian's own /usr/bin/python3,
# and by the newest Python here that is promised. In each: the commands of the base install by themselves, then what is
# pure of the suite. TORCH= (a version, a wheel's file, an index) adds training and a run to Debian's.
set -euo pipefail
cd "$(dirname "$0")/.."

folder=$(mktemp -d "${TMPDIR:-/tmp}/glasshouse-pythons.XXXXXX")
trap 'rm -rf "$folder"' EXIT

# Certificates and proxies belong to the network, not to where packages come from: they stay.
certificate=${PIP_CERT:-$(python3 -m pip config get global.cert 2>/dev/null || true)}
plain=(env)
for name in $(compgen -e PIP_) PYTHONPATH; do plain+=(-u "$name"); done
plain+=(PIP_CONFIG_FILE=/dev/null)
[ -z "$certificate" ] || plain+=("PIP_CERT=$certificate")

version() { "$1" -c 'import sys; print("%d.%02d.%02d" % sys.version_info[:3])' 2>/dev/null || true; }

newest() {
  local found
  for found in /usr/bin/python3.?? /usr/local/bin/python3.?? "${HOME:-/root}"/.pyenv/versions/*/bin/python3.?? /opt/*/bin/python3.??; do
    if [ -x "$found" ]; then echo "$(version "$found") $found"; fi
  done | awk '$1 >= "3.11.02" && $1 < "3.15"' | sort | tail -n 1 | cut -d ' ' -f 2
}

try() { # try PYTHON WORDS...: the environment, grown in two steps, and what runs in it
  local python=$1 place=$folder/$(version "$1") bundle
  echo "== $python: $("$python" --version)"
  "${plain[@]}" "$python" tools/install.py "$place"
  echo "  base: $(du -sm --exclude=pip --exclude='pip-*' "$place" | cut -f 1) MB beside pip"
  "$place/bin/glasshouse" --help >/dev/null
  "$place/bin/glasshouse" plan -m gpu=h100,pro6000 duration=1800 >/dev/null
  for bundle in site/research/bundles/*/; do
    "$place/bin/glasshouse" verify "$bundle" >/dev/null
  done
  echo "  --help, plan and verify of every committed bundle: fine"
  "${plain[@]}" "$python" tools/install.py "$place" run site dev "${@:2}"
  "$place/bin/python" -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m "$alone" "${parts[@]}"
}

debians() {
  if [ -n "${TORCH:-}" ]; then
    try /usr/bin/python3 train
    # A run of it, elsewhere than where a person's runs are.
    GLASSHOUSE_HOME=$folder/home "$folder/$(version /usr/bin/python3)/bin/python" -m glasshouse run --out "$folder/runs" measure=quick duration=2 order=raw-first
  else
    try /usr/bin/python3
  fi
}

alone='not train and not sshd and not chromium and not postgres and not index and not slow and not soak'
# What differs between Pythons shows in the standard library's corners and in what the locks choose for each: the commands,
# what reads, archives, pages. The rest of the suite ran just now.
parts=(tests/config tests/commands tests/records tests/sealing tests/remote)
parts+=(tests/publishing/test_{archive,artifact,history,pages,publish}.py)

# Both at once: each waits for packages half of its time. What the second says comes after the first.
python=$(newest)
if [ ! -x /usr/bin/python3 ]; then
  [ -z "$python" ] || try "$python"
  exit 0
fi
second=
if [ -n "$python" ] && [ "$(version "$python")" != "$(version /usr/bin/python3)" ]; then
  (parts=(tests/config/test_compose.py tests/records tests/judgement tests/sealing); try "$python") >"$folder/second.log" 2>&1 &
  second=$!
fi
debians
if [ -n "$second" ]; then
  code=0; wait "$second" || code=$?
  cat "$folder/second.log"
  exit "$code"
fi
