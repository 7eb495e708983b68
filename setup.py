"""The one part that is not Python: a library that Stunnel is run with (docs/data-servers.md). All else: pyproject.toml.

``optional``: where no C compiler is, the rest is installed, and tunnels of the type Stunnel bear a warning.
"""

from setuptools import Extension, setup

# It is no module of Python; built as one, so that every way of installing takes it along.
setup(
    ext_modules=[
        Extension(
            "scistreamd.dataserver.stunnel_poll",
            ["scistreamd/dataserver/stunnel_poll.c"],
            py_limited_api=True,
            optional=True,
        )
    ]
)
