"""What the template uses and ministack lacks, one module per AWS service. Importing a module puts it in place."""

import functools


def replaces(module, name):
    """Put the decorated function in the place of a private one of ministack's, which is its first argument.

    If another version of ministack no longer has that name, the AttributeError stops the start.
    """
    stock = getattr(module, name)
    return lambda function: setattr(module, name, functools.partial(function, stock))
