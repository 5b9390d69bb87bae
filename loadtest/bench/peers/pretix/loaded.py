"""pretix's WSGI application with its addresses, and so its views, loaded: run by pretix's own Python.

Left alone it loads them at the first request, which would wait for many seconds.
"""

# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# What is imported here is installed in another environment than the one that is checked.

from django.urls import get_resolver
from pretix.wsgi import application

__all__ = ["application"]

assert get_resolver().url_patterns  # noqa: S101 - reading them loads them
