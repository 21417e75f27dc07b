"""Rules that make one model out of many updates, block by block, in an order without a clock."""
