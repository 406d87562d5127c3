"""The optimizers that a trial may choose. A new one is an entry in `OPTIMIZERS`."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Annotated, TypeAlias

from learning.choices import Choice
from learning.lazy_torch import optim

if TYPE_CHECKING:
    from torch.nn import Parameter
    from torch.optim import Optimizer

OptimizerFactory: TypeAlias = "Callable[[Iterable[Parameter], float], Optimizer]"
"""Makes an optimizer for these parameters, with this learning rate."""


def torch_optimizer(name: str, **options: float) -> OptimizerFactory:
    """The optimizer of this name in `torch.optim`, with these options."""

    def make(parameters: "Iterable[Parameter]", learning_rate: float) -> "Optimizer":
        optimizer: Optimizer = getattr(optim(), name)(parameters, lr=learning_rate, **options)
        return optimizer

    return make


OPTIMIZERS: dict[str, OptimizerFactory] = {
    # Keras's RMSprop averages with 0.9 where PyTorch's default is 0.99; the lecture uses Keras's.
    "rmsprop": torch_optimizer("RMSprop", alpha=0.9, eps=1e-7),
    "adam": torch_optimizer("Adam"),
    "adamw": torch_optimizer("AdamW"),
    "sgd": torch_optimizer("SGD", momentum=0.9),
}

OptimizerName = Annotated[str, Choice(OPTIMIZERS)]
