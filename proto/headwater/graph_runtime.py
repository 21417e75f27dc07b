"""One graph of a plan, ready to run in onnxruntime: checked first, silent, with capped threads."""

import re
from collections.abc import Mapping, Sequence

import numpy as np
import onnxruntime

from headwater.batch import Array
from headwater.errors import PlanError
from headwater.plan import Plan
from headwater.plan_checks import check_graph

_FATAL_ONLY = 4
_NO_MEMORY = ("Failed to allocate memory", "bad allocation", "bad_alloc")


class GraphRuntime:
    """A session over one member of a plan. Instances may run on several threads at once.

    Raises:
        PlanError: the graph does not pass the checks, or onnxruntime cannot load it.
    """

    def __init__(self, plan: Plan, member: str, *, threads: int) -> None:
        self.member = member
        data = plan.read(member)
        check_graph(data, member)
        ports = plan.manifest.graphs.get(member)
        if ports is None:
            raise PlanError(
                f"the manifest does not describe graph {member}: the plan is damaged; compile it "
                "again"
            )
        self.inputs, self.outputs = ports.inputs, ports.outputs
        self._session = open_session(data, member, threads=threads)
        self._check_ports()

    def run(self, values: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name; values that the graph does not take are ignored.

        Raises:
            PlanError: an input is missing, or the graph fails while it runs.
        """
        missing = [name for name in self.inputs if name not in values]
        if missing:
            raise PlanError(f"graph {self.member} lacks the input {missing[0]!r}")
        feeds = {name: np.asarray(values[name], order="C") for name in self.inputs}
        return dict(
            zip(
                self.outputs,
                run_session(self._session, self.outputs, feeds, self.member),
                strict=True,
            )
        )

    def _check_ports(self) -> None:
        found = (
            {port.name for port in self._session.get_inputs()},
            {port.name for port in self._session.get_outputs()},
        )
        if found != (set(self.inputs), set(self.outputs)):
            raise PlanError(
                f"graph {self.member} has other inputs or outputs than the manifest says: the plan "
                "is damaged; compile it again"
            )


def open_session(data: bytes, member: str, *, threads: int) -> onnxruntime.InferenceSession:
    """An onnxruntime session on the CPU that prints nothing and uses at most `threads` threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL_ONLY
    # a pattern places all tensors of a batch size in one block of its own, with gaps: without it a
    # step takes as long, and the peak is 15 to 40 percent lower
    options.enable_mem_pattern = False
    # idle threads that spin would take the processor from whatever else the device does
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # left to itself it also takes its own format, which `check_graph` does not see into
    options.add_session_config_entry("session.load_model_format", "ONNX")
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise PlanError(
            f"onnxruntime {onnxruntime.__version__} cannot load graph {member}: {_reason(error)}"
        ) from error


def run_session(
    session: onnxruntime.InferenceSession,
    outputs: Sequence[str],
    feeds: Mapping[str, Array],
    member: str,
) -> list[Array]:
    """Run a session, with failures in our words."""
    options = onnxruntime.RunOptions()
    options.log_severity_level = _FATAL_ONLY
    try:
        results: list[Array] = session.run(list(outputs), dict(feeds), options)
    except Exception as error:
        if isinstance(error, MemoryError) or any(words in str(error) for words in _NO_MEMORY):
            raise PlanError(
                f"graph {member} asks for more memory than this device gives: {_reason(error)}; "
                "use a smaller batch or a larger device"
            ) from error
        raise PlanError(f"graph {member} failed in onnxruntime: {_reason(error)}") from error
    return results


def _reason(error: Exception) -> str:
    """onnxruntime's message without the source places of its own build."""
    text = re.sub(r"/\S+?:\d+ ", "", str(error)).strip().split("\n")[0]
    return f"{type(error).__name__}: {text[:300]}"
