"""Where measurements are written down: `RESULTS.md`, each table between markers of its own."""
import pathlib

PATH = pathlib.Path(__file__).resolve().parent / "RESULTS.md"


def write(name, text):
    """Puts a text between the markers of this name."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    results = PATH.read_text()
    before, after = results.index(begin) + len(begin), results.index(end)
    PATH.write_text(f"{results[:before]}\n\n{text}\n\n{results[after:]}")
