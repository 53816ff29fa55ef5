# kdbench with the versions that its numbers were made with; docs/clusters.md says how to run it.
FROM python:3.11-slim-bookworm

RUN useradd --create-home kdbench && mkdir /work && chown kdbench /work
COPY pyproject.toml constraints.txt README.md LICENSE /kdbench/
COPY src /kdbench/src
COPY conf /kdbench/conf
COPY experiments /kdbench/experiments
RUN pip install --no-cache-dir --constraint /kdbench/constraints.txt "/kdbench[slurm,ray,hf]"

USER kdbench
WORKDIR /work
# Bare, it runs the quickstart: a teacher, nine students and their table, on bundled digits.
CMD ["bash", "-ec", "kdbench-train method=ce student=resnet20 runs_dir=runs/quickstart; kdbench-train +experiments=quickstart; kdbench-table runs/quickstart"]
