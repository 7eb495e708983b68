"""The demo that `make demo` runs: a real stream through an encrypted tunnel between two gateways."""
