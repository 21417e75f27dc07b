"""The demo: a coordinator and four clients on this machine, as separate processes, on real data."""
