#!/bin/sh
# sh tools/needs_linux.sh WHAT: end with one line where this is not Linux. Before anything is installed, so in sh.
system=$(uname -s)
[ "$system" = Linux ] && exit 0
printf 'error: %s needs Linux (platform=%s): %s\n' "$1" "$system" \
  "planning, renting, verifying, reaping, publishing and the site work without it; README.md says how to install" >&2
exit 2
