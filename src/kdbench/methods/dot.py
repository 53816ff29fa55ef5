"""Distillation-oriented trainer (Zhao et al., ICCV 2023)."""

from torch import Tensor

from kdbench.errors import ConfigError
from kdbench.methods.base import Method, Terms, Wrapper
from kdbench.types import Batch, Output, Stream


class DOT(Wrapper):
    """The inner recipe's terms, trained with one momentum buffer for labels and one for teachers.

    The label loss has momentum m - momentum_gap, the distillation loss m + momentum_gap; the rule
    and its equations are in `kdbench.distillation.streams`. The step differentiates twice.

    Departures: none known; the released code matches parameters to gradients by a linear search,
    ours by position.
    """

    def __init__(self, inner: Method, momentum_gap: float = 0.075) -> None:
        super().__init__(inner)
        if not 0 < momentum_gap < 1:
            raise ConfigError(f"method.momentum_gap must be between 0 and 1, not {momentum_gap}")
        self.streams = (
            Stream("label", ("ce",), -momentum_gap),
            Stream("distillation", (), momentum_gap),
        )

    def forward(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> dict[str, Tensor]:
        """The inner recipe's terms."""
        return self.inner(batch, student, teachers)

    def terms_and_curves(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> tuple[Terms, Terms]:
        """Return the inner recipe's."""
        return self.inner.terms_and_curves(batch, student, teachers)
