"""`docs/methods.md`, generated: every method, the features it reads and the sources of its numbers.

    python -m kdbench.catalogue > docs/methods.md

The page is made from `conf/method` (head comments, and a source beside every value), from the
classes' docstrings and, for the cost, from the record of one benchmark run.
"""

from kdbench.assembly.method_pages import catalogue

if __name__ == "__main__":
    print(catalogue(), end="")
