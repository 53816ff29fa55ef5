"""What of a configuration Hydra itself would call, and what it may name there."""

from collections.abc import Iterator, Mapping

from kdbench.errors import ConfigError
from kdbench.schema.secrets import refuse_secrets

CALLED = ("launcher", "sweeper", "job_logging", "hydra_logging")  # nodes below hydra
PLUGINS = ("hydra_plugins.", "hydra._internal.core_plugins.")  # where Hydra looks for them
LOGGING = {
    *("logging.StreamHandler", "logging.FileHandler", "logging.NullHandler", "logging.Formatter"),
    *("logging.handlers.RotatingFileHandler", "logging.handlers.TimedRotatingFileHandler"),
}
STREAMS = ("ext://sys.stdout", "ext://sys.stderr")


def check_called(nodes: Mapping[str, object], callbacks: bool, env_set: bool) -> None:
    """Refuse what Hydra would call, but plugins and Python's own ways to log.

    Args:
        nodes: those of `CALLED` as plain containers.
        callbacks: whether hydra.callbacks holds any.
        env_set: whether hydra.job.env_set does.

    Raises:
        ConfigError: names the key.
    """
    for name, node in nodes.items():
        if not isinstance(node, dict):
            raise ConfigError(f"hydra.{name} must be a mapping, not {node!r}")
    if callbacks:
        raise ConfigError("hydra.callbacks is not allowed: a command runs no callbacks")
    if env_set:  # git, which is asked for the commit, runs what a variable names
        raise ConfigError("hydra.job.env_set is not allowed: set variables where you type")
    refuse_secrets({"hydra": nodes})
    for path, value in _leaves("hydra", nodes):
        key, text = path.rpartition(".")[2], str(value)
        plugin = path in ("hydra.launcher._target_", "hydra.sweeper._target_")
        if (
            (key == "_target_" and not (plugin and text.startswith(PLUGINS)))
            or key == "()"
            or (key == "class" and text not in LOGGING)
            or (text.startswith("ext://") and text not in STREAMS)
        ):
            raise ConfigError(f"{path}={text} is not allowed: Hydra would call it")


def _leaves(path: str, node: object) -> Iterator[tuple[str, object]]:
    """The single values of a node, each with its dotted path."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _leaves(f"{path}.{key}", value)
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from _leaves(f"{path}.{i}", value)
    else:
        yield path, node
