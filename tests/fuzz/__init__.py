"""Hostile input for every parser: `make fuzz` looks for more, `make test` replays tests/fuzz/corpus."""
