#!/usr/bin/env bash
# Install what `make test-all` needs beyond Python, where it is missing: Debian's packages, then
# the npm packages of the browser tests, as their lock file names them. Says what it does; fails when it cannot.
set -euo pipefail

missing=()
# Debian keeps venv and ensurepip apart from its python3, which tools/pythons.sh uses.
[ ! -x /usr/bin/python3 ] || /usr/bin/python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
command -v /usr/sbin/sshd >/dev/null || missing+=(openssh-server)
command -v chromium >/dev/null || missing+=(chromium)
ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 || missing+=(postgresql)
command -v node >/dev/null || missing+=(nodejs npm)

if [ ${#missing[@]} -gt 0 ]; then
  if ! command -v apt-get >/dev/null; then
    echo "error: missing ${missing[*]} (packages=apt-get): install them by hand, then run this again" >&2
    exit 2
  fi
  echo "installing ${missing[*]}"
  run=()
  [ "$(id -u)" -eq 0 ] || run=(sudo)
  "${run[@]}" apt-get update -qq
  "${run[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

if [ -f tests/site/package-lock.json ] && ! cmp -s tests/site/package-lock.json tests/site/node_modules/.installed; then
  echo "installing the browser driver and the type checker"
  (cd tests/site && npm ci --silent --no-audit --no-fund --ignore-scripts && cp package-lock.json node_modules/.installed)
fi
