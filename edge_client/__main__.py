"""`python -m edge_client` is `headwater-client`."""

from edge_client.cli import main

main()
