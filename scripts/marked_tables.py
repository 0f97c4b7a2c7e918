"""Tables in Markdown pages that are made from records: what stands between `<!-- table:NAME -->` and `<!-- end -->`."""

import re
from collections.abc import Callable, Sequence

MARKED = re.compile(r"(<!-- table:(\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(page: str, make: Callable[[str], str]) -> str:
    """Return a page with its tables made anew, each by its name."""
    return MARKED.sub(lambda match: f"{match[1]}\n{make(match[2])}\n\n{match[3]}", page)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table."""
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])
