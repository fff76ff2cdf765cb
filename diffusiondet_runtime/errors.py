"""The one kind of error that this package raises for what a user can mend."""


class ExportError(RuntimeError):
    """An exported folder, a picture or a setting that cannot be used: one line that says which and why."""


def first_line(error: BaseException) -> str:
    """What an engine or decoder says, without the many lines that may follow."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
