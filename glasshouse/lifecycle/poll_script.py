"""The one command of a poll, run on the pod: is the result there, or else the leg's process; and what is new.

Arguments: leg folder, first byte wanted, followed file, most bytes, pid. Says "done", "gone" or "wait" on a
line, then the bytes. A dead process that nobody reaped, as in a container whose first process does not, can
still be signalled: it is gone.
"""

POLL_SCRIPT = """
if test -f "$1/result.json"; then echo done
elif ! kill -0 "$5"; then echo gone
else
  read -r stat < "/proc/$5/stat"
  case "${stat##*) }" in Z*|X*) echo gone ;; *) echo wait ;; esac
fi 2>/dev/null
tail -c "+$2" "$1/$3" 2>/dev/null | head -c "$4"
true
"""
