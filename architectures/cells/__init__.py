"""Recurrent layers: from a sequence to the state after each of its steps, in one direction. One file a family of cells.

`layer` has what all layers have in common, `loops` what their loops over the steps have in common, `stack` puts layers
on top of each other.

What the inputs of all steps add to the gates is one matrix product, in a GRU two: one for its gates, one for its
candidate. What has to be done step by step is in one `autograd.Function` a cell: `forward` computes the cell's
equations, `backward` their derivatives, each in a plain loop that works in place where it can. The products that give
the derivatives with respect to the weights are, again, over all steps at once. Where PyTorch has a fused kernel that
computes the same faster, the layer calls that: `LSTM` always, `GRU` and `Elman` on a GPU.

Measured by `python -m benchmarks cells`, forward and backward, 120 steps, 14 inputs, one CPU thread: a loop over
modules, with two `nn.Linear` a gate, takes 3.6 to 5.7 times as long as the loops here in batches of 8 with 16 units,
3.2 (`Jordan`) to 4.8 times in batches of 32 with 32 units, and 2.3 to 2.8 times in batches of 128: the larger the
products, the larger their share of the time in both. In the last case `Elman` takes 1 / 2.2 of the time of
`torch.nn.RNN`, `GRU` and `GRUResetBefore` take 1 / 1.7 of that of `torch.nn.GRU`; the loop of an LSTM takes twice the
time of `torch.nn.LSTM`, and is there for what that cannot do.

Measured by `python -m benchmarks gpu` on an H100: the loops here, replayed from CUDA graphs (see
`architectures.graphs`), take 2 ms (`Jordan`) to 7 ms (`PeepholeLSTM`). They take 15 to 49 ms as plain loops, and a loop
over modules takes 19 to 29 times as long as the graphs. PyTorch's kernels take 1 ms.

In docstrings and comments, k is the state h_{t-1} as the recurrent products see it: times the mask of recurrent
dropout, if there is one. A name that begins with d is the derivative of the loss with respect to what follows the d.
S counts the states before, between and after the T steps: S = T + 1.
"""
