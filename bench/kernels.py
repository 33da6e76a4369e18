"""Which fused kernels serve on the device in each dtype, and why not; the last line is one JSON object."""

import argparse
import json

import torch

from i2v.engine.unet import fused


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(parser.parse_args().device)
    found = {str(dtype): list(map(str, fused.report(device, dtype))) for dtype in fused.BOUNDS}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
