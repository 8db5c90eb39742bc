"""Why a pickle is not read."""


class PickleError(ValueError):
    """It is damaged, or holds what no checkpoint or list of arrays is made of."""


class UnknownNames(ValueError):
    """It wants more than data; `names` says what."""

    def __init__(self, names: set[str]) -> None:
        super().__init__(', '.join(sorted(names)))
        self.names = names
