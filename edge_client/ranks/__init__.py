"""Several processes that make one client: they share each batch, and one of them talks.

torchrun or mpirun starts the ranks on the devices of one machine. Rank 0 is the client: it attends
the coordinator, holds the state directory and reads the data. For every step it sends the other
ranks their slices of the batch, all compute their gradients, one all-reduce adds them, and each
rank takes the same step of the optimizer. The other ranks need no data, no state directory and no
coordinator.
"""
