"""What tests of the data plane begin with: a runtime directory, and a field of gateways and applications."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from scistreamd.process import ProcessLauncher
from scistreamd.runtime import runtime_directory
from tests.service.dataplane_kit import Field, field


@pytest.fixture
def runtime() -> Iterator[Path]:
    with runtime_directory() as made:
        yield made


@pytest_asyncio.fixture
async def scene(runtime: Path) -> AsyncIterator[Field]:
    async with field(ProcessLauncher(runtime)) as made:
        yield made
