"""One data-parallel step of torch DistributedDataParallel over gloo: one rank of it.

Arguments: rank, ranks, store file, weights file, data file, learning rate, output file. Rank 0
writes the parameters after the step.
"""

import sys

import numpy as np
import torch
import torch.distributed as distributed
from safetensors.torch import load_file, save_file
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from edge_client.program import end_process
from tests.zoo import ZOO


def main() -> None:
    rank, ranks = int(sys.argv[1]), int(sys.argv[2])
    store, weights, data, rate, output = sys.argv[3:]
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=ranks
    )
    model = ZOO["smooth"].build()
    model.load_state_dict(load_file(weights))
    parallel = DistributedDataParallel(model.train())
    optimizer = torch.optim.SGD(parallel.parameters(), lr=float(rate))
    arrays = np.load(data)
    loss = functional.cross_entropy(parallel(torch.tensor(arrays["x"])), torch.tensor(arrays["y"]))
    loss.backward()
    optimizer.step()
    if rank == 0:
        save_file({name: value.detach() for name, value in model.state_dict().items()}, output)
    distributed.destroy_process_group()


main()
end_process(0)  # as a client of several ranks ends: gloo's threads may abort an orderly exit
