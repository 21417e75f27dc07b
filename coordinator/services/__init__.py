"""The gRPC services: they decode, call the engine, and encode."""
