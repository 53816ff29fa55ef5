"""From a checked node to the object that it describes; the only place that instantiates."""

from collections.abc import Mapping
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from kdbench.errors import ConfigError, KdbenchError
from kdbench.records.identity import without_names
from kdbench.schema.check import check_targets


def make(node: Mapping[str, Any], **given: Any) -> Any:
    """Build what a checked node describes.

    Raises:
        KdbenchError: the constructor's own complaint, freed of Hydra's wrapping.
        ConfigError: the node would have code called that is not of this package, or its settings
            make the constructor fail in another way.
    """
    check_targets(str(node.get("name", "node")), node)
    try:
        return instantiate(without_names(node), _convert_="all", **given)
    except InstantiationException as error:
        first: BaseException = error
        while first.__cause__ is not None and not isinstance(first, KdbenchError):
            first = first.__cause__
        if isinstance(first, KdbenchError):
            raise first from None
        said = " ".join(f"{type(first).__name__} {first}".split())
        raise ConfigError(
            f"{node['_target_']} cannot be built with these settings: {said}"
        ) from error
