"""`python -m tests.fuzz TARGET SECONDS`: atheris on one target; without words, all for FUZZ_SECONDS together.

A finding is written to tests/fuzz/corpus/TARGET/, where `make test` replays it until it is fixed and from then on.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"
NAMES = ("words", "configuration", "policy", "record", "messages", "bus", "control")


def fuzz(name: str, seconds: int) -> None:
    """Run libFuzzer in this process; does not return."""
    import atheris

    with atheris.instrument_imports(include=["scistreamd"], enable_loader_override=False):
        from tests.fuzz import targets

    target = targets.ControlPort() if name == "control" else targets.TARGETS[name]

    def judge(data: bytes) -> None:
        try:
            target(data)
        except BaseException:
            found = CORPUS / name / f"finding-{hashlib.sha256(data).hexdigest()[:12]}"
            found.write_bytes(data)
            print(f"FINDING {found}", flush=True)
            raise

    with tempfile.TemporaryDirectory() as fresh:
        words = [
            f"-max_total_time={seconds}",
            "-max_len=4096",
            "-timeout=20",
            "-rss_limit_mb=2048",
            "-print_final_stats=1",
        ]
        atheris.Setup([sys.argv[0], *words, f"-artifact_prefix={fresh}/", fresh, str(CORPUS / name)], judge)
        atheris.Fuzz()


def main() -> int:
    """All targets in turn, or the one that is named."""
    if len(sys.argv) == 3:
        fuzz(sys.argv[1], int(sys.argv[2]))
        return 0
    each = max(1, int(os.environ.get("FUZZ_SECONDS", "210")) // len(NAMES))
    failed = []
    for name in NAMES:
        print(f"== {name}, {each} s", flush=True)
        if subprocess.run([sys.executable, "-m", "tests.fuzz", name, str(each)], check=False).returncode:
            failed.append(name)
    print(f"findings in: {', '.join(failed)}; see {CORPUS}" if failed else "no findings")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
