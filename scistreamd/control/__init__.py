"""The control port: gRPC, wire-compatible with SciStream 1.2."""
