"""`python clocked_server.py FILE ...`: server.py with the flags that follow, by a clock that is FILE's seconds ahead.

The file beside it, `.seen`, says how far it is ahead now.
"""

import runpy
import sys
import threading
import time
from pathlib import Path

import time_machine

SERVER = Path(__file__).resolve().parents[3] / "server.py"


def follow(file: Path, clock: time_machine.Traveller) -> None:
    ahead = 0
    while True:
        wanted = int(file.read_text())
        clock.shift(wanted - ahead)
        ahead = wanted
        file.with_suffix(".seen").write_text(str(ahead))
        time.sleep(0.01)


if __name__ == "__main__":
    file = Path(sys.argv.pop(1))
    with time_machine.travel(time.time(), tick=True) as clock:
        threading.Thread(target=follow, args=(file, clock), daemon=True).start()
        runpy.run_path(str(SERVER), run_name="__main__")
