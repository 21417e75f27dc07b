"""What to write in place of what plans cannot hold: one table of torch's names.

A name is that of the function which the author called (`Tensor.item`) or of the operator that it
became (`aten.nonzero`), without overloads. The first pattern that matches a name counts.
"""

from fnmatch import fnmatchcase

_TABLE = {
    "__bool__": "torch.where(condition, a, b) computes both and selects, without an if; for an "
    "assert, check the data before they become batches",
    "__int__ __index__ __len__": "loop a fixed number of times, and let a mask "
    "(torch.arange(n) < length) decide what counts",
    "item tolist __float__ _local_scalar_dense": "keep it a tensor: x * scale, not "
    "x * scale.item()",
    "numpy __array__ from_numpy": "use torch functions; numpy sees the values of one batch only",
    "nonzero* masked_select masked_scatter argwhere": "keep the shape: torch.where(mask, x, 0.0), "
    "and divide sums by mask.sum()",
    "__getitem__ index index_put* _index_put* __setitem__": "a mask in brackets makes a shape that "
    "depends on the data: torch.where(mask, x, 0.0) keeps the shape; for positions use "
    "torch.gather or torch.index_select",
    "unique* _unique* unique_consecutive": "count known classes with F.one_hot(x, classes).sum(0)",
    "repeat_interleave": "give a number of repeats, or expand and flatten",
    "bitwise_left_shift bitwise_right_shift __lshift__ __rshift__": "x * 2**n and x // 2**n",
    "mode": "F.one_hot(x, classes).sum(0).argmax()",
    "nanmedian nanquantile": "x.sort(dim).values has them in order, and select(dim, k) one of them",
    "linalg* _linalg* inverse cholesky* svd* qr det logdet slogdet triangular_solve lu* pinverse "
    "matrix_exp": "devices have no linear algebra beyond products: use matmul, or a fixed number "
    "of iterations of it",
    "fft* _fft* stft istft complex polar view_as_complex view_as_real real imag angle": "devices "
    "have no complex numbers: multiply by a table of cosines and sines kept with register_buffer",
    "histc bincount histogram*": "F.one_hot(x, bins).sum(0)",
    "searchsorted bucketize": "(x.unsqueeze(-1) > edges).sum(-1)",
    "cummax cummin": "over the last dimension, of size n: "
    "x.unsqueeze(-2).masked_fill(torch.ones(n, n).triu(1).bool(), -torch.inf).amax(-1); for "
    "cummin torch.inf and amin",
    "pdist _pdist*": "torch.cdist(x, x), which has each pair twice, and zeros on its diagonal",
    "fake_quantize* quantize* dequantize* _fake_quantize*": "train in float32, and quantize the "
    "trained model",
    "i0* i1* bessel* special* digamma polygamma lgamma erfinv igamma* zeta": "a few terms of a "
    "series, or a polynomial",
    "rand* normal normal_ bernoulli* multinomial poisson exponential* uniform* "
    "cauchy* geometric* log_normal*": "build it from "
    "torch.rand or torch.randn, which draw alike on every device, or bring the noise as an input",
    "to_dense* to_sparse* sparse* _sparse* coalesce*": "dense tensors",
    "_to_copy to half bfloat16": "float32: remove autocast, .half() and .bfloat16()",
    "cuda to_device pin_memory": "leave the device out: new tensors take x.device",
    "checkpoint": "call the part itself, without torch.utils.checkpoint, which runs it again "
    "beside the plan's state",
    "inner_gradient": "a step differentiates the loss by the parameters that require a gradient "
    "before it: leave torch.autograd.grad and requires_grad_ out of forward and loss",
    "own_gradient": "x + (f(x) - x).detach() has the value of f(x) and the gradient of x; with "
    "t = x * g.detach(), f(x).detach() + t - t.detach() has the gradient g",
}

_PATTERNS = [(pattern, text) for patterns, text in _TABLE.items() for pattern in patterns.split()]

OTHERWISE = "write this part with other operators; docs/plan.md lists those that devices run"


def advice(name: object, otherwise: str = OTHERWISE) -> str:
    """What to write instead of a torch function or an ATen operator, by its plain name."""
    plain = str(name).removeprefix("aten.").partition(".")[0]
    return next((text for pattern, text in _PATTERNS if fnmatchcase(plain, pattern)), otherwise)
