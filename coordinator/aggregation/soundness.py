"""What new weights must fulfil before a round may commit them."""

import numpy as np

from headwater.layout import Layout, Weights


def fault_of(weights: Weights, layout: Layout) -> str:
    """Why these weights must not become a model version; empty when they may.

    Every value must be finite, and every variance (`TensorSpec.positive`) above zero.
    """
    for spec, place in layout.float_slices():
        values = weights.floats[place]
        if not np.isfinite(values).all():
            return f"the new weights are not finite in tensor {spec.name!r}"
        if spec.positive and not (values > 0).all():
            return f"the new variance {spec.name!r} is not positive everywhere"
    return ""
