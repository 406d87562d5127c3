"""Kernels for recurrent layers on a CPU: all steps of a tile of windows in one compiled loop (Numba).

`blocks` has the products and activations, `pointwise` the equations of the cells, `time_loop` the loop around them, and
`layer_loop` makes a PyTorch function of it. The loops in `architectures.cells` are the reference, and what an
accelerator, double precision and very narrow or wide layers use.
"""
