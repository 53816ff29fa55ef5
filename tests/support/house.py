"""The plan of the house: which wing may import which, and its picture in docs/architecture.md.

python tests/support/house.py > docs/images/house.svg
"""

import ast
from html import escape
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "src" / "kdbench"
# What all share, in order; then the wings, from the ground up. Each imports those before it.
WORDS = ["__version__", "errors", "types", "seeds", "losses"]
WINGS = [
    "schema",
    "parallel",
    "system",
    "networks",
    "data",
    "methods",
    "records",
    "config",
    "assembly",
    "distillation",
    "ledger",
    "teachers",
    "tracking",
    "tasks",
    "training",
    "sweeps",
    "analysis",
    "exporting",
    "submissions",
]
# The one place of each outside library.
DOORS = {
    "hydra": {"config.hydra_cli", "config.composing", "config.command_line"},
    "omegaconf": {"config.hydra_cli", "config.composing"},
    "triton": {"networks.triton_convolution"},
    "wandb": {"tracking.wandb_mirror"},
    "wandb_workspaces": {"tracking.workspace"},
    "rich": {"system.console"},
    "timm": {"networks", "training", "exporting.keys", "data.augmentation.timm_randaugment"},
    "sklearn": {"data", "analysis.embedding"},
    "torchvision": {"data", "networks", "tasks.detection", "analysis.robustness", "exporting.keys"},
    "pycocotools": {"tasks.detection"},
    "safetensors": {"records", "exporting"},
    "onnxruntime": {"exporting.graphs"},
    "huggingface_hub": {"exporting.card"},
    "PIL": {"data", "analysis.robustness"},
    "nvidia": {"data"},
    "pyarrow": {"data"},
    "submitit": {"sweeps.slurm"},
    "ray": {"sweeps.ray"},
    "scipy": {"ledger.significance", "analysis", "data"},
    "matplotlib": {
        "ledger.svg",
        "ledger.charts",
        "ledger.row_charts",
        "analysis.drawings",
        "analysis.result",
    },
    "yaml": {"sweep_yaml", "tracking.wandb_sweep", "config.conf_nodes"},
}
FILES = sorted(PACKAGE.rglob("*.py"))


def dotted(path: Path) -> str:
    """A module's name inside the package, as `training.cohort`."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def storey(name: str) -> int:
    """How high a module stands: words, wings, and over all of them the entries."""
    order = [*WORDS, *WINGS]
    top = name.partition(".")[0]
    return order.index(top) if top in order else len(order)


def imports(path: Path) -> set[str]:
    """Dotted names of the modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found |= {_module(node.module, alias.name) for alias in node.names}
    return found


def _module(package: str, name: str) -> str:
    """The module that `from package import name` reads."""
    top, *rest = package.split(".")
    inside = PACKAGE.joinpath(*rest, name)
    is_module = inside.is_dir() or inside.with_suffix(".py").is_file() or not rest
    return f"{package}.{name}" if top == "kdbench" and is_module else package


def sentence(wing: str) -> str:
    """What a wing's `__init__` says."""
    said = ast.get_docstring(ast.parse((PACKAGE / wing / "__init__.py").read_text()))
    assert said is not None
    return said


def floor_of(name: str) -> str:
    """A module's row in the picture: its wing, "words" or "entries"."""
    top = name.partition(".")[0]
    return top if top in WINGS else "words" if top in WORDS else "entries"


def uses() -> dict[tuple[str, str], int]:
    """How many imports lead from one row of the picture to another."""
    found: dict[tuple[str, str], int] = {}
    for path in FILES:
        for name in imports(path):
            if name.startswith("kdbench."):
                pair = floor_of(dotted(path)), floor_of(name.removeprefix("kdbench."))
                found[pair] = found.get(pair, 0) + 1
    return found


def picture() -> str:
    """The rows of the house from the roof down, and a dot wherever one uses a lower one."""
    rows = ["entries", *reversed(WINGS), "words"]
    says = {wing: sentence(wing) for wing in WINGS}
    says["entries"] = "Commands: each parses its arguments and calls."
    says["words"] = "Errors, the tuples that pass between wings, seeds and shared losses."
    counts = {row: sum(floor_of(dotted(path)) == row for path in FILES) for row in rows}
    counts["words"] = len(WORDS) - 1  # without the version
    counts["entries"] -= 1  # without the package's own __init__
    line, left, cell = 24, 640, 24
    width, height = left + cell * len(rows) + 16, 88 + line * len(rows)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}"'
        ' font-family="sans-serif" font-size="13">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    for number, row in enumerate(rows):
        x, y = left + cell * (number + 0.5), 84 + line * number
        parts.append(
            f'<text transform="translate({x + 4},72) rotate(-60)" fill="#334155">{row}</text>'
        )
        if number % 2 == 0:
            parts.append(
                f'<rect x="8" y="{y}" width="{width - 16}" height="{line}" fill="#f1f5f9"/>'
            )
        parts.append(
            f'<text x="16" y="{y + 17}" font-weight="bold" fill="#0f172a">{row}</text>'
            f'<text x="96" y="{y + 17}" fill="#334155">{escape(says[row])}</text>'
            f'<text x="{left - 12}" y="{y + 17}" text-anchor="end" fill="#64748b">'
            f"{counts[row]}</text>"
        )
    for (user, used), count in sorted(uses().items()):
        if user != used:
            x = left + cell * (rows.index(used) + 0.5)
            y = 84 + line * (rows.index(user) + 0.5)
            parts.append(
                f'<circle cx="{x}" cy="{y}" r="{min(9, 2 + count**0.5):.1f}" fill="#0369a1">'
                f"<title>{user} imports {used}: {count}</title></circle>"
            )
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    print(picture(), end="")
