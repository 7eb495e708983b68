"""The benchmarks: `python -m tests.bench` measures side by side and writes docs/PERFORMANCE.md."""
