"""Whether a value of a config is a number; Python counts True and False as integers."""


def is_number(value: object) -> bool:
    """Whether it is an integer or a float; infinities and NaN are."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_integer(value: object) -> bool:
    """Whether it is an integer."""
    return isinstance(value, int) and not isinstance(value, bool)
