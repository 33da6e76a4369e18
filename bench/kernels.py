"""Which fused kernels serve on the device in each dtype, and why not; the last line is one JSON object.

With `--table`, which needs no GPU: what each kernel's machine code takes on five of them, in the forms of a real step.
"""

import argparse
import json
import sys
from pathlib import Path

import torch

from i2v.engine.unet import fused


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--table", action="store_true", help="compile all kernels for other GPUs instead")
    arguments = parser.parse_args()
    if arguments.table:
        sys.exit(print_table())
    device = torch.device(arguments.device)
    found = {str(dtype): list(map(str, fused.report(device, dtype))) for dtype in fused.BOUNDS}
    print(json.dumps(found))


def print_table() -> str | None:
    """What cannot be used on some GPU, a line each."""
    sys.path.append(str(Path(__file__).resolve().parent.parent))
    from tests.engine.unet.ahead_of_time import DTYPES, compiled, every_form, table

    outcomes = {dtype: list(compiled(every_form(dtype))) for dtype in DTYPES}
    print(table(outcomes))
    return "\n".join(o.trouble for found in outcomes.values() for o in found if o.trouble) or None


if __name__ == "__main__":
    main()
