"""How much less a stale update counts than a fresh one.

Xie, Koyejo, Gupta, "Asynchronous Federated Optimization", 2019, give the polynomial discount
(1 + staleness)^-a; with a = 1/2 it is that of Nguyen, Malik, Zhan, Yousefpour, Rabbat, Malek, Huba,
"Federated Learning with Buffered Asynchronous Aggregation", AISTATS 2022 (FedBuff), which we take:
it needs a square root and a division alone, whose bits no processor changes. We depart in one
point: FedBuff divides the sum of discounted updates by their number, we by the sum of the
discounted weights, so that a round's weights in the ledger always add up to 1.
"""

from math import sqrt


def discounted(examples: int, staleness: int) -> float:
    """The weight of an update of so many examples whose base is `staleness` versions old.

    Exactly `examples` for a fresh one.
    """
    return examples / sqrt(1 + staleness)
