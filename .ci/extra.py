"""Prints what an extra of the installed package asks for: extra.py NAME."""

import importlib.metadata
import re
import sys

for requirement in importlib.metadata.requires("esc-arch") or []:
    if re.search(rf"extra == ['\"]{sys.argv[1]}['\"]", requirement):
        print(requirement.partition(";")[0].replace(" ", ""))
