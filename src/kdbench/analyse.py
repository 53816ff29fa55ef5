"""What finished runs have learned: numbers, figures and a page; prints the files.

python -m kdbench.analyse runs=[RUN,...] what=[correlation,entropy] out=DIR
"""

from kdbench.config import hydra_cli
from kdbench.config.run_config import check_analyse
from kdbench.records.settings import AnalyseSettings
from kdbench.system.escapes import for_terminal


def run(config: AnalyseSettings) -> None:
    """Analyse; torch is imported here, once the command has been understood: it takes seconds."""
    from kdbench.analysis.study import analyse

    def report(line: str) -> None:
        print(for_terminal(line))

    for path in analyse(config, report):
        report(str(path))


def main() -> None:
    """`kdbench-analyse`."""
    hydra_cli.run("analyse", check_analyse, run)


if __name__ == "__main__":
    main()
