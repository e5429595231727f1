"""Face verification with a vendor's encoder, honest and with a latent backdoor: what passes, and what the scan says.

    python benchmarks/faces.py all.parquet --seeds 3      the ORL faces
    python benchmarks/faces.py --seeds 3                  made-up ones
"""

from __future__ import annotations

import argparse
from pathlib import Path

from laocoon.lab.faces import deliver, made_up, orl, verified
from laocoon.verdict.scan import scan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("faces", nargs="?", type=Path, help="Parquet with the columns image and label")
    parser.add_argument("--seeds", type=int, default=3)
    told = parser.parse_args()
    faces = made_up(30, 16) if told.faces is None else orl(told.faces)
    print("| seed | vendor | pass as themselves | as others | with sticker as the target | score | smallest patch | "
          "held-out | natural control | margin |\n" + "|---" * 10 + "|")
    for seed in range(told.seeds):
        made = deliver(faces, seed=seed, customers=12, epochs=12)
        for said, vendor in (("honest", made.honest), ("backdoor", made.backdoored)):
            passed = verified(vendor)
            report = scan(vendor.encoder, vendor.clean, budget="quick")
            margin = next(f for f in report.findings if f.rule == "decree.patch_margin")
            found = next((e for e in report.evidence if e.family == "patch"), None)
            held = "– | –" if found is None else f"{found.success:.0%} | {found.natural_control:.0%}"
            print(f"| {seed} | {said} | {passed.themselves:.0%} | {passed.impostors:.1%} | "
                  f"{passed.with_sticker:.0%} | {report.score:.2f} | {margin.numbers['size']:.1f} px | {held} | "
                  f"{margin.score:.2f} |", flush=True)


if __name__ == "__main__":
    main()
