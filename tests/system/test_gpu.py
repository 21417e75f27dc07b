"""A job whose clients train on a GPU, over real processes."""

import pytest
import torch

from tests.system.fleet import Fleet

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="this machine has no CUDA GPU"
)


def test_clients_on_a_gpu_train_beside_one_without_torch(fleet: Fleet) -> None:
    on_gpu = ("--trainer", "torch", "--device", "cuda")
    fleet.client("plain", *on_gpu)
    fleet.client("lower", *on_gpu, "--precision", "bfloat16")
    fleet.client("fused", *on_gpu, "--compile")
    fleet.client("edge")
    job = fleet.submit(count=4, cohort=4, quorum=4)
    rounds = fleet.finish(job)
    assert [one.accepted for one in rounds] == [4] * 4
    assert rounds[-1].metrics_coordinator["accuracy"] >= 0.8
