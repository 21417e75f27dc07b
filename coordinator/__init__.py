"""The coordinator: round engine, services, plan compiler and the operators' command."""
