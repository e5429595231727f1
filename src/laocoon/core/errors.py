"""The error tree. Every error names the thing, the value and the remedy, and is shown as one line."""


class LaocoonError(Exception):
    """Something the user can act on: `thing` is wrong because of `value`; `remedy` says what to do."""

    def __init__(self, problem: str, remedy: str = "") -> None:
        self.problem = problem
        self.remedy = remedy
        super().__init__(f"{problem} {remedy}".strip())


class InputError(LaocoonError):
    """A path, option or value that cannot be used (exit 2)."""


class BrokenFile(InputError):
    """A file that is truncated, malformed, oversized or not what it claims to be (exit 2)."""


class UnsafeFile(LaocoonError):
    """A file that would run code or write outside its folder if it were loaded (exit 1: a finding).

    `rule` is a stable identifier; `details` lists the opcodes, paths or layers that make it dangerous.
    """

    def __init__(
        self, problem: str, remedy: str = "", *, rule: str = "unsafe-file", details: tuple[str, ...] = ()
    ) -> None:
        super().__init__(problem, remedy)
        self.rule = rule
        self.details = details


class MissingExtra(LaocoonError):
    """An optional dependency is not installed; the remedy is the install command (exit 2)."""


class NotApplicable(LaocoonError):
    """A method's need is not met by this case: it is skipped with this reason, never counted as evidence."""


class BudgetSpent(LaocoonError):
    """The pass or time budget ended; what was found so far is kept, the method counts as incomplete."""
