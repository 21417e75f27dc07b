"""What cannot become a plan, from an author's own file: each refusal names the part, the line, the
operator or function, and what to write instead.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from textwrap import indent

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from coordinator.author import compile_job
from coordinator.compiler.places import place
from coordinator.compiler.trace import trace_step
from headwater.errors import CompileError

MODEL = """\
import torch
import torch.nn.functional as F
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)
{init}
    def forward(self, x):
{start}
        x = self.body(x)
{body}
        return self.head(x)

def loss(output, target):
{loss}
    return ((output - target) ** 2).mean()

def metric(output, target):
{metric}
    return (output - target).abs().mean()
"""

JOB = """\
name = "line"
dataset = "line"
[model]
factory = "model:Net"
loss = "model:loss"
metrics = ["model:metric"]
input = { shape = [4], dtype = "float32" }
target = { shape = [2], dtype = "float32" }
[train]
optimizer = { name = "sgd", learning_rate = 0.01 }
local_steps = 1
batch_size = 4
[rounds]
count = 1
cohort = 1
"""

OWN = "in the model's own forward at HERE"
LEAVES = "the value of a tensor leaves the graph"
SHAPE = "the shape of a result depends on the values of a tensor"
BRANCHES = "the model, loss or metric branches on the values of a tensor"
PARTS = {"init": 8, "start": 8, "body": 8, "loss": 4, "metric": 4}


def write(folder: Path, **parts: str) -> str:
    """Write a job and the author's file with these lines in it; the file's text."""
    code = {name: indent(parts.get(name, "pass"), " " * PARTS[name]) for name in PARTS}
    source = MODEL.format(**code)
    (folder / "model.py").write_text(source)
    (folder / "job.toml").write_text(JOB)
    return source


def compile_with(folder: Path, **parts: str) -> str:
    """Compile the author's file with these lines in it; the message of the refusal, in which the
    place of the line that ends in `# !` is called HERE.
    """
    source = write(folder, **parts)
    marked = [number for number, line in enumerate(source.splitlines(), 1) if line.endswith("# !")]
    with pytest.raises(CompileError) as caught:
        compile_job(folder / "job.toml")
    message = str(caught.value)
    for number in marked:
        message = message.replace(f"{folder / 'model.py'}:{number}", "HERE")
    return re.sub(r" \(\S+model.py:\d+\)", "", message)


@pytest.mark.parametrize(
    ("line", "told", "instead"),
    [
        ("if x.sum() > 0:  # !\n    x = -x", f"{BRANCHES} {OWN}: ", "torch.where(condition, a, b)"),
        ("while (x > 3).any():  # !\n    x = x / 2", f"{BRANCHES} {OWN}: ", "torch.where("),
        ("assert (x > -9).all()  # !", f"{BRANCHES} {OWN}: ", "check the data before"),
        ("x = x * x.max().item()  # !", f"{LEAVES} {OWN} (item): ", "x * scale, not"),
        ("x = x * x.tolist()[0][0]  # !", f"{LEAVES} {OWN}", "keep it a tensor"),
        ("x = x * float(x.mean())  # !", f"{LEAVES} {OWN} (float): ", "keep it a tensor"),
        ("x = x * torch.tensor(x.detach().numpy())  # !", f"{LEAVES} {OWN} (numpy): ", "use torch"),
        ("for _ in range(int(x.sum())):  # !\n    x = x + 1", f"{LEAVES} {OWN} (int): ", "mask"),
        ("x = x + x[x > 0].sum()  # !", f"{SHAPE} {OWN} (aten.nonzero", "torch.where(mask, x"),
        ("x = x + torch.masked_select(x, x > 0).sum()  # !", f"{SHAPE} {OWN}", "torch.where(mask"),
        ("x = x + torch.nonzero(x > 0).sum()  # !", f"{SHAPE} {OWN} (aten.nonzero", "keep the sha"),
        ("x = x + torch.unique(x.detach()).sum()  # !", f"{SHAPE} {OWN} (aten._unique", "one_hot"),
        ("x = torch.special.i0(x)  # !", f"aten.i0.default {OWN} is not supported on", "series"),
        ("x = x @ torch.linalg.inv(x.T @ x)  # !", f"aten.linalg_inv_ex.default {OWN} ", "matmul"),
        ("x = torch.fft.rfft(x).abs().sum() + x  # !", f"{OWN} computes in torch.complex", "table"),
        ("x = x.half().float()  # !", f"{OWN} computes in torch.float16", "remove autocast"),
        ("x = x * (1 if x.shape[0] == 11 else 2)  # !", "compares the batch size at HERE", "-1 in"),
        ("x = x * (2 if x.shape[0] == 1 else 1)  # !", "do not compute what eager torch does", ""),
        ("x = x * (2 if x.shape[0] == 32 else 1)  # !", "compares the batch size at HERE", "-1"),
        ("x = x * (1 if x.shape[0] in (16, 3000) else 2)  # !", "compares the batch size", "-1"),
        ("if x.shape[0] * 2 > 9000:  # !\n    x = -x", "compares the batch size at HERE", "only"),
        ("import random\nx = x if random.random() < 0.1 else -x", "draws from Python's random",
         "torch.rand(()) < p"),
        ("import numpy as np\nx = x * np.random.rand()", "draws from numpy.random", "torch.rand"),
        ("if x.shape[0] > 4:  # !\n    x = -x", "compares the batch size at HERE", "only in sh"),
        ("x = x + torch.zeros(int(x.shape[0]), 4)  # !", "fixes the batch size at HERE", "only in"),
        ("x = torch.stack([x[i] for i in range(len(x))])  # !", "batch size at HERE", "a loop"),
        ("x = x + x.logcumsumexp(0)  # !", f"aten.logcumsumexp.default {OWN} runs along the batch",
         "swap dimensions"),
        ("x = x + torch.diagonal(x @ x.T).unsqueeze(1)  # !", f"aten.diagonal.default {OWN}: it ",
         "fixes the size of the batch"),
        ("x = x + torch.autograd.grad(x.sum(), self.head.weight)[0].sum()  # !",
         f"cannot be traced {OWN}", "leave torch.autograd.grad and requires_grad_ out of forward"),
        ("self.head.weight.requires_grad_(False)", "cannot be traced", "requires_grad_ out of"),
        ("return None", "the model's forward returns None", "lacks a return"),
        ("x = x.detach(); return self.head(x).detach()", "the loss does not depend", ".detach()"),
        ("self.count = self.count + 1", "the model keeps what it computes", "register_buffer"),
        ("self.memory = self.memory + x.detach().mean(0)", "keeps what it computes", "register_bu"),
        ("raise KeyError('mine')  # !", f"cannot be traced {OWN}: KeyError: 'mine'", ""),
        ("x = x[:, :3]\nx = self.head(x)  # !", "traced in module 'head' at HERE: Runtime", ""),
        ("self.head.weight.data.mul_(0.9)  # !", f"aten.mul_.Tensor {OWN} writes in", "clone"),
    ],
)  # fmt: skip
def test_in_a_forward(line: str, told: str, instead: str, tmp_path: Path) -> None:
    init = "self.count = 0\nself.memory = torch.zeros(4)"
    message = compile_with(tmp_path, init=init, body=line)
    assert told in message
    assert instead in message


@pytest.mark.parametrize(
    "line",
    ["x += 1  # !", "x[:, 0] = 0  # !", "x.view(-1).mul_(2)  # !", "x.chunk(2, 1)[1].mul_(2)  # !"],
)
def test_a_write_to_the_input(line: str, tmp_path: Path) -> None:
    message = compile_with(tmp_path, start=line)
    assert f"{OWN} writes in place to an input" in message
    assert "x = x + 1" in message


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ({"loss": "return torch.special.i0(output).mean()  # !"},
         "aten.i0.default in the loss at HERE is not supported on devices. Instead: a few terms"),
        ({"loss": "if output.sum() > 0:  # !\n    return output.mean()"},
         f"{BRANCHES} in the loss at HERE: a plan is one fixed graph"),
        ({"loss": "return (output - target).abs().mean(0)"},
         "the loss returned [2] of torch.float32; expected one floating number, the mean over the "
         "batch (.mean()) in the loss"),
        ({"loss": "return None"}, "the loss returned NoneType; expected a scalar tensor"),
        ({"metric": "return torch.special.i0(output).mean()  # !"},
         "aten.i0.default in the metric 'metric' at HERE is not supported on devices"),
        ({"metric": "return output.mean().item()  # !"},
         f"{LEAVES} in the metric 'metric' at HERE (item): "),
        ({"metric": "return output.abs()"}, "a metric returned [batch, 2]; expected one number"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)  # fmt: skip
def test_in_a_loss_or_metric(parts: dict[str, str], told: str, tmp_path: Path) -> None:
    assert told in compile_with(tmp_path, **parts)


@pytest.mark.parametrize(
    ("kept", "line", "told"),
    [
        ("zeros(1, 4)", "self.kept = torch.cat([self.kept, x.detach()[:1]])  # !",
         "buffer 'kept' becomes float32 [2, 4] in the model's own forward at HERE, and was float32 "
         "[1, 4]"),
        ("zeros(1, 4)", "self.kept = x.detach()  # !", "becomes float32 [batch, 4] in"),
        ("zeros(4)", "self.kept = x.detach().mean(0).double()  # !", "becomes float64 [4]"),
        ("zeros(4)", "del self.kept", "the model deletes buffer 'kept' while it runs"),
        ("zeros(4)", "self.register_buffer('late', x.detach().mean(0))", "makes buffer 'late'"),
        ("zeros(4).bool()", "self.kept = x.detach().mean(0) > 0", "of dtype torch.bool changes"),
        ("zeros(4).double()", "pass", "buffer 'kept' has dtype torch.float64"),
    ],
)  # fmt: skip
def test_buffers(kept: str, line: str, told: str, tmp_path: Path) -> None:
    init = f"self.register_buffer('kept', torch.{kept})"
    assert told in compile_with(tmp_path, init=init, body=line)


@pytest.mark.parametrize(
    ("init", "told"),
    [
        ("self.p = nn.Parameter(torch.arange(3), False)",
         "'p' has dtype torch.int64; parameters must be float32: keep whole numbers with "
         "register_buffer"),
        ("self.p = nn.Parameter(torch.ones(3).cfloat())", "two float32 parameters, the real"),
        ("self.p = nn.Parameter(torch.ones(3).half())", "convert the model with .float()"),
        ("self.p = nn.Parameter(torch.ones(3).double())", "convert the model with .float()"),
        ("self.p = nn.LazyLinear(4)", "'p.weight' is lazy and has no shape yet: run the model"),
        ("self.head.weight.register_hook(lambda g: 2 * g)",
         "parameter 'head.weight' has a hook, which is code that no plan carries"),
        ("self.to('meta')", "parameter 'body.weight' is on the meta device and has no values"),
    ],
)  # fmt: skip
def test_parameters(init: str, told: str, tmp_path: Path) -> None:
    assert told in compile_with(tmp_path, init=init)


class Cubed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.tanh() ** 3


def test_an_operator_of_the_backward_pass_names_the_line_of_the_forward() -> None:
    model = nn.Sequential(nn.Linear(4, 4), Cubed())
    line = Cubed.forward.__code__.co_firstlineno + 1

    def step(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        weight = tensors["weight"].detach().requires_grad_()
        value = functional_call(model, {"0.weight": weight}, (tensors["x"],))
        return {"gradient": torch.autograd.grad(value.sum(), weight)[0]}

    examples = {"weight": torch.zeros(4, 4), "x": torch.zeros(3, 4)}
    graph = trace_step(step, examples, ["x"], model).module.graph
    (node,) = graph.find_nodes(op="call_function", target=torch.ops.aten.tanh_backward.default)
    assert place(node) == f"in the gradient of module '1' at {__file__}:{line}"


def test_scripts_are_refused(tmp_path: Path) -> None:
    init = "self.script = torch.jit.trace(nn.Linear(4, 4), torch.zeros(1, 4))"
    with pytest.warns(DeprecationWarning):
        message = compile_with(tmp_path, init=init)
    assert "module 'script' is a torch.jit script" in message


def test_rerun_parts_are_refused(tmp_path: Path) -> None:
    init = "from torch.utils.checkpoint import checkpoint\nself.again = checkpoint"
    body = "x = self.again(self.body, x, use_reentrant=False)"
    assert "without torch.utils.checkpoint" in compile_with(tmp_path, init=init, body=body)


OWN_GRADIENT = """
class Own(torch.autograd.Function):
    @staticmethod
    def forward(context, x):
        context.save_for_backward(x)
        return {forward}

    @staticmethod
    def backward(context, gradient):
        (x,) = context.saved_tensors
        return {backward}

self.own = Own.apply
"""


def test_a_gradient_that_differs_from_the_functions_is_refused(tmp_path: Path) -> None:
    """Devices differentiate the forward pass, so a function's own backward is not theirs."""
    init = OWN_GRADIENT.format(forward="x.round()", backward="gradient")
    message = compile_with(tmp_path, init=init, body="x = self.own(x)")
    assert "torch.autograd.Function 'Own' has a backward of its own" in message
    assert "x + (f(x) - x).detach()" in message


def test_a_gradient_that_is_the_functions_compiles(tmp_path: Path) -> None:
    init = OWN_GRADIENT.format(forward="x * x", backward="2 * x * gradient")
    write(tmp_path, init=init, body="x = self.own(x)")
    compile_job(tmp_path / "job.toml")
