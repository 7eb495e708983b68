"""SciStream's control server (S2CS) and its command line tools."""

__version__ = "2.0.0"
