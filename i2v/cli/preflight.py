"""The banner of a start: one [SUCCESS] or [ERROR] line for each thing the server needs, then the address.

That the server is ready is for the server to say, in the last line of a start.
The launcher runs it as a process of its own, because the checks load torch and the launcher must stay small. Exit
code 0: start the server; 2: something is missing, and its line says what to do.
"""

import ipaddress
import socket
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TextIO

import psutil

from i2v import __version__
from i2v.cli import doctor
from i2v.cli.doctor import Check
from i2v.errors import SettingsError
from i2v.flags import settings_from
from i2v.settings import Settings

CANNOT_START = 2
RULE = "=" * 78


def main(
    arguments: Sequence[str],
    out: TextIO = sys.stdout,
    checks: Callable[[Settings], Iterable[Check]] = doctor.checks,
) -> int:
    """Print the banner for a command line of server flags, each line as its check is done; return the exit code."""
    try:
        settings = settings_from(arguments)
    except SettingsError as error:
        print(f"[ERROR] settings: {error}", file=out, flush=True)
        return CANNOT_START
    if settings is None:  # --help
        return 0
    print(f"{RULE}\n i2v {__version__}: image to video with I2VGen-XL\n{RULE}", file=out, flush=True)
    sound = True
    for check in checks(settings):
        sound = sound and check.ok
        print(check, file=out, flush=True)
    for warning in warnings(settings):
        print(f"[WARNING] {warning}", file=out)
    if not sound:
        print("[ERROR] the server was not started; mend the lines marked [ERROR] and start again", file=out, flush=True)
        return CANNOT_START
    print(f"[INFO] address: {', '.join(addresses(settings))}", file=out)
    print("[INFO] the server starts; its last line says when it is ready, Ctrl-C ends it", file=out, flush=True)
    return 0


def warnings(settings: Settings) -> list[str]:
    """What does not prevent a start but should be known."""
    if not settings.api_token and not _is_loopback(settings.host):
        return [
            f"{settings.host} opens the server to the network and no token is set: "
            "anyone who reaches it may use it (set I2V_API_TOKEN)"
        ]
    return []


def addresses(settings: Settings) -> list[str]:
    """Where a browser finds the server; for a wildcard host every IPv4 address of the machine."""
    if settings.public_url:
        return [settings.public_url.rstrip("/")]
    host = settings.host
    if host not in ("0.0.0.0", "::"):  # noqa: S104  (compared, not bound)
        return [f"http://{f'[{host}]' if ':' in host else host}:{settings.port}"]
    found = [a.address for nic in psutil.net_if_addrs().values() for a in nic if a.family == socket.AF_INET]
    return [f"http://{address}:{settings.port}" for address in dict.fromkeys(["127.0.0.1", *found])]


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
