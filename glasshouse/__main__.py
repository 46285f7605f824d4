"""`python -m glasshouse`, the same program as `glasshouse`."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the program; the exit code. Ctrl-C before it is loaded ends it as any later one does."""
    try:
        from glasshouse import cli  # noqa: PLC0415  loading takes long enough to be interrupted
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted\n")
        return 130  # cli.INTERRUPTED
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
