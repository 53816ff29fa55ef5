"""NormKD, normalised logits (2023, arXiv 2308.00520)."""

from torch import Tensor

from kdbench.errors import ConfigError
from kdbench.methods.base import Method, Wrapper
from kdbench.types import Batch, Output

LEAST = 1e-12  # of a variance: logits without any are left as they are instead of 0 / 0


def deviation(logits: Tensor) -> Tensor:
    """std_k z of each sample, unbiased (K - 1); [B, K] -> [B, 1]."""
    return logits.var(dim=1, keepdim=True).clamp(min=LEAST).sqrt()


class NormKD(Wrapper):
    """The inner recipe at a temperature of its own for each sample and network: T std_k(z).

    Its terms get the teacher's deviation squared as weight, so that over KD it is T_t^2
    KL(softmax(z^t / T_t) || softmax(z^s / T_s)) with T_t = T std(z^t) and T_s = T std(z^s). As a
    softmax ignores the mean, that is logit standardisation with samples weighted by the variance
    of the teacher's logits. The label term sees raw logits.

    Departures: where all logits of a sample are equal the released code divides by 0; here their
    deviation is 1e-6. Inner recipes that read features, want views or couple the batch are refused.
    """

    def __init__(self, inner: Method) -> None:
        super().__init__(inner)
        if inner.taps or inner.views > 1 or inner.num_teachers != 1:
            raise ConfigError(
                "method.inner must read the logits of one teacher on one view: choose kd or dkd"
            )

    def normalised(self, output: Output) -> Output:
        """A network's output with logits of unit deviation."""
        return output._replace(logits=output.logits / deviation(output.logits))

    def forward(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> dict[str, Tensor]:
        """The inner recipe's terms, each [B].

        Raises:
            ConfigError: a term has no samples to weigh.
        """
        (teacher,) = teachers
        weights = deviation(teacher.logits).square().squeeze(1)
        terms = self.inner(batch, self.normalised(student), (self.normalised(teacher),))
        for name, term in terms.items():
            if term.ndim == 0:
                raise ConfigError(f"method.inner: term '{name}' couples the batch: choose another")
            terms[name] = weights * term
        return terms | {"ce": self.label_term(batch, student)}

    def observe(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> dict[str, Tensor]:
        """Return the inner recipe's, on logits of unit deviation."""
        normalised = tuple(self.normalised(teacher) for teacher in teachers)
        return self.inner.observe(batch, self.normalised(student), normalised)
