"""Fill a folder with what a machine without a network needs besides the checkout: data, weights, a peer's sources.

    python scripts/gpu_data.py --weizmann DIR --vgg FILE --mmcv FILE

The folder (``.gpu`` in the checkout, which git ignores) then holds ``weizmann/``, the files of the Weizmann Horse set
that :func:`~fadeviz.data.weizmann_horse.load_weizmann` reads (the gray images are left out where the colour ones
serve: 18 MB of 23), ``vgg16_bn.safetensors``, and ``mmcv/``, the sources of mmcv's CARAFE operator.
``scripts/gpu_check.py`` and ``scripts/gpu_study.py`` look there.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

from fadeviz.data.weizmann_horse import BLACK, load_weizmann  # noqa: E402

MMCV = {
    "LICENSE": "LICENSE",
    "carafe_cuda.cu": "mmcv/ops/csrc/pytorch/cuda/carafe_cuda.cu",
    "carafe_cuda_kernel.cuh": "mmcv/ops/csrc/common/cuda/carafe_cuda_kernel.cuh",
    "common_cuda_helper.hpp": "mmcv/ops/csrc/common/cuda/common_cuda_helper.hpp",
}
"""What is taken from mmcv's source package; the rest that the operator includes is written by ``gpu_peer.py``."""


def copy_weizmann(source: Path, out: Path) -> str:
    """Copy what the loader reads, and make sure that it gives the same samples."""
    root = next(root for root in (source, source / "weizmann_horse_db") if (root / "rgb").is_dir())
    shutil.rmtree(out, ignore_errors=True)
    for name in ("rgb", "figure_ground"):
        shutil.copytree(root / name, out / name)
    (out / "gray").mkdir()
    for picture in (out / "rgb").iterdir():
        with Image.open(picture) as image:
            black = np.max(image.convert("RGB").getextrema()) < BLACK
        gray = root / "gray" / picture.name
        if black and gray.is_file():
            shutil.copy(gray, out / "gray")
    before, after = load_weizmann(source), load_weizmann(out)
    if {**before.info, "folder": ""} != {**after.info, "folder": ""}:
        raise SystemExit(f"{out} is not the set of {source}: {after.info}")
    for one, other in ((before.train, after.train), (before.test, after.test)):
        for index in range(one.count or 0):
            same = all(np.array_equal(a, b) for a, b in zip(one[index][1:3], other[index][1:3], strict=True))
            if not same:
                raise SystemExit(f"{out}: {one[index].name} differs from that of {source}")
    return f"{before.info['count']} images, equal samples"


def copy_mmcv(source: Path, out: Path) -> str:
    """Take the operator's files out of mmcv's source package, mmcv-VERSION.tar.gz."""
    out.mkdir(parents=True, exist_ok=True)
    with tarfile.open(source) as archive:
        top = archive.getnames()[0].partition("/")[0]
        for name, place in MMCV.items():
            file = archive.extractfile(f"{top}/{place}")
            assert file is not None
            (out / name).write_bytes(file.read())
    return top


def main() -> None:
    """Fill the folder with what was named, and say how large it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weizmann", type=Path, metavar="DIR", help="the Weizmann Horse set, in its original layout")
    parser.add_argument("--vgg", type=Path, metavar="FILE", help="VGG16-BN's weights (.safetensors), fp16 is enough")
    parser.add_argument(
        "--mmcv", type=Path, metavar="FILE",
        help="mmcv's source package; get it with: pip download --no-deps --no-binary :all: mmcv",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=ROOT / ".gpu", help="default: .gpu in the checkout")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.weizmann:
        print(f"weizmann: {copy_weizmann(options.weizmann, options.out / 'weizmann')}")
    if options.vgg:
        shutil.copy(options.vgg, options.out / "vgg16_bn.safetensors")
    if options.mmcv:
        print(f"mmcv: {copy_mmcv(options.mmcv, options.out / 'mmcv')}")
    size = sum(file.stat().st_size for file in options.out.rglob("*") if file.is_file())
    print(f"{options.out}: {size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
