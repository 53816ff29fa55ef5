"""`docs/methods.md`, generated: what every method is, what it reads, where its numbers are from.

    python -m kdbench.catalogue > docs/methods.md

All of it stands in `conf/method` (head comments, and a source beside every value), in the classes'
docstrings, and, for the cost, in the record of one benchmark run.
"""

from kdbench.assembly.method_pages import catalogue

if __name__ == "__main__":
    print(catalogue(), end="")
