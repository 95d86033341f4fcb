"""The table is run where each client is at home; JavaScript's packages are those of tests/js."""

from tests.js.conftest import js

__all__ = ["js"]
