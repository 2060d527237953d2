"""Imported by Python itself where this folder is on PYTHONPATH: BasicSR's setup.py on Python 3.13.

That setup.py reads the version which `exec` has set through `locals()`. Since PEP 667 `exec` sets
it in a copy. Here `exec` sets it where it is looked for, in that one function and nowhere else.
"""

import builtins
import os
import sys

_exec = builtins.exec


def exec_as_before(source, *namespaces, **options):
    """`exec`, which in `get_version` of a setup.py changes the caller's local variables."""
    caller = sys._getframe(1)
    # pip runs setup.py as text, of which only its `__file__` tells where it comes from.
    file, function = os.path.basename(caller.f_globals.get("__file__", "")), caller.f_code.co_name
    if not namespaces and (file, function) == ("setup.py", "get_version"):
        assigned: dict[str, object] = {}
        _exec(source, caller.f_globals, assigned, **options)
        caller.f_locals.update(assigned)
    elif not namespaces:
        found = caller.f_locals
        # Within functions, since PEP 667, a view that writes through, of which `exec` takes a copy.
        found = found if isinstance(found, dict) else dict(found)
        _exec(source, caller.f_globals, found, **options)
    else:
        _exec(source, *namespaces, **options)


builtins.exec = exec_as_before
