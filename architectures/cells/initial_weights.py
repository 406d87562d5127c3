"""The initial weights of Keras, for networks that are compared with its results."""

from torch import nn

from architectures.cells.layer import RecurrentLayer
from architectures.cells.lstm import LSTM, PeepholeLSTM


def use_keras_weights(network: nn.Module) -> None:
    """Give the recurrent and the dense layers of a network the initial weights that Keras gives its own layers.

    The weights of the inputs are uniform as in Glorot and Bengio 2010; those of the state are orthogonal, all gates as
    one matrix (Saxe et al. 2014); biases are 0, but 1 for the forget gate of an LSTM (Jozefowicz et al. 2015).
    """
    for layer in network.modules():
        own = dict(layer.named_parameters()) if isinstance(layer, RecurrentLayer | nn.Linear) else {}
        for name, weight in own.items():
            last = name.rpartition(".")[2]
            if last in ("U", "weight_hh_l0"):
                nn.init.orthogonal_(weight)
            elif last in ("W", "V", "weight_ih_l0", "weight"):
                nn.init.xavier_uniform_(weight)
            else:
                nn.init.zeros_(weight)
            if last in ("b", "bias_ih_l0") and isinstance(layer, LSTM | PeepholeLSTM):
                nn.init.ones_(weight[layer.units : 2 * layer.units])
