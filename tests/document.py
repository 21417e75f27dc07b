"""Generated parts of a document: each between a line that names its maker and an end mark."""

END = "<!-- end -->"


def replaced(text: str, begin: str, table: str) -> str:
    """The text with `table` between the line `begin` and the end mark that follows it.

    Raises:
        ValueError: the document lacks one of the marks.
    """
    before, found, rest = text.partition(begin)
    _, ended, after = rest.partition(END)
    if not found or not ended:
        raise ValueError(f"the document lacks the line {begin!r}, or {END!r} after it")
    return f"{before}{begin}\n\n{table}\n{END}{after}"
