"""Laocoon finds, proves and removes backdoors (Trojans) in neural networks."""

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    # The names of the three-line recipes, resolved lazily so that `import laocoon` stays instant
    # and so that no floor is imported from below.
    if name == "load_model":
        from laocoon.files.open import load_model

        return load_model
    if name == "load_data":
        from laocoon.files.samples import load_data

        return load_data
    if name == "scan":
        from laocoon.verdict.scan import scan

        return scan
    if name == "repair":
        from laocoon.verdict.repair import repair

        return repair
    raise AttributeError(f"module 'laocoon' has no attribute {name!r}")
