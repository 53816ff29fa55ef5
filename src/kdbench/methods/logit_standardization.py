"""Logit standardization (Sun et al., CVPR 2024, arXiv 2403.01427)."""

from torch import Tensor

from kdbench.errors import ConfigError
from kdbench.methods.base import Method, Terms, Wrapper, check_positive
from kdbench.types import Batch, Output


def standardise(logits: Tensor, eps: float) -> Tensor:
    """(z - mean_k z) / (std_k z + eps) of each sample, with the unbiased std (K - 1).

    Shapes: logits [B, K] or [V, B, K] -> the same.
    """
    centred = logits - logits.mean(dim=-1, keepdim=True)
    return centred / (logits.std(dim=-1, keepdim=True) + eps)


class LogitStandardization(Wrapper):
    """The inner recipe on z-scored logits of student and teachers; its label term sees raw ones.

    The inner temperature applies to logits of unit variance, so published settings are T = 2 and
    a weight of 9 over KD (0.1 CE + 9 T^2 KL, the released configuration): raw logits of
    resnet32x4 have a standard deviation near 3, and 9 restores the strength that 0.9 has on them.
    Shift and scale of the student's logits are free: no distillation term depends on them.

    The terms of the inner recipe named in `raw_terms` keep raw logits too. The released MLKD
    standardises its instance terms only, not the two correlation terms.

    Departures: eps is added to the std everywhere; the released code for CTKD leaves it out.
    Inner recipes that read features are refused: there is nothing to standardise in them.
    """

    def __init__(
        self, inner: Method, eps: float = 1e-7, raw_terms: list[str] | None = None
    ) -> None:
        super().__init__(inner)
        check_positive(eps=eps)
        if inner.taps:
            taps = ", ".join(inner.taps)
            raise ConfigError(f"method.inner reads features ({taps}): only logits are standardised")
        self.eps = eps
        self.raw_terms = tuple(raw_terms or ())

    def standardised(self, output: Output) -> Output:
        """A network's output with z-scored logits."""
        return output._replace(logits=standardise(output.logits, self.eps))

    def forward(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> dict[str, Tensor]:
        """The inner recipe's terms."""
        z_teachers = tuple(self.standardised(teacher) for teacher in teachers)
        terms = self.inner(batch, self.standardised(student), z_teachers)
        return self._raw(terms, batch, student, teachers)

    def _raw(
        self,
        terms: dict[str, Tensor],
        batch: Batch,
        student: Output,
        teachers: tuple[Output, ...],
    ) -> dict[str, Tensor]:
        """The terms, those on raw logits in place of those on z-scored ones."""
        if "ce" in terms:
            terms["ce"] = self.label_term(batch, student)
        if not self.raw_terms:
            return terms
        raw = self.inner(batch, student, teachers)
        unknown = [name for name in self.raw_terms if name not in raw]
        if unknown:
            raise ConfigError(f"method.raw_terms: the inner method has no term '{unknown[0]}'")
        return terms | {name: raw[name] for name in self.raw_terms}

    def observe(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> dict[str, Tensor]:
        """Return the inner recipe's, on z-scored logits."""
        z_teachers = tuple(self.standardised(teacher) for teacher in teachers)
        return self.inner.observe(batch, self.standardised(student), z_teachers)

    def terms_and_curves(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> tuple[Terms, Terms]:
        """Return `forward` and `observe` from one call of the inner recipe on z-scored logits."""
        z_teachers = tuple(self.standardised(teacher) for teacher in teachers)
        terms, seen = self.inner.terms_and_curves(batch, self.standardised(student), z_teachers)
        return self._raw(terms, batch, student, teachers), seen
