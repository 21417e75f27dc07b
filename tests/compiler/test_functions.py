"""Functions of torch by family: through onnxruntime against eager torch, forward and backward.

A family is traced as one step with an open batch and run on the traced batch and a smaller one.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from headwater.errors import CompileError
from tests.compiler.lowering import assert_same, numbered, through_onnx

torch.manual_seed(0)
ROWS, OTHERS = torch.randn(4, 6), torch.randn(4, 6)
SEQUENCES = torch.randn(4, 3, 6)
IMAGES = torch.randn(4, 4, 6, 6)
PLACES = torch.tensor([[0, 2], [1, 5], [3, 3], [5, 0]])
DISTINCT = torch.tensor([[0, 2], [1, 5], [3, 2], [5, 0]])
DEEP = PLACES.unsqueeze(-1)

Functions = dict[str, Callable[..., Tensor]]


@dataclass(frozen=True)
class Family:
    """Functions of the same tensors."""

    functions: Functions
    tensors: tuple[Tensor, ...]
    batched: tuple[str, ...] = ("t0",)


def vector(*places: int) -> Tensor:
    return torch.tensor(places)


def assigned(x: Tensor) -> Tensor:
    y = x * 2
    y[:, 1:3] = x[:, :2] ** 2
    y[:, 2, 5] = 0
    y[:, vector(0, 2)] = x[:, :1]
    y[:, :, vector(0, 3)] = 5.0
    y[x > 0.5] = 0
    return y


def _shaped(
    name: str, domain: Callable[[Tensor], Tensor], slope: float = 0
) -> Callable[[Tensor], Tensor]:
    """A function of torch where it is defined; a slope where it has none of its own."""
    return lambda x: getattr(torch, name)(domain(x)) + slope * x


ELEMENTWISE: Functions = {
    name: getattr(torch, name)
    for name in (
        "abs", "neg", "erf", "erfc", "exp", "exp2", "expm1", "sin", "cos", "tan", "sinh", "cosh",
        "tanh", "atan", "asinh", "sigmoid", "square", "sinc", "deg2rad", "nan_to_num",
    )
} | {
    **{
        name: _shaped(name, lambda x: x, slope=1)
        for name in ("sign", "sgn", "frac", "trunc", "round", "ceil", "floor")
    },
    **{
        name: _shaped(name, lambda x: x.abs() + 0.3)
        for name in ("log", "log2", "log10", "log1p", "sqrt", "rsqrt", "reciprocal")
    },
    **{
        name: _shaped(name, lambda x: x.sigmoid() * 0.9 + 0.05)
        for name in ("asin", "acos", "atanh", "logit")
    },
    "acosh": lambda x: torch.acosh(x.exp() + 1.1),
    "softplus, beta": lambda x: F.softplus(x, 2.0, 1.0),
    "fmod": lambda x: torch.fmod(x, 0.7),
    "remainder": lambda x: torch.remainder(x, 0.7),
    "floor_divide": lambda x: torch.floor_divide(x.detach(), 0.7) + x,
    "div, trunc": lambda x: torch.div(x, 0.7, rounding_mode="trunc") + x,
    "pow of a number": lambda x: 2.0**x,
    "pow, negative": lambda x: x.exp() ** -1.5,
    "xlogy": lambda x: torch.xlogy(x, x.exp()),
    "mask times": lambda x: x * (x > 0.2),
    "masked_fill": lambda x: x.masked_fill(x > 1, float("-inf")).softmax(-1),
    "where": lambda x: torch.where(x > 0, x, 0.5 * x),
}  # fmt: skip

OF_TWO: Functions = {
    "atan2": torch.atan2, "hypot": torch.hypot, "logaddexp": torch.logaddexp,
    "logaddexp2": torch.logaddexp2, "copysign": torch.copysign,
    "maximum and minimum": lambda x, y: torch.maximum(x, y) - torch.minimum(x, y) * 2,
    "fmax and fmin": lambda x, y: torch.fmax(x, y) - torch.fmin(x, y) * 2,
    "remainder": lambda x, y: torch.remainder(x, y.exp()),
    "pow": lambda x, y: x.exp() ** y,
    "clamp": lambda x, y: x.clamp(y, y + 1),
    "lerp": lambda x, y: torch.lerp(x, y, 0.3) + x.lerp(y, x),
    "addcmul": lambda x, y: torch.addcmul(x, x, y, value=0.5),
    "addcdiv": lambda x, y: x.addcdiv(x, y.exp(), value=0.5),
    "cosine_similarity": F.cosine_similarity,
    "pairwise_distance": F.pairwise_distance,
    "pairwise_distance, p=1": lambda x, y: F.pairwise_distance(x, y, 1.0),
}  # fmt: skip

REDUCTIONS: Functions = {
    "std": lambda x: x.std(1),
    "std, correction": lambda x: x.std((1, 2), correction=0),
    "var, correction": lambda x: x.var(1, correction=2),
    "var_mean": lambda x: sum(torch.var_mean(x, 1)),
    "std_mean": lambda x: sum(torch.std_mean(x, 1)),
    **{f"norm, p={p}": lambda x, p=p: x.norm(p, dim=1) for p in (1, 2, 3, float("inf"))},
    "norm of all": lambda x: torch.norm(x),
    "linalg.vector_norm": lambda x: torch.linalg.vector_norm(x, dim=(1, 2)),
    "linalg.matrix_norm": torch.linalg.matrix_norm,
    "normalize": lambda x: F.normalize(x, 1.0, dim=1),
    "logsumexp": lambda x: x.logsumexp((1, 2)),
    "prod": lambda x: x.prod(1),
    "amax": lambda x: x.amax((1, 2)),
    "aminmax": lambda x: torch.aminmax(x, dim=1).max,
    "max with its place": lambda x: x.max(1).values + x.min(1).values * x.max(1).indices,
    "cdist": lambda x: torch.cdist(x, x * 2 + 1) + torch.cdist(x, x * 2 + 1, p=1.0),
}

RUNNING_AND_ORDER: Functions = {
    "cumsum": lambda x: x.cumsum(-1),
    "cumprod": lambda x: x.cumprod(-1),
    "logcumsumexp": lambda x: x.logcumsumexp(-1),
    "diff": lambda x: x.diff(dim=1),
    "sort": lambda x: x.sort(1, descending=True).values,
    "sort, stable": lambda x: torch.sort(x.round(), dim=1, stable=True).values,
    "argsort": lambda x: x.gather(-1, x.argsort(-1)),
    "argsort, stable": lambda x: x.gather(-1, x.detach().round().argsort(dim=-1, stable=True)),
    "topk": lambda x: x.topk(2, -1).values,
    "topk, smallest": lambda x: x.topk(2, 1, largest=False).values,
    "topk of the batch": lambda x: x.square().mean((1, 2)).topk(2).values,
    "median": lambda x: x.median(-1).values,
    "median of all": lambda x: x.median(),
    "kthvalue": lambda x: x.kthvalue(2, -1).values,
    "quantile": lambda x: x.quantile(0.3, 1),
}

SHAPES: Functions = {
    "flip": lambda x: x.flip(1, 2),
    "roll": lambda x: x.roll((1, 2), (1, 2)),
    "rot90": lambda x: torch.rot90(x, 1, (1, 2)),
    "diagonal": lambda x: x.diagonal(dim1=1, dim2=2),
    "diagonal, offset": lambda x: x.diagonal(1, 1, 2),
    "diag_embed": torch.diag_embed,
    "trace": lambda x: (x.flatten(1).T @ x.flatten(1)).trace(),
    "tril and triu": lambda x: x.tril(-1) + x.triu(1),
    "meshgrid": lambda x: x * sum(torch.meshgrid(vector(1, 2, 3), torch.arange(6), indexing="ij")),
    "repeat_interleave": lambda x: x.repeat_interleave(2, 1),
    "repeat_interleave of the batch": lambda x: x.repeat_interleave(2, 0),
    "repeat": lambda x: x.repeat(1, 2, 3),
    "expand": lambda x: x[:, :1].expand(-1, 4, -1),
    "chunk": lambda x: x.chunk(3, -1)[1],
    "split": lambda x: x.split([1, 2], 1)[1],
    "tensor_split": lambda x: x.tensor_split(2, 1)[1],
    "unbind": lambda x: x.unbind(1)[1],
    "stack": lambda x: torch.stack([x, x * 2], -1),
    "movedim": lambda x: x.movedim(1, -1),
    "flatten and unflatten": lambda x: x.flatten(1).unflatten(1, (6, 3)),
    "unfold": lambda x: x.unfold(2, 3, 2),
    "unsqueeze_ and squeeze_": lambda x: (x * 2).unsqueeze_(1).sin().squeeze_(1),
    "t_ and transpose_": lambda x: (x * 2).transpose_(1, 2) @ (x[0] * 2).t_().T,
}

PLACED: Functions = {
    "one vector": lambda x: x[:, vector(2, 0, 2)],
    "a matrix": lambda x: x[:, torch.tensor([[0, 1], [1, 2]])],
    "two vectors": lambda x: x[:, vector(0, 1, 1), vector(2, 3, 3)],
    "two vectors apart": lambda x: x[vector(0, 1), :, vector(2, 3)],
    "negative": lambda x: x[:, vector(-1, 0), vector(-2, 1)],
    "index_select": lambda x: x.index_select(1, vector(2, 2)),
    "index_add": lambda x: x.index_add(1, vector(0, 2), x[:, 1:3] * 2),
    "index_copy": lambda x: x.index_copy(1, vector(0, 2), x[:, 1:3] * 2),
    "index_fill": lambda x: x.index_fill(1, vector(0, 2), 2.0) * x,
    "index_put": lambda x: x.index_put((vector(0, 1), vector(1, 2)), x[0, 0] * 2),
    "index_put, accumulated": lambda x: x.index_put((vector(0, 0), vector(1, 1)), x[0, :2], True),
    "assigned": assigned,
}

INDEXED: Functions = {
    "gather": lambda x, i: x.gather(1, i),
    "scatter_add": lambda x, i: x.scatter_add(1, i, x[:, 2:4] * 2),
    "scatter_add to zeros": lambda x, i: torch.zeros(x.shape[0], 7).scatter_add(1, i, x[:, :2]),
    "scatter_reduce, sum": lambda x, i: x.scatter_reduce(1, i, x[:, 2:4], "sum"),
    "scatter of a number": lambda x, i: x.scatter(1, i, 2.0) * x,
    "take_along_dim": lambda x, i: torch.take_along_dim(x, i, 1),
    "one_hot": lambda x, i: F.one_hot(i, 7).float().sum(1) * x.sum(1, True),
    "rows and columns": lambda x, i: x[torch.arange(x.shape[0])[:, None], i],
    "one place each": lambda x, i: x[torch.arange(x.shape[0]), i[:, 0]],
    "index_add of rows": lambda x, i: torch.zeros(7, 6).index_add(0, i[:, 0], x),
}

EINSUMS = (
    "bij,bkj->bik", "bij,bij->b", "bij,bik->bjk", "bij,bij->bij", "b...i,b...i->b...",
)  # fmt: skip

FAMILIES: dict[str, Family] = {
    "elementwise": Family(ELEMENTWISE, (ROWS,)),
    "of two tensors": Family(OF_TWO, (ROWS, OTHERS), ("t0", "t1")),
    "reductions": Family(REDUCTIONS, (SEQUENCES,)),
    "running and in order": Family(RUNNING_AND_ORDER, (SEQUENCES,)),
    "shapes": Family(SHAPES, (SEQUENCES,)),
    "at fixed places": Family(PLACED, (SEQUENCES,)),
    "at given places": Family(INDEXED, (ROWS, PLACES), ("t0", "t1")),
    "at given distinct places": Family(
        {"scatter": lambda x, i: x.scatter(1, i, x[:, 2:4] * 2)}, (ROWS, DISTINCT), ("t0", "t1")
    ),
    "at fewer places": Family(
        {
            "gather": lambda x, i: x.gather(2, i),
            "scatter_add": lambda x, i: x.scatter_add(2, i, x[:, :2, :1] * 2),
        },
        (SEQUENCES, DEEP), ("t0", "t1"),
    ),
    "einsum": Family(
        {e: lambda x, e=e: torch.einsum(e, x, x * 2) for e in EINSUMS}
        | {
            "bij->bji": lambda x: torch.einsum("bij->bji", x),
            "bij->": lambda x: torch.einsum("bij->", x),
            "bii->bi": lambda x: torch.einsum("bii->bi", x[:, :, :3]),
            "bij,kj->bik": lambda x: torch.einsum("bij,kj->bik", x, x[0]),
            "bi,bj->bij": lambda x: torch.einsum("bi,bj->bij", x[:, 0], x[:, 1]),
        },
        (SEQUENCES,),
    ),
    "products": Family(
        {
            "matmul, broadcast": lambda x, y, z: x @ y,
            "matmul from the left": lambda x, y, z: z @ x,
            "matmul with a vector": lambda x, y, z: x @ y[0, :, 0],
            "bmm": lambda x, y, z: torch.bmm(x[:, 0], x[:, 1].transpose(1, 2)),
            "baddbmm": lambda x, y, z: torch.baddbmm(
                x[:, 0, :, :3], x[:, 0], x[:, 1].mT, beta=0.5, alpha=2
            ),
            "addmm": lambda x, y, z: torch.addmm(z[0], x[:, 0, 0], y[0, :, :3], beta=0.5, alpha=2),
            "outer": lambda x, y, z: torch.outer(x[0, 0, 0], z[0]),
            "kron": lambda x, y, z: torch.kron(x[:, 0, 0], z) + torch.kron(
                input=x[:, 0, 0], other=z
            ),
            "tensordot": lambda x, y, z: torch.tensordot(x[:, 0], y[0], 1),
            "three": lambda x, y, z: torch.einsum("bi,ij,bj->b", x[:, 0, 0], y[0], x[:, 0, 1, :5]),
        },
        (torch.randn(4, 2, 3, 6), torch.randn(2, 6, 5), torch.randn(5, 3)),
    ),
    "grid_sample": Family(
        {
            "bilinear": lambda x, g: F.grid_sample(x, g.tanh(), align_corners=False),
            "nearest": lambda x, g: F.grid_sample(x, g, "nearest", align_corners=False) + g.sum(),
            "border": lambda x, g: F.grid_sample(
                x, g, padding_mode="border", align_corners=True
            ),
        },
        (IMAGES, torch.randn(4, 3, 5, 2)), ("t0", "t1"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_and_its_gradients(name: str) -> None:
    family = FAMILIES[name]

    def step(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        results: dict[str, Tensor] = {}
        for function_name, function in family.functions.items():
            leaves = [tensors[f"t{i}"] for i in range(len(tensors))]
            with torch.enable_grad():
                leaves = [t.detach().requires_grad_(t.is_floating_point()) for t in leaves]
                value = function(*leaves)
                weights = torch.arange(value.numel(), dtype=value.dtype).reshape(value.shape).cos()
                wanted = [t for t in leaves if t.requires_grad]
                found = torch.autograd.grad((value * weights).sum(), wanted, materialize_grads=True)
            results[function_name] = value.detach()
            results |= {f"{function_name}, gradient {i}": g for i, g in enumerate(found)}
        return results

    assert_same(step, numbered(*family.tensors), 5e-5, 3e-6, list(family.batched))


REFUSED: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "a mask that selects": (lambda x: x[x > 0], "Instead: a mask in brackets makes a shape"),
    "assigned to a mask": (
        lambda x: x.index_put((x > 0,), x[0]), "makes a shape that depends on data: use torch.where"
    ),
    "scatter_reduce, amax": (
        lambda x: x.scatter_reduce(1, PLACES, x[:, :2], "amax"), "use scatter_add, and for a mean",
    ),
    "unique": (lambda x: torch.unique(x), "aten._unique2.default.* Instead: count known classes"),
    "nonzero": (lambda x: x.nonzero(), "aten.nonzero.default.* Instead: keep the shape"),
    "erfinv": (lambda x: torch.erfinv(x), "aten.erfinv.default .* not supported on devices"),
    "lgamma": (lambda x: torch.lgamma(x), "aten.lgamma.default .* not supported on devices"),
    "linalg.det": (lambda x: torch.linalg.det(x[:, :4]), "linalg_det.* not supported on devices"),
    "fft": (lambda x: torch.fft.rfft(x).abs(), "complex64"),
    "complex": (lambda x: torch.complex(x, x).abs(), "complex64"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_these_words(name: str) -> None:
    function, words = REFUSED[name]
    with pytest.raises(CompileError, match=words):
        through_onnx(lambda t: {"y": function(t["t0"])}, numbered(ROWS))
