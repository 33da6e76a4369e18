"""Starts the server: `python server.py [flags]`, the same flags as `i2v serve`."""

import sys

from i2v.errors import SettingsError
from i2v.flags import settings_from
from i2v.serve import serve


def main() -> int:
    try:
        settings = settings_from(sys.argv[1:])
    except SettingsError as error:
        print(f"[ERROR] {error}", file=sys.stderr)
        return 2
    return 0 if settings is None else serve(settings)


if __name__ == "__main__":
    sys.exit(main())
