"""From a case's parameters and inputs to our losses, by the references' method names."""

from support.adapters import (
    entropy,
    feature,
    logit,
    recent_feature,
    recent_logit,
    relation,
)

LOSSES = {
    **logit.LOSSES,
    **entropy.LOSSES,
    **feature.LOSSES,
    **relation.LOSSES,
    **recent_logit.LOSSES,
    **recent_feature.LOSSES,
}

# Where a released code adds a guard such as 1e-10 inside a logarithm, ours has none: the relative
# difference that the guard makes, by method.
GUARDED = {**entropy.GUARDED, **relation.GUARDED}
