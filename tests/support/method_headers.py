"""The first lines of methods' files."""

import re


def check_header(text: str) -> None:
    title, kind, *rest = text.splitlines()
    assert re.fullmatch(r"# [^:]+: .+\.", title), f"not '# <Title>: <authors, venue>.': {title}"
    assert re.fullmatch(f"# kind: ({KINDS}); status: ({STATUS})", kind), (
        f"not kind and status: {kind}"
    )
    assert re.match(r"# \S", rest[0]), "the third line says the expected score and its protocol"


KINDS = "label|logit|feature|relation|contrastive|multi-teacher|self|wrapper|trainer"
STATUS = "as published|as released code|reconstructed"
