"""``s2ctl config``: what ``scistreamd --check-config`` says, which alone reads the configuration."""

from __future__ import annotations

import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import scistreamd
from scistreamd.cli import output
from scistreamd.cli.ctl.screen import Screen, as_json
from scistreamd.errors import Code, ScistreamError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def show(options: Namespace) -> int:
    """``s2ctl config show``: the settings that the files make, defaults included."""
    screen = Screen.of(options)
    done = _checked(options.config)
    if done.returncode == 0 and screen.json:
        screen.data(tomllib.loads(done.stdout))
    elif done.returncode == 0:
        screen.text(done.stdout.strip().splitlines())
    return done.returncode


def check(options: Namespace) -> int:
    """``s2ctl config check``: whether scistreamd can go by its configuration."""
    done = _checked(options.config)
    if options.json != "off":
        output.result(as_json({"valid": done.returncode == 0}, options.json))
    elif done.returncode == 0 and not options.quiet:
        output.result("The configuration is valid.")
    return done.returncode


def value(*names: str) -> Any:
    """A setting in force, by its key; FAILED_PRECONDITION where scistreamd could not go by its configuration."""
    done = _checked(None)
    if done.returncode != 0:
        raise ScistreamError(Code.FAILED_PRECONDITION, "the configuration is not valid", "s2ctl config check says why")
    found: Any = tomllib.loads(done.stdout)
    for name in names:
        found = found[name]
    return found


def _checked(config: str | None) -> subprocess.CompletedProcess[str]:
    """Run the check; what is wrong it says itself, on standard error, by its exit status, which is ours too."""
    # -I: no module of the current directory is taken for one of ours; it hides us, too, where we are not installed.
    start = "import sys; sys.path.append(sys.argv.pop(1)); from scistreamd.service_main import main; sys.exit(main())"
    words = [sys.executable, "-I", "-c", start, str(Path(scistreamd.__file__).parent.parent), "--check-config"]
    words += ["--config", config] if config is not None else []
    return subprocess.run(words, stdout=subprocess.PIPE, text=True, check=False)  # noqa: S603
